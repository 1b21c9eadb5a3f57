"""Both branches of guidance in one call of the transformer, for methods that know no branches.

diffusers' FluxPipeline calls the transformer twice a step. PyramidAttentionBroadcast and FasterCache keep one state for
each attention and count its calls, so there one branch would be answered with the other's. They are made for pipelines
that give both branches as one batch, and here they get that: the picture's latents twice, with the negative caption
first, and the outputs mixed as the pipeline mixes them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from bench.peers.work import WorkMeter
from bench.quality.method import Context, Drawing, InProcess, Parameters, Picture


@contextmanager
def mixed(transformer: torch.nn.Module, scale: float) -> Iterator[None]:
    """Both rows of the transformer's output are the guided prediction, from the negative and the positive row."""

    def mix(_: torch.nn.Module, __: Any, output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        negative, positive = output[0].chunk(2)
        return ((negative + scale * (positive - negative)).repeat(2, 1, 1),)

    hook = transformer.register_forward_hook(mix)
    try:
        yield
    finally:
        hook.remove()


def draw(context: Context, picture: Picture, steps: int, *, counted: bool) -> Drawing:
    """One picture, as the pipeline stands, with both branches in one batch; seconds are without the second decoding."""
    pipe = context.pipe
    given = dict(pipe.call_defaults)
    scale, negative = given.pop("true_cfg_scale"), given.pop("negative_prompt")
    size, channels = (given["height"], given["width"]), pipe.transformer.config.in_channels // 4
    generator = torch.Generator().manual_seed(picture.seed)
    latents, _ = pipe.prepare_latents(1, channels, *size, torch.float32, pipe.device, generator)
    with ExitStack() as stack:
        stack.enter_context(mixed(pipe.transformer, scale))
        meter = stack.enter_context(WorkMeter(pipe.transformer)) if counted else None
        start = context.now()
        drawn = pipe(
            [negative, picture.caption],
            negative_prompt=None,
            true_cfg_scale=1.0,
            num_inference_steps=steps,
            latents=latents.repeat(2, 1, 1),
            output_type="latent",
        ).images[:1]
        pixels = _decoded(pipe, drawn, *size)
        seconds = context.now() - start
    drawing = Drawing(pixels, seconds)
    if meter is not None:
        drawing.work, drawing.blocks = float(meter.work), int(meter.blocks)
    return drawing


@torch.no_grad()
def _decoded(pipe: Any, latents: torch.Tensor, height: int, width: int) -> Any:
    """As the pipeline's last lines do it."""
    latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(latents, return_dict=False)[0], output_type="np")[0]


class BatchedDrawer:
    """Draws with a method that needs both branches in one batch; uncached pictures are the usual ones."""

    def __init__(self, method: InProcess, context: Context) -> None:
        self.method, self.context = method, context

    def draw(self, parameters: Parameters | None, picture: Picture, *, counted: bool = True) -> Drawing:
        context = self.context
        if parameters is None:
            return context.draw(picture, context.steps, counted=counted)
        self.method.put_on(context.pipe, parameters, context)
        note = ""
        try:
            drawing = draw(context, picture, context.steps, counted=counted)
        finally:
            note = self.method.take_off(context.pipe)
        drawing.note = note
        return drawing
