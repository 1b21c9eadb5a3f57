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
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from diffusers import hooks

from bench.quality.drawing import Context, Parameters
from bench.timer import quiet

#: What calibrations are made on: a caption of the documentation, which neither search nor result uses.
CALIBRATION_CAPTION = "noto emoji of dog face"


@contextlib.contextmanager
def on(context: Context, parameters: Parameters, *, config: str, **fixed: Any) -> Iterator[None]:
    """A cache that `transformer.enable_cache` puts on, by a configuration's name."""
    transformer = context.pipe.transformer
    with quiet("diffusers"):
        transformer.enable_cache(getattr(hooks, config)(**fixed, **parameters))
    try:
        yield
    finally:
        transformer.disable_cache()
        for module in transformer.modules():  # what hooks leave behind: their registries, and bound forwards
            for name in ("_diffusers_hook", "forward"):
                vars(module).pop(name, None)


def _mag_on(context: Context, parameters: Parameters) -> contextlib.AbstractContextManager[None]:
    ratios = {"num_inference_steps": context.steps, "mag_ratios": context.calibrations["diffusers MagCache"]}
    return on(context, parameters, config="MagCacheConfig", **ratios)


def _calibrate_mag(context: Context) -> None:
    """The ratios of this model, by MagCache's own calibration: the mean over two pictures and both branches."""
    if "diffusers MagCache" in context.calibrations:
        return
    ratios: list[list[float]] = []
    asked = {"calibrate": True, "num_inference_steps": context.steps}
    for seed in (0, 1):
        with contextlib.redirect_stdout(io.StringIO()) as said, on(context, asked, config="MagCacheConfig"):
            given = {"num_inference_steps": context.steps, "output_type": "latent"}
            context.pipe(CALIBRATION_CAPTION, generator=torch.Generator().manual_seed(seed), **given)
        lines = [line for line in said.getvalue().splitlines() if line.startswith("[") and "MagCache" not in line]
        ratios += [ast.literal_eval(line) for line in lines]  # one list for each branch
    context.calibrations["diffusers MagCache"] = [sum(column) / len(column) for column in zip(*ratios, strict=True)]


@contextlib.contextmanager
def _sea_on(context: Context, parameters: Parameters) -> Iterator[None]:
    """As its paper describes it, with the step and sigma that FluxPipeline does not tell handed to it."""
    pipe = context.pipe
    transformer, scheduler = pipe.transformer, pipe.scheduler

    def raw_vision(_: Any, __: Any, given: dict[str, Any]) -> list[torch.Tensor]:
        """Latents as (channels, 1, height, width), each."""
        size = pipe.call_defaults["height"], pipe.call_defaults["width"]
        return list(pipe._unpack_latents(given["hidden_states"], *size, pipe.vae_scale_factor)[:, :, None].unbind())

    with on(context, parameters, config="SeaCacheConfig", raw_vision_callback=raw_vision):
        plain_context = transformer.cache_context

        def told(name: str) -> Any:
            step = scheduler.step_index or 0  # None before the first step is made
            count = len(scheduler.timesteps)
            return plain_context(name, step_index=step, sigma=float(scheduler.sigmas[step]), num_inference_steps=count)

        transformer.cache_context = told
        try:
            yield
        finally:
            vars(transformer).pop("cache_context", None)


def _nothing(context: Context) -> None:
    """Most need nothing before the first picture."""


#: By configuration: what puts it on, and what is needed once before. TaylorSeer's lite mode skips blocks and
#: predicts the output.
_LITE = {"use_lite_mode": True, "taylor_factors_dtype": torch.float32}
PUT_ON: dict[str, tuple[Callable[..., Any], Callable[[Context], None]]] = {
    "FirstBlockCacheConfig": (partial(on, config="FirstBlockCacheConfig"), _nothing),
    "TaylorSeerCacheConfig": (partial(on, config="TaylorSeerCacheConfig", **_LITE), _nothing),
    "MagCacheConfig": (_mag_on, _calibrate_mag),
    "SeaCacheConfig": (_sea_on, _nothing),
}
