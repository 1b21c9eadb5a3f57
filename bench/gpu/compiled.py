"""One model compiled: block by block, whole, and whole with CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.utils import counters

from bench.common import ALWAYS, static, twin
from bench.gpu.clock import interleaved
from bench.gpu.loops import denoise, even_mask, loop_seconds
from bench.gpu.models import Spec
from bench.gpu.stage import Call, Stage, cached, call_of, told

Row = dict[str, Any]


def _regional(model: Any, **options: Any) -> None:
    model.compile_repeated_blocks(fullgraph=True, **options)


def _whole(model: Any, **options: Any) -> None:
    model.compile(**options)


def _graphs(model: Any, **options: Any) -> None:
    model.compile(**({"mode": "reduce-overhead"} | options))


MODES: dict[str, Callable[..., None]] = {"regional": _regional, "whole": _whole, "graphs": _graphs}

#: Runs in which code is compiled, and CUDA graphs are warmed up and recorded.
WARM_UP = 4


def compiled(stage: Stage, spec: Spec, mode: str) -> Row:
    """Steps and one loop of the compiled model: bare, with a static plan, and where blocks are compiled, a dynamic one.

    A compiled cache of every other step gives the times of full and of cached steps from one model.
    """
    stage.tidy()
    torch._dynamo.reset()
    counters.clear()
    made, size = stage.model(spec), stage.size
    steps = size.steps + size.steps % 2
    options = {} if stage.cuda else {"backend": "eager"}  # the compiler for processors is not what is measured here
    halves = [step % 2 for step in range(1, steps + 1)]
    models = {"bare": twin(made.model), "static": cached(made.model, steps, Fn_compute_blocks=0, **static(halves))}
    if mode == "regional":
        always = {"residual_diff_threshold": ALWAYS, "max_continuous_cached_steps": 1}
        models["dynamic"] = cached(made.model, steps, Fn_compute_blocks=1, **always)
    inputs = made.drifting(steps)
    for model in models.values():
        MODES[mode](model, **options)
    calls = {name: _stepping(call_of(model, inputs), mode) for name, model in models.items()}
    start = time.perf_counter()
    for call in calls.values():
        for _ in range(WARM_UP):
            for step in range(steps):
                call(step)
    stage.clock.wait()
    warm_seconds = time.perf_counter() - start
    before = _compilations()
    row: Row = {
        "warm_up_seconds": warm_seconds,
        "times": interleaved(calls, steps, size.runs, stage.clock, what=f"{spec.title}, {mode}"),
        "told": {name: told(model) for name, model in models.items() if name != "bare"},
        "compilations": before,
    }
    row["recompilations"] = _compilations()["graphs"] - before["graphs"]
    row["loop"] = _loop(stage, spec, mode, models["bare"], options)
    return row


def _loop(stage: Stage, spec: Spec, mode: str, bare: Any, options: dict[str, Any]) -> Row:
    """A loop at the goal's speed-up."""
    made, steps = stage.model(spec), stage.size.loops[0]
    wrapped = cached(made.model, steps, Fn_compute_blocks=0, **static(even_mask(steps)))
    MODES[mode](wrapped, **options)
    before = _mark if mode == "graphs" else None
    runs = {name: lambda model=model: denoise(made, model, steps, before) for name, model in _both(bare, wrapped)}
    for run in runs.values():
        run()
    return {"steps": steps, "seconds": loop_seconds(stage, runs, stage.size.rounds), "told": told(wrapped)}


def _both(bare: Any, wrapped: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("bare", bare), ("even", wrapped)


def _stepping(call: Call, mode: str) -> Call:
    """A call that begins a step for CUDA graphs: the outputs of the step before are no longer needed."""
    if mode != "graphs":
        return call

    def marked(step: int) -> torch.Tensor:
        _mark(step)
        return call(step)

    return marked


def _mark(step: int) -> None:
    torch.compiler.cudagraph_mark_step_begin()


def _compilations() -> dict[str, int]:
    """Graphs that were compiled, and places where one had to end."""
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
