"""The caches that diffusers itself has, put on the demo pipeline through its public API.

FirstBlockCache, MagCache, TaylorSeer and SeaCache keep a state for each branch of guidance by the pipeline's
`cache_context`. SeaCache also wants to know the step, which FluxPipeline does not tell, and the latents as a picture.
PyramidAttentionBroadcast and FasterCache know no branches: see batched_guidance.py.
"""

import ast
import contextlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import MagCacheConfig, SeaCacheConfig
from diffusers.hooks.faster_cache import apply_faster_cache

from bench.common import quiet
from bench.quality.batched_guidance import BatchedDrawer
from bench.quality.masks import BUDGETS
from bench.quality.method import Context, Drawer, InProcess, Parameters
from bench.quality.ours import CALIBRATION_CAPTION
from cache_dit.demo import DemoPipeline

#: What MagCache is calibrated with: the caption that ours is calibrated with, and seeds of the noise.
CALIBRATION = ((CALIBRATION_CAPTION, 0), (CALIBRATION_CAPTION, 1))


class DiffusersCache(InProcess):
    """A cache that `transformer.enable_cache` puts on; a subclass makes its configuration."""

    owner = "peer"

    @property
    def family(self) -> str:
        return self.name

    def config(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> Any:
        raise NotImplementedError

    def put_on(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> None:
        with quiet("diffusers"):
            pipe.transformer.enable_cache(self.config(pipe, parameters, context))

    def take_off(self, pipe: DemoPipeline) -> str:
        pipe.transformer.disable_cache()
        forget_hooks(pipe.transformer)
        return ""


class FirstBlockCache(DiffusersCache):
    """One threshold is all it has."""

    name = "diffusers FirstBlockCache"

    def settings(self, steps: int) -> list[Parameters]:
        thresholds = (
            *(0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18),
            *(0.2, 0.23, 0.26, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        )
        return [{"threshold": threshold} for threshold in thresholds]

    def config(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> Any:
        return FirstBlockCacheConfig(**parameters)


class MagCache(DiffusersCache):
    """With the ratios of this model, by its own calibration: the mean over two pictures and both branches."""

    name = "diffusers MagCache"

    def settings(self, steps: int) -> list[Parameters]:
        allowed = ((1, 0.03), (1, 10.0), (2, 0.06), (2, 10.0), (3, 10.0), (5, 10.0), (8, 10.0), (12, 10.0))
        return [
            {"threshold": threshold, "max_skip_steps": most, "retention_ratio": retention}
            for most, threshold in allowed
            for retention in (0.1, 0.2, 0.3)
        ]

    def prepare(self, context: Context) -> None:
        if self.name in context.calibrations:
            return
        pipe, ratios = context.pipe, []
        for caption, seed in CALIBRATION:
            with quiet("diffusers"), contextlib.redirect_stdout(io.StringIO()) as said:
                pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=context.steps))
                try:
                    generator = torch.Generator().manual_seed(seed)
                    pipe(caption, num_inference_steps=context.steps, generator=generator, output_type="latent")
                finally:
                    self.take_off(pipe)
            lines = [line for line in said.getvalue().splitlines() if line.startswith("[") and "MagCache" not in line]
            ratios += [ast.literal_eval(line) for line in lines]  # one list for each branch
        context.calibrations[self.name] = [sum(column) / len(column) for column in zip(*ratios, strict=True)]

    def config(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> Any:
        ratios = context.calibrations[self.name]
        return MagCacheConfig(**parameters, num_inference_steps=context.steps, mag_ratios=ratios)


class TaylorSeer(DiffusersCache):
    """In its lite mode: the blocks are skipped and the transformer's output is predicted; factors in float32."""

    name = "diffusers TaylorSeer"

    def settings(self, steps: int) -> list[Parameters]:
        return [
            {"cache_interval": interval, "disable_cache_before_step": before, "max_order": order}
            for before, interval, orders in taylor_schedules(steps)
            for order in orders
        ]

    def config(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> Any:
        return TaylorSeerCacheConfig(**{"use_lite_mode": True, "taylor_factors_dtype": torch.float32, **parameters})


def taylor_schedules(steps: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(steps before caching, interval, orders): for each budget, a third and a half of its full steps at the start."""

    def full_steps(before: int, interval: int) -> int:
        return sum(step < before or (step - before - 1) % interval == 0 for step in range(steps))

    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for most in (max(2, int(steps / (0.98 * budget))) for budget in BUDGETS):
        half, third = max(1, round(most / 2)), max(1, round(most / 3))
        # Few full steps: the two are one, and the next shorter start takes the place of the third.
        starts = {half: (0, 1), third: (0, 1)} if third < half else {half: (0, 1), max(1, half - 1): (0, 1)}
        for before, orders in starts.items():
            interval = next(length for length in range(2, steps + 2) if full_steps(before, length) <= most)
            found[before, interval] = orders
    return [(*schedule, orders) for schedule, orders in found.items()]


class SeaCache(DiffusersCache):
    """As its paper describes it, with the step and sigma that FluxPipeline does not tell handed to it."""

    name = "diffusers SeaCache"

    def settings(self, steps: int) -> list[Parameters]:
        thresholds = (0.1, 0.11, 0.17, 0.19, 0.25, 0.35, 0.39, 0.5, 0.58, 0.62, 1.0, 1.2)
        return [
            {"threshold": threshold, "residual_order": order, "max_consecutive_cached": 0}
            for threshold in thresholds
            for order in (0, 1)
        ]

    def config(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> Any:
        def raw_vision(_: Any, __: Any, given: dict[str, Any]) -> list[torch.Tensor]:
            return list(as_picture(pipe, given["hidden_states"])[:, :, None].unbind())

        return SeaCacheConfig(**parameters, raw_vision_callback=raw_vision)

    def put_on(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> None:
        super().put_on(pipe, parameters, context)
        transformer, scheduler = pipe.transformer, pipe.scheduler
        plain = transformer.cache_context

        def told(name: str) -> Any:
            step = scheduler.step_index or 0  # None before the first step is made
            count = len(scheduler.timesteps)
            return plain(name, step_index=step, sigma=float(scheduler.sigmas[step]), num_inference_steps=count)

        transformer.cache_context = told

    def take_off(self, pipe: DemoPipeline) -> str:
        vars(pipe.transformer).pop("cache_context", None)
        return super().take_off(pipe)


class _Batched(DiffusersCache):
    @contextmanager
    def drawer(self, context: Context) -> Iterator[Drawer]:
        self.prepare(context)
        yield BatchedDrawer(self, context)


class PyramidAttentionBroadcast(_Batched):
    """Skips the attention of a block, never its feed-forward: it reaches 1.46 × by work here."""

    name = "diffusers PyramidAttentionBroadcast"

    def settings(self, steps: int) -> list[Parameters]:
        return [
            {"skip_range": skip, "timesteps": list(timesteps)}
            for timesteps in ((100, 800), (100, 900), (-1, 950), (-1, 1001))
            for skip in (2, 3, 4, 6, 8, 28)
        ]

    def config(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> Any:
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=parameters["skip_range"],
            spatial_attention_timestep_skip_range=tuple(parameters["timesteps"]),
            current_timestep_callback=lambda: pipe.current_timestep,
        )


class FasterCache(_Batched):
    """Skips the branch without the caption, and attention in the steps in which it does; at most 2.8 × by work here."""

    name = "diffusers FasterCache"

    def settings(self, steps: int) -> list[Parameters]:
        return [
            {"skip_range": skip, "branch_skip_range": branch, "from_timestep": start}
            for start in (750, 850, 950, 1001)
            for branch, skip in ((2, 2), (3, 2), (5, 2), (5, 5), (8, 4), (28, 28))
        ]

    def put_on(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> None:
        start = parameters["from_timestep"]
        config = FasterCacheConfig(
            spatial_attention_block_skip_range=parameters["skip_range"],
            spatial_attention_timestep_skip_range=(-1, start),
            unconditional_batch_skip_range=parameters["branch_skip_range"],
            unconditional_batch_timestep_skip_range=(-1, start),
            alpha_low_frequency=1.0,  # the default, 1.1 more in each skipped step, made all pictures worse
            alpha_high_frequency=1.0,
            attention_weight_callback=lambda _: 1 - float(pipe.current_timestep) / 1000,  # from 0 to 1, as in its paper
            current_timestep_callback=lambda: pipe.current_timestep,
            tensor_format="BCHW",
        )
        config._unconditional_conditional_input_kwargs_identifiers = (
            *config._unconditional_conditional_input_kwargs_identifiers,
            "pooled_projections",
        )
        denoiser = _PictureDenoiser(pipe)
        with quiet("diffusers"):
            apply_faster_cache(denoiser, config)

        def forward(*, hidden_states: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # of a call in diffusers
                return (as_tokens(pipe, denoiser(hidden_states=as_picture(pipe, hidden_states), **given)[0]),)

        pipe.transformer.forward = forward

    def take_off(self, pipe: DemoPipeline) -> str:
        forget_hooks(pipe.transformer)
        return ""


class _PictureDenoiser(torch.nn.Module):
    """The transformer with latents as (batch, channels, height, width): FasterCache splits their frequencies."""

    def __init__(self, pipe: DemoPipeline) -> None:
        super().__init__()
        self.transformer_blocks = pipe.transformer.transformer_blocks
        self.single_transformer_blocks = pipe.transformer.single_transformer_blocks
        self._pipe, self._plain = (pipe,), pipe.transformer.forward

    def forward(self, *, hidden_states: torch.Tensor, **given: Any) -> tuple[torch.Tensor]:
        (pipe,) = self._pipe
        return (as_picture(pipe, self._plain(hidden_states=as_tokens(pipe, hidden_states), **given)[0]),)


def as_picture(pipe: DemoPipeline, tokens: torch.Tensor) -> torch.Tensor:
    """Latents as (batch, channels, height, width)."""
    size = pipe.call_defaults["height"], pipe.call_defaults["width"]
    return pipe._unpack_latents(tokens, *size, pipe.vae_scale_factor)


def as_tokens(pipe: DemoPipeline, picture: torch.Tensor) -> torch.Tensor:
    """Latents as (batch, tokens, 4 · channels)."""
    return pipe._pack_latents(picture, *picture.shape)


def forget_hooks(transformer: torch.nn.Module) -> None:
    """Remove what diffusers' hooks leave on the modules when they are removed: their registries, and bound forwards."""
    for module in transformer.modules():
        for name in ("_diffusers_hook", "forward"):
            vars(module).pop(name, None)


#: All of diffusers' caches that a FLUX pipeline can use.
DIFFUSERS_CACHES: tuple[DiffusersCache, ...] = (
    FirstBlockCache(),
    MagCache(),
    TaylorSeer(),
    SeaCache(),
    FasterCache(),
    PyramidAttentionBroadcast(),
)
