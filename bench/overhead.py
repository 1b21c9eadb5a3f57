"""What the wrapper costs: time when nothing is cached, time of a skipped step, and live state.

    python -m bench.overhead            # some minutes; saves bench/results/overhead.json
    python -m bench.overhead --quick    # seconds, a small model: shows that it works, says nothing

The model is a random FLUX transformer of middle size. What is compared runs in turn, step by step and in random order,
on two copies of the model that share their weights, so that a machine that slows down does so for both.
"""

import argparse
import dataclasses
import gc
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import cache_dit
from bench.common import (
    CLOCKS,
    QUICK,
    Size,
    flat,
    interleaved,
    interval,
    make_inputs,
    make_transformer,
    median_ms,
    median_ratio,
    ratio_of_medians,
    twin,
    without_blocks,
)
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig
from cache_dit.platforms.machine import describe_machine

RESULTS = Path(__file__).parent / "results" / "overhead.json"


@dataclass
class Finding:
    """One row of the table."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    reached: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)


def cached(model: Any, size: Size, *, order: int | None = None, **options: Any) -> Any:
    """A twin of a model with a cache on it."""
    calibrator = None if order is None else TaylorSeerCalibratorConfig(taylorseer_order=order)
    config = DBCacheConfig(num_inference_steps=size.steps, Bn_compute_blocks=0, max_warmup_steps=1, **options)
    return cache_dit.enable_cache(twin(model), config, calibrator)


def half_mask(size: Size) -> list[int]:
    return [1 - step % 2 for step in range(size.steps)]


# -- (a) nothing is cached


def nothing_cached(model: Any, size: Size) -> list[Finding]:
    """A step with the wrapper over a step without, where no step is ever skipped."""
    never = cached(model, size, Fn_compute_blocks=1, residual_diff_threshold=0.0)
    measuring = cached(model, size, Fn_compute_blocks=1, residual_diff_threshold=1e-9, order=1)
    models = {"bare": model, "control": twin(model), "never": never, "measuring": measuring}
    times = interleaved(models, make_inputs(size), size.runs, "nothing cached", size.clock)
    findings = []
    titles = {
        "never": "wrapped ÷ bare, threshold 0",
        "measuring": "wrapped ÷ bare, every step measured, none skipped, Taylor 1",
        "control": "bare ÷ bare: how far the machine lets one see",
    }
    for name, title in titles.items():
        pairs = list(zip(flat(times[name]), flat(times["bare"]), strict=True))
        ratio = median_ratio(pairs)
        low, high = interval(pairs, median_ratio)
        details = {"ratio_of_medians": ratio_of_medians(pairs), "bare_step_ms": median_ms(times["bare"])}
        finding = Finding(title, ratio, "×", low, high, details=details)
        if name == "never":
            finding.target, finding.reached = "≤ 1.01", ratio <= 1.01
        findings.append(finding)
    return findings


# -- (b) half of the steps are skipped


def half_cached(model: Any, size: Size) -> list[Finding]:
    """The measured speed-up of a static mask over the ideal one by executed blocks, and over one that knows the rest.

    Ideal by blocks: block calls without a cache over block calls with it. It takes all blocks as equal and the rest of
    the transformer as free. The other ideal counts what a skipped step must still do at what it costs in a model that
    has nothing else: the embedders and the output layer, and for Fn=1 the first block.
    """
    findings = []
    for front in (0, 1):
        wrapped = cached(
            model,
            size,
            order=1,
            Fn_compute_blocks=front,
            steps_computation_mask=half_mask(size),
            steps_computation_policy="static",
        )
        models = {"bare": model, "cached": wrapped, "rest": without_blocks(model, keep=front)}
        times = interleaved(models, make_inputs(size), size.runs, f"half of the steps skipped, Fn={front}", size.clock)
        findings += _speedups(front, times, wrapped, half_mask(size))
    return findings


def _speedups(front: int, times: dict[str, list[list[float]]], wrapped: Any, mask: list[int]) -> list[Finding]:
    stats = cache_dit.summary(wrapped, logging=False)[0]
    runs = []
    for bare, quick, rest in zip(times["bare"], times["cached"], times["rest"], strict=True):
        floor = sum(b if computed else r for computed, b, r in zip(mask, bare, rest, strict=True))
        runs.append((sum(bare), sum(quick), floor))

    def share(samples: Sequence[Any]) -> float:
        return statistics.median(bare / quick for bare, quick, _ in samples) / stats.ideal_speedup

    def share_of_all(samples: Sequence[Any]) -> float:
        return statistics.median(floor / quick for _, quick, floor in samples)

    measured = statistics.median(bare / quick for bare, quick, _ in runs)
    details = {
        "measured_speedup": measured,
        "ideal_by_blocks": stats.ideal_speedup,
        "ideal_with_rest": statistics.median(bare / floor for bare, _, floor in runs),
        "bare_step_ms": median_ms(times["bare"]),
        "rest_step_ms": median_ms(times["rest"]),
        "skipped_step_ms": median_ms([[t for c, t in zip(mask, row, strict=True) if not c] for row in times["cached"]]),
        "computed_step_ms": median_ms([[t for c, t in zip(mask, row, strict=True) if c] for row in times["cached"]]),
        "steps_line": stats.steps_line,
    }
    value = share(runs)
    by_blocks = Finding(
        f"speed-up {measured:.3f} of ideal {stats.ideal_speedup:.3f} by blocks, Fn={front}",
        value,
        "×",
        *interval(runs, share),
        target="≥ 0.97",
        reached=value >= 0.97,
        details=details,
    )
    with_rest = Finding(
        f"speed-up {measured:.3f} of ideal {details['ideal_with_rest']:.3f} with the rest, Fn={front}",
        share_of_all(runs),
        "×",
        *interval(runs, share_of_all),
    )
    return [by_blocks, with_rest]


# -- (c) live state


def live_state(model: Any, size: Size) -> list[Finding]:
    """Features held between two steps, by the cache's own count and by what is really alive."""
    static = {"Fn_compute_blocks": 0, "steps_computation_mask": half_mask(size), "steps_computation_policy": "static"}
    threshold = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.3, "max_continuous_cached_steps": 2}
    cases = (
        ("reuse, threshold", threshold, None, 2),
        ("reuse, static mask", static, None, 1),
        ("Taylor 1, threshold", threshold, 1, 3),
        ("Taylor 1, static mask", static, 1, 3),
        ("Taylor 2, threshold", threshold, 2, 4),
        ("Taylor 2, static mask", static, 2, 4),
    )
    findings = []
    for name, options, order, most in cases:
        wrapped = cached(model, size, order=order, **options)
        alive = _most_alive(wrapped, make_inputs(size)) / size.feature_bytes
        counted = cache_dit.summary(wrapped, logging=False)[0].peak_bytes / size.feature_bytes
        details = {"counted_by_the_cache": counted}
        reached = max(alive, counted) <= most
        findings.append(
            Finding(f"live state, {name}", alive, "features", target=f"≤ {most}", reached=reached, details=details)
        )
    return findings


