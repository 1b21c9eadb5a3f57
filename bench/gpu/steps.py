"""One model's steps: what a full and a cached one take, what the host waits for, and what is held in memory."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from bench.common import ALWAYS, NEVER, static, twin
from bench.gpu.clock import alone, host, interleaved
from bench.gpu.models import Spec, blocks_of, without_blocks
from bench.gpu.stage import Call, Stage, cached, call_of, told
from bench.reads import counted

Row = dict[str, Any]

#: Which wrapped models never skip, and which do from the second step on.
FULL, SKIPPING = ("planned", "measured"), ("static", "dynamic")


def made(stage: Stage, spec: Spec) -> Row:
    """Make a model and call it once: its size, and that its output is finite and moves."""
    stage.clear()
    start = stage.clock.stamp()
    model = stage.model(spec)
    end = stage.clock.stamp()
    stage.clock.wait()
    first, *_, last = (call_of(model.model, model.drifting(3))(step).float() for step in range(3))
    if not (first.isfinite().all() and last.isfinite().all()):
        raise RuntimeError(f"{spec.title} with random weights gives numbers that are not finite")
    return {
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "bytes": sum(parameter.nbytes for parameter in model.model.parameters()),
        "blocks": blocks_of(model.model),
        "tokens": list(spec.tokens),
        "made_seconds": stage.clock.seconds(start, end),
        "output_mean": first.abs().mean().item(),
        "drift": ((last - first).abs().mean() / first.abs().mean()).item(),
    }


def models_of(stage: Stage, spec: Spec) -> dict[str, Any]:
    """The model bare, twice, with caches that never skip and that always do, and with no blocks at all."""
    model, steps = stage.model(spec).model, stage.size.steps
    return {
        "bare": model,
        "control": twin(model),
        "planned": cached(model, steps, Fn_compute_blocks=0, **static([1] * steps + [0])),
        "measured": cached(model, steps, Fn_compute_blocks=1, residual_diff_threshold=NEVER),
        "static": cached(model, steps, Fn_compute_blocks=0, **static([1] + [0] * (steps - 1))),
        "dynamic": cached(model, steps, Fn_compute_blocks=1, residual_diff_threshold=ALWAYS),
        "rest": without_blocks(model),
    }


def step_times(stage: Stage, spec: Spec) -> Row:
    """Seconds of each step, eager: in turn on a busy device, and alone, with what the host needs."""
    size, models = stage.size, models_of(stage, spec)
    inputs = stage.model(spec).drifting(size.steps)
    calls = {name: call_of(model, inputs) for name, model in models.items()}
    times = interleaved(calls, size.steps, size.runs, stage.clock, what=f"{spec.title}, steps")
    one = {name: calls[name] for name in ("bare", *SKIPPING, "rest")}
    return {
        "times": times,
        "alone": {name: alone(call, size.steps, stage.clock) for name, call in one.items()},
        "host": {name: host(call, size.steps, stage.clock) for name, call in one.items()},
        "told": {name: told(models[name]) for name in (*FULL, *SKIPPING)},
    }


def host_reads(stage: Stage, spec: Spec) -> Row:
    """For each step of a run, how often the host waited for the device, as torch warns and the engine counts."""
    steps, models = stage.size.steps, models_of(stage, spec)
    inputs = stage.model(spec).drifting(steps)
    row: Row = {"waits": {}, "reads": {}}
    for name in ("bare", *FULL, *SKIPPING):
        call = call_of(models[name], inputs)
        for step in range(steps):  # a first run has checks that are made once, and kernels to compile
            call(step)
        row["waits"][name] = [waits(stage, call, step) for step in range(steps)]
        row["reads"][name] = [_reads(call, step) for step in range(steps)]
    return row


def waits(stage: Stage, call: Call, step: int) -> int | None:
    """How often torch made the host wait for the device in a step; None where only CUDA can tell."""
    if not stage.cuda:
        return None
    stage.clock.wait()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def _reads(call: Call, step: int) -> dict[str, int]:
    with counted() as count:
        call(step)
    return dict(count)


def memory(stage: Stage, spec: Spec) -> Row:
    """The most bytes that a run takes on the device beyond the weights and inputs, and what the cache says it holds."""
    steps = stage.size.steps
    row: Row = {"peak_bytes": {}, "told": {}, "feature_bytes": _feature_bytes(stage, spec)}
    for name in ("bare", *SKIPPING):
        stage.tidy()
        model = models_of(stage, spec)[name]
        call = call_of(model, stage.model(spec).drifting(steps))
        row["peak_bytes"][name] = peak_bytes(stage, call)
        if name in SKIPPING:
            row["told"][name] = told(model)
    return row


def peak_bytes(stage: Stage, call: Call) -> int | None:
    """The most that a run allocates beyond what is there before it; None where only CUDA can tell."""
    if not stage.cuda:
        for step in range(stage.size.steps):
            call(step)
        return None
    stage.clock.wait()
    torch.cuda.reset_peak_memory_stats(stage.device)
    before = torch.cuda.memory_allocated(stage.device)
    for step in range(stage.size.steps):
        call(step)
    stage.clock.wait()
    return torch.cuda.max_memory_allocated(stage.device) - before


def _feature_bytes(stage: Stage, spec: Spec) -> int:
    """One feature: what a block hands on; where text is only attended to, the text is none of it."""
    config = stage.model(spec).model.config
    width = config.num_attention_heads * config.attention_head_dim
    if stage.size.tiny:
        return 0
    tokens = spec.tokens[0] if spec.name == "wan" else sum(spec.tokens)
    return tokens * width * torch.empty((), dtype=stage.dtype).element_size()
