"""The caches that diffusers itself has, put on the demo pipeline through its public API.

FirstBlockCache, MagCache, TaylorSeer and SeaCache keep a state for each branch of guidance by the pipeline's
`cache_context`. SeaCache also wants to know the step, which FluxPipeline does not tell, and the latents as a picture.
PyramidAttentionBroadcast and FasterCache, which know no branches, are not here: they skip attention alone, and reached
1.46 and 2.8 times by work, far behind fewer steps.
"""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.hooks import MagCacheConfig, SeaCacheConfig

from bench.cost.steps import quiet
from bench.quality.drawing import Context, Method, Parameters

MAG = "diffusers MagCache"


@contextlib.contextmanager
def _on(context: Context, parameters: Parameters, *, config: Callable[[Context, Parameters], Any]) -> Iterator[None]:
    """A cache that `transformer.enable_cache` puts on."""
    transformer = context.pipe.transformer
    with quiet("diffusers"):
        transformer.enable_cache(config(context, parameters))
    try:
        yield
    finally:
        transformer.disable_cache()
        forget_hooks(transformer)


def forget_hooks(transformer: torch.nn.Module) -> None:
    """Remove what diffusers' hooks leave on the modules when they are removed: their registries, and bound forwards."""
    for module in transformer.modules():
        for name in ("_diffusers_hook", "forward"):
            vars(module).pop(name, None)


def _first_block(context: Context, parameters: Parameters) -> Any:
    return diffusers.FirstBlockCacheConfig(**parameters)


def _mag(context: Context, parameters: Parameters) -> Any:
    ratios = context.calibrations[MAG]
    return MagCacheConfig(**parameters, num_inference_steps=context.steps, mag_ratios=ratios)


def _calibrate_mag(caption: str, context: Context) -> None:
    """The ratios of this model, by MagCache's own calibration: the mean over two pictures and both branches."""
    if MAG in context.calibrations:
        return
    ratios: list[list[float]] = []
    config = lambda context, _: MagCacheConfig(calibrate=True, num_inference_steps=context.steps)  # noqa: E731
    for seed in (0, 1):
        with contextlib.redirect_stdout(io.StringIO()) as said, _on(context, {}, config=config):
            generator = torch.Generator().manual_seed(seed)
            context.pipe(caption, num_inference_steps=context.steps, generator=generator, output_type="latent")
        lines = [line for line in said.getvalue().splitlines() if line.startswith("[") and "MagCache" not in line]
        ratios += [ast.literal_eval(line) for line in lines]  # one list for each branch
    context.calibrations[MAG] = [sum(column) / len(column) for column in zip(*ratios, strict=True)]


def _taylor(context: Context, parameters: Parameters) -> Any:
    """In its lite mode: the blocks are skipped and the transformer's output is predicted; factors in float32."""
    given = {"use_lite_mode": True, "taylor_factors_dtype": torch.float32, **parameters}
    return diffusers.TaylorSeerCacheConfig(**given)


def taylor_schedules(budgets: Sequence[float], steps: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(steps before caching, interval, orders): for each budget, a third and a half of its full steps at the start."""

    def full_steps(before: int, interval: int) -> int:
        return sum(step < before or (step - before - 1) % interval == 0 for step in range(steps))

    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for most in (max(2, int(steps / (0.98 * budget))) for budget in budgets):
        half, third = max(1, round(most / 2)), max(1, round(most / 3))
        # Few full steps: the two are one, and the next shorter start takes the place of the third.
        starts = {half: (0, 1), third: (0, 1)} if third < half else {half: (0, 1), max(1, half - 1): (0, 1)}
        for before, orders in starts.items():
            interval = next(length for length in range(2, steps + 2) if full_steps(before, length) <= most)
            found[before, interval] = orders
    return [(*schedule, orders) for schedule, orders in found.items()]


def _taylor_settings(budgets: Sequence[float], steps: int) -> list[Parameters]:
    return [
        {"cache_interval": interval, "disable_cache_before_step": before, "max_order": order}
        for before, interval, orders in taylor_schedules(budgets, steps)
        for order in orders
    ]


@contextlib.contextmanager
def _sea_on(context: Context, parameters: Parameters) -> Iterator[None]:
    """As its paper describes it, with the step and sigma that FluxPipeline does not tell handed to it."""
    pipe = context.pipe
    transformer, scheduler = pipe.transformer, pipe.scheduler

    def raw_vision(_: Any, __: Any, given: dict[str, Any]) -> list[torch.Tensor]:
        return list(as_picture(pipe, given["hidden_states"])[:, :, None].unbind())

    with _on(context, parameters, config=lambda _, given: SeaCacheConfig(**given, raw_vision_callback=raw_vision)):
        plain = transformer.cache_context

        def told(name: str) -> Any:
            step = scheduler.step_index or 0  # None before the first step is made
            count = len(scheduler.timesteps)
            return plain(name, step_index=step, sigma=float(scheduler.sigmas[step]), num_inference_steps=count)

        transformer.cache_context = told
        try:
            yield
        finally:
            vars(transformer).pop("cache_context", None)


def as_picture(pipe: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Latents as (batch, channels, height, width)."""
    size = pipe.call_defaults["height"], pipe.call_defaults["width"]
    return pipe._unpack_latents(tokens, *size, pipe.vae_scale_factor)


# -- the table

_FIRST_BLOCK = (
    *(0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18),
    *(0.2, 0.23, 0.26, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
_MAG = ((1, 0.03), (1, 10.0), (2, 0.06), (2, 10.0), (3, 10.0), (5, 10.0), (8, 10.0), (12, 10.0))
_SEA = (0.1, 0.11, 0.17, 0.19, 0.25, 0.35, 0.39, 0.5, 0.58, 0.62, 1.0, 1.2)


def methods(budgets: Sequence[float], caption: str) -> Iterator[Method]:
    """diffusers' caches that skip blocks; ``caption``: what MagCache is calibrated with."""

    def method(name: str, put_on: Any, settings: Any, **more: Any) -> Method:
        listed = settings if callable(settings) else lambda steps: settings
        return Method(name, "peer", name, listed, put_on, **more)

    mag = [
        {"threshold": value, "max_skip_steps": most, "retention_ratio": retention}
        for most, value in _MAG
        for retention in (0.1, 0.2, 0.3)
    ]
    sea = [{"threshold": v, "residual_order": n, "max_consecutive_cached": 0} for v in _SEA for n in (0, 1)]
    first = [{"threshold": value} for value in _FIRST_BLOCK]
    calibrate = partial(_calibrate_mag, caption)
    yield method("diffusers FirstBlockCache", partial(_on, config=_first_block), first)
    yield method(MAG, partial(_on, config=_mag), mag, prepare=calibrate)
    yield method("diffusers TaylorSeer", partial(_on, config=_taylor), partial(_taylor_settings, budgets))
    yield method("diffusers SeaCache", _sea_on, sea)