def _most_alive(model: Any, inputs: Sequence[dict[str, Any]]) -> int:
    """The most bytes of tensors alive after a step, beyond those alive before the first."""
    most = 0
    gc.collect()
    before = _alive()
    gc.freeze()  # what is there already is not looked at again
    try:
        for arguments in inputs:
            model(**arguments)
            gc.collect()
            alive = _alive()
            most = max(most, sum(alive[pointer] for pointer in alive.keys() - before.keys()))
    finally:
        gc.unfreeze()
    return most


def _alive() -> dict[int, int]:
    """Address and bytes of the memory behind every tensor that the garbage collector knows."""
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


# -- (d) Python


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
    """Microseconds of the wrapper itself: in each step, and in each block of a computed and of a skipped step."""
    few, many = 12, 112
    found: dict[tuple[str, int], float] = {}
    for blocks in (few, many):
        bare = EmptyTransformer(blocks)
        computed = _cached_empty(bare, size, [1] * size.calls)
        skipped = _cached_empty(bare, size, [1, *[0] * (size.calls - 1)])
        state = torch.randn(1, 4, 8)
        inputs = [
            {"hidden_states": state, "encoder_hidden_states": state, "timestep": 1 - step / size.calls}
            for step in range(size.calls)
        ]
        models = {"bare": bare, "computed": computed, "skipped": skipped}
        times = interleaved(models, inputs, 3, f"Python, {blocks} blocks", size.clock)
        base = statistics.median(flat(times["bare"]))
        for name in ("computed", "skipped"):
            found[name, blocks] = 1e6 * (statistics.median(flat(times[name])) - base)
    findings = []
    for name in ("computed", "skipped"):
        block = (found[name, many] - found[name, few]) / (many - few)
        step = found[name, few] - few * block
        note = "its tensor operations included; below 0 where a bare block's call costs more"
        findings.append(Finding(f"Python in a {name} step, Fn=0, static mask", step, "µs", details={"note": note}))
        findings.append(Finding(f"Python in a block of a {name} step", block, "µs"))
    return findings


