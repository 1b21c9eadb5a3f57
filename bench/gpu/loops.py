"""Denoising loops: the speed-up of whole runs against the ideal, at the masks from slow to ultra, and beside peers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

from bench.common import ALWAYS, NEVER, static, twin
from bench.gpu.models import Made, Spec, without_blocks
from bench.gpu.stage import Stage, cached, told
from bench.peers.work import WorkMeter
from bench.quality.masks import even_mask as even_mask_of
from cache_dit import steps_mask

Row = dict[str, Any]
MASKS = ("slow", "medium", "fast", "ultra")

#: The speed-up by steps that the goal is set at, and how often peers compute in their comparison.
GOAL, EVERY = 3.9, 4


def even_mask(steps: int, speedup: float = GOAL) -> list[int]:
    """Evenly spread computed steps, of which all steps are about ``speedup`` times as many."""
    return even_mask_of(steps, max(1, round(steps / speedup)), last=False)


def denoise(made: Made, model: Any, steps: int, before: Callable[[int], None] | None = None) -> torch.Tensor:
    """A whole run by Euler's steps; ``before`` is called before each."""
    state = made.state
    for step, time in enumerate(made.timesteps(steps)):
        if before is not None:
            before(step)
        with model.cache_context("cond"):
            velocity = model(**made.arguments(state, time))[0]
        state = state - velocity / steps
    return state


def loop_seconds(stage: Stage, runs: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of whole runs, in random order in each round; the device is idle before each."""
    order, names = random.Random(0), list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            stage.clock.wait()
            start = stage.clock.stamp()
            output = runs[name]()
            end = stage.clock.stamp()
            stage.clock.wait()
            seconds[name].append(stage.clock.seconds(start, end))
            if not output.isfinite().all():
                raise RuntimeError(f"the loop {name!r} ended with numbers that are not finite")
    return seconds


def loops(stage: Stage, spec: Spec, steps: int) -> Row:
    """Loops of one length: bare, wrapped without a skipped step, at every mask, and evenly at the goal's speed-up."""
    made = stage.model(spec)
    masks = {name: steps_mask(total_steps=steps, mask_policy=name) or [] for name in MASKS}
    masks["even"] = even_mask(steps)
    wrapped = {name: cached(made.model, steps, Fn_compute_blocks=0, **static(mask)) for name, mask in masks.items()}
    wrapped["measured"] = cached(made.model, steps, Fn_compute_blocks=1, residual_diff_threshold=NEVER)
    models = {"bare": made.model, "rest": without_blocks(made.model), **wrapped}
    denoise(made, wrapped["even"], steps)  # kernels are compiled before
    runs = {name: lambda model=model: denoise(made, model, steps) for name, model in models.items()}
    return {
        "steps": steps,
        "seconds": loop_seconds(stage, runs, stage.size.rounds),
        "computed": {name: sum(mask) for name, mask in masks.items()},
        "told": {name: told(model) for name, model in wrapped.items()},
    }


def peers(stage: Stage, spec: Spec) -> Row:
    """One loop, every fourth step computed, by us and by diffusers' caches, with the blocks' work that each does.

    FirstBlockCache decides by a threshold: here one that every step is below, and its state is dropped before each
    step that is to be computed. TaylorSeer predicts each attention layer, or, as "lite", the output layer alone.
    """
    made, steps = stage.model(spec), stage.size.loops[0]
    even = [int(step % EVERY == 0) for step in range(steps)]
    ours = {
        "ours, static": cached(made.model, steps, Fn_compute_blocks=0, **static(even)),
        "ours, dynamic": cached(
            made.model,
            steps,
            Fn_compute_blocks=1,
            residual_diff_threshold=ALWAYS,
            max_continuous_cached_steps=EVERY - 1,
        ),
    }
    configs = {
        "FirstBlockCache": FirstBlockCacheConfig(threshold=1e9),
        "MagCache": MagCacheConfig(
            threshold=1e9,
            max_skip_steps=EVERY - 1,
            retention_ratio=0.0,
            num_inference_steps=steps,
            mag_ratios=[1.0] * steps,
        ),
        "TaylorSeer": TaylorSeerCacheConfig(cache_interval=EVERY, disable_cache_before_step=1),
        "TaylorSeer lite": TaylorSeerCacheConfig(cache_interval=EVERY, disable_cache_before_step=1, use_lite_mode=True),
    }
    row: Row = {"steps": steps, "seconds": {}, "work": {}, "errors": {}, "told": {}}
    runs: dict[str, Callable[[], torch.Tensor]] = {"bare": lambda: denoise(made, made.model, steps)}
    models: dict[str, Any] = {"bare": made.model, **ours}
    for name, model in ours.items():
        runs[name] = lambda model=model: denoise(made, model, steps)
    for name, config in configs.items():
        try:
            models[name] = twin(made.model)
            models[name].enable_cache(config)
            runs[name] = _run_of_peer(made, models[name], even, drops=name == "FirstBlockCache")
            row["work"][name] = _work(models[name], runs[name])
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # a peer that cannot run this model
            row["errors"][name] = first_line(error)
            runs.pop(name, None)
    for name in ("bare", *ours):
        row["work"][name] = _work(models[name], runs[name])
    row["seconds"] = loop_seconds(stage, runs, stage.size.rounds)
    row["told"] = {name: told(model) for name, model in ours.items()}
    return row


def _run_of_peer(made: Made, model: Any, mask: list[int], *, drops: bool) -> Callable[[], torch.Tensor]:
    def before(step: int) -> None:
        if drops and mask[step]:
            model._reset_stateful_cache()

    def run() -> torch.Tensor:
        model._reset_stateful_cache()
        return denoise(made, model, len(mask), before)

    return run


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'it says nothing'}"


def _work(model: Any, run: Callable[[], torch.Tensor]) -> int:
    """Multiply-adds that a run executes inside the blocks."""
    with WorkMeter(model) as meter:
        run()
    return meter.work
