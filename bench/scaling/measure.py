"""The rows: steps of one model, and the wrapper's Python by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch

import cache_dit
from bench.common import ALWAYS, NEVER, static
from bench.gpu.clock import Clock, interleaved
from bench.overhead.groups.python_time import EmptyTransformer
from bench.peers.cost import by_name, drifting, make_transformer, named, putting, twin, with_blocks
from bench.scaling.points import Point
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern

Row = dict[str, Any]

#: Blocks of the models that have nothing but the wrapper: two depths tell a step's Python from a block's.
FEW, MANY = 3, 51
#: Steps of the run whose first steps are measured.
LONG = 100


def caches(steps: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """By name: whose cache, with what options. Those that end in "full" never skip, the others from step 1 on."""
    plan = static([1] + [0] * (steps - 1))
    return {
        "full": ("cache_dit", {"Fn_compute_blocks": 1, "residual_diff_threshold": NEVER}),
        "static": ("cache_dit", {"Fn_compute_blocks": 0, **plan}),
        "dynamic": ("cache_dit", {"Fn_compute_blocks": 1, "residual_diff_threshold": ALWAYS}),
        "FirstBlockCache full": ("FirstBlockCacheConfig", {"threshold": NEVER}),
        "FirstBlockCache": ("FirstBlockCacheConfig", {"threshold": 1e9}),
    }


def steps_of(point: Point, runs: int, device: torch.device, clock: Clock) -> Row:
    """Seconds of each step, in turn: bare, with each cache, and of the model without blocks."""
    size = point.size
    bare = make_transformer(size).to(device)
    inputs = [_to(arguments, device) for arguments in _inputs(point)]
    with ExitStack() as stack:
        models = {"bare": bare, "rest": with_blocks(bare)}
        for name, (method, options) in caches(size.steps).items():
            models[name] = twin(bare)
            stack.enter_context(putting(by_name(method, options), models[name], size))
        calls = {name: _call(model, inputs) for name, model in models.items()}
        times = interleaved(calls, size.steps, runs, clock, what=point.key)
        lines = {name: _line(models[name]) for name in ("full", "static", "dynamic")}
    return {
        "axis": point.axis,
        "value": point.value,
        "size": asdict(size),
        "blocks": size.blocks,
        "batch": point.batch,
        "feature_bytes": point.batch * size.feature_bytes,
        "lines": lines,
        "times": times,
    }


def python_of(calls: int, runs: int, device: torch.device, clock: Clock) -> Row:
    """Seconds of each step of models whose blocks do nothing, bare and with a plan that computes all steps, by depth.

    A step of at least a microsecond's work is left: that of the tensor operations with which the cache keeps a
    snapshot of a few numbers.
    """
    state = torch.randn(1, 4, 8, device=device)
    times = {}
    for blocks in (FEW, MANY):
        bare = EmptyTransformer(blocks)
        wrapped = twin(bare)
        adapter = BlockAdapter(transformer=wrapped, blocks=wrapped.blocks, forward_pattern=ForwardPattern.Pattern_1)
        plan = static([1] * calls + [0])
        options = {"Fn_compute_blocks": 0, "Bn_compute_blocks": 0, "max_warmup_steps": 1}
        cache_dit.enable_cache(adapter, DBCacheConfig(num_inference_steps=calls, **options, **plan))
        run = {name: _empty(model, state, calls) for name, model in (("bare", bare), ("wrapped", wrapped))}
        times[str(blocks)] = interleaved(run, calls, runs, clock, what=f"Python, {blocks} blocks")
    return {"times": times}


def _empty(model: Any, state: torch.Tensor, calls: int) -> Callable[[int], Any]:
    return lambda step: model(hidden_states=state, encoder_hidden_states=state, timestep=1 - step / calls)


def _inputs(point: Point) -> list[dict[str, Any]]:
    """The first steps of a long run: neighbours so much alike that a threshold is met."""
    return drifting(replace(point.size, steps=LONG), [1.0] * point.batch)[: point.size.steps]


def _line(model: Any) -> str:
    """The steps of the latest run, computed (F) or cached (C)."""
    return "".join(cache_dit.summary(model, logging=False)[0].steps_line.values())


def _call(model: Any, inputs: list[dict[str, Any]]) -> Callable[[int], Any]:
    call = named(model)
    return lambda step: call(**inputs[step])


def _to(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


@torch.inference_mode()
def run(
    chosen: Iterable[Point],
    results: Any,
    *,
    runs: int,
    calls: int,
    device: torch.device,
    clock: Clock,
    say: Callable[[str], None] = print,
) -> None:
    """Make the rows that are not there yet."""
    if "python" not in results:
        say("the wrapper's Python")
        results.row("python", lambda: python_of(calls, 3, device, clock))
    for point in chosen:
        if point.key not in results:
            say(point.key)
            results.row(point.key, lambda point=point: steps_of(point, runs, device, clock))