def _cached_empty(bare: EmptyTransformer, size: Size, mask: list[int]) -> Any:
    model = twin(bare)
    adapter = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=ForwardPattern.Pattern_1)
    config = DBCacheConfig(
        Fn_compute_blocks=0,
        num_inference_steps=size.calls,
        max_warmup_steps=1,
        steps_computation_mask=mask,
        steps_computation_policy="static",
    )
    cache_dit.enable_cache(adapter, config)
    return model


# -- the report


def table(findings: Sequence[Finding], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("what")
    for heading in ("value", "95 % interval", "target", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    for finding in findings:
        digits = 1 if finding.unit == "µs" else 2 if finding.unit == "features" else 4
        between = "" if finding.low is None else f"{finding.low:.{digits}f} – {finding.high:.{digits}f}"
        mark = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[finding.reached]
        shown.add_row(finding.name, f"{finding.value:.{digits}f} {finding.unit}", between, finding.target, mark)
    return shown


@torch.inference_mode()
def measure(size: Size) -> list[Finding]:
    """All findings."""
    model = make_transformer(size)
    return [*nothing_cached(model, size), *half_cached(model, size), *live_state(model, size), *python_time(size)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the wrapper costs on this machine.")
    parser.add_argument(
        "--quick", action="store_true", help="a small model, to see that it works; saves nothing by itself"
    )
    parser.add_argument("--runs", type=int, help=f"runs of all steps (default {Size.runs})")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default %(default)s)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"where to save (default {RESULTS.name} in bench/results)"
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default=Size.clock, help="what to measure (default %(default)s time)"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    logging.getLogger("cache_dit").setLevel(logging.ERROR)  # that nothing was skipped is the point here
    size = QUICK if given.quick else Size()
    size = dataclasses.replace(size, clock=given.clock, runs=given.runs or size.runs)
    machine = describe_machine()
    findings = measure(size)
    console = Console()
    console.print(str(machine), highlight=False)
    tokens = f"{size.image_tokens} image and {size.text_tokens} text tokens"
    model = f"FLUX, hidden {size.hidden}, {size.double} + {size.single} blocks, {tokens}"
    title = f"{model}; {size.runs} runs of {size.steps} steps, {size.clock} time"
    console.print(table(findings, title))
    path = given.json or (None if given.quick else RESULTS)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        saved = {
            "machine": machine.as_dict(),
            "model": dataclasses.asdict(size),
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        path.write_text(json.dumps(saved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"saved to {path}", highlight=False)


if __name__ == "__main__":
    main()
