"""Microseconds of the engine itself, by kind of lane: blocks that do nothing leave nothing else to measure."""

import statistics
from dataclasses import dataclass
from typing import Any

import torch

import cache_dit
from bench.common import flat, static, twin
from bench.findings import Finding
from bench.overhead.common import Size, interleaved
from cache_dit import BlockAdapter, DBCacheConfig, DBPruneConfig, ForwardPattern

FEW, MANY = 12, 112


@dataclass(frozen=True)
class Kind:
    """A kind of lane: what asks for it, and the batch that it runs."""

    name: str
    config: Any
    batch: int = 1


KINDS = (
    Kind("DBCache", DBCacheConfig),
    Kind("each of 4 samples", lambda **options: DBCacheConfig(decision="sample", **options), batch=4),
    Kind("DBPrune", DBPruneConfig),
)


class EmptyBlock(torch.nn.Module):
    """A block that does nothing, so that only the wrapper takes time."""

    def forward(self, hidden_states: Any, encoder_hidden_states: Any) -> Any:
        return encoder_hidden_states, hidden_states


class EmptyTransformer(torch.nn.Module):
    """A transformer of empty blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(EmptyBlock() for _ in range(blocks))

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, timestep: Any) -> Any:
        for block in self.blocks:
            encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states)
        return hidden_states


def python_time(size: Size) -> list[Finding]:
    """In each step, and in each block of a computed and of a skipped step; Fn=0, static mask."""
    return [finding for kind in KINDS for finding in _of_kind(kind, size)]


def _of_kind(kind: Kind, size: Size) -> list[Finding]:
    found: dict[tuple[str, int], float] = {}
    for blocks in (FEW, MANY):
        bare = EmptyTransformer(blocks)
        models = {
            "bare": bare,
            "computed": _cached(bare, kind, size.calls, [1] * size.calls + [0]),
            "skipped": _cached(bare, kind, size.calls, [1, *[0] * (size.calls - 1)]),
        }
        state = torch.randn(kind.batch, 4, 8)
        inputs = [
            {"hidden_states": state, "encoder_hidden_states": state, "timestep": 1 - step / size.calls}
            for step in range(size.calls)
        ]
        times = interleaved(models, inputs, 3, f"Python, {kind.name}, {blocks} blocks", size.clock)
        base = statistics.median(flat(times["bare"]))
        for name in ("computed", "skipped"):
            found[name, blocks] = 1e6 * (statistics.median(flat(times[name])) - base)
    findings = []
    for name in ("computed", "skipped"):
        block = (found[name, MANY] - found[name, FEW]) / (MANY - FEW)
        step = found[name, FEW] - FEW * block
        note = "its tensor operations included; below 0 where a bare block's call costs more"
        findings.append(Finding(f"Python in a {name} step, {kind.name}", step, "µs", details={"note": note}))
        findings.append(Finding(f"Python in a block of a {name} step, {kind.name}", block, "µs"))
    return findings


def _cached(bare: EmptyTransformer, kind: Kind, calls: int, mask: list[int]) -> Any:
    model = twin(bare)
    adapter = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=ForwardPattern.Pattern_1)
    options = {"Fn_compute_blocks": 0, "Bn_compute_blocks": 0, "max_warmup_steps": 1, **static(mask)}
    cache_dit.enable_cache(adapter, kind.config(num_inference_steps=calls, **options))
    return model
