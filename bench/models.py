"""The transformers that are measured: a FLUX of any size, and published models with random weights, on any device.

It needs torch and diffusers alone: peers are measured on these models in environments of their own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

HEAD = 64
#: Where a FLUX has its blocks.
LISTS: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
#: Of published models: where timesteps begin, by how much they fall from step to step, and how far the state drifts: so
#: little that neighbouring steps are as much alike as a trained model's, and no less than bfloat16 can tell apart.
START, FALL, DRIFT = 0.1, 0.0005, 0.02

Arguments = dict[str, Any]


# -- a FLUX of any size


@dataclass(frozen=True)
class Size:
    """A FLUX transformer and its input."""

    hidden: int = 512
    double: int = 4
    single: int = 8
    image_tokens: int = 256
    text_tokens: int = 64
    steps: int = 20

    @property
    def blocks(self) -> int:
        return self.double + self.single

    @property
    def feature_bytes(self) -> int:
        """One feature: what a block hands on, image and text tokens, in float32."""
        return (self.image_tokens + self.text_tokens) * self.hidden * 4


def make_transformer(size: Size) -> Any:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=size.double,
        num_single_layers=size.single,
        attention_head_dim=HEAD,
        num_attention_heads=size.hidden // HEAD,
        joint_attention_dim=256,
        pooled_projection_dim=256,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    return model.eval().requires_grad_(False)


def drifting(size: Size, speeds: Sequence[float] = (1.0,), *, seed: int = 0) -> list[Arguments]:
    """The arguments of each step: a batch of different samples, each of which drifts at a speed of its own."""
    batch = len(speeds)
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(batch, size.image_tokens, 64, generator=generator)
    drift = torch.randn(state.shape, generator=generator) / size.steps
    drift = drift * torch.tensor(speeds).view(-1, 1, 1)
    fixed = {
        "encoder_hidden_states": torch.randn(batch, size.text_tokens, 256, generator=generator),
        "pooled_projections": torch.randn(batch, 256, generator=generator),
        "img_ids": torch.zeros(size.image_tokens, 3),
        "txt_ids": torch.zeros(size.text_tokens, 3),
        "return_dict": False,
    }
    return [
        {"hidden_states": state + step * drift, "timestep": torch.full((batch,), 1 - step / size.steps), **fixed}
        for step in range(size.steps)
    ]


def twin(model: torch.nn.Module) -> Any:
    """Another instance of a model with the very same weights."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def with_blocks(model: Any, kept: Iterable[int] = ()) -> Any:
    """A twin that has only some of the blocks, numbered over all lists: what a step costs that runs no others."""
    kept, hollow, start = set(kept), twin(model), 0
    for name in lists_of(model):
        blocks = list(getattr(hollow, name))
        remaining = [block for number, block in enumerate(blocks, start=start) if number in kept]
        setattr(hollow, name, torch.nn.ModuleList(remaining))
        start += len(blocks)
    return hollow


def lists_of(model: Any) -> tuple[str, ...]:
    """Where a model has its blocks."""
    return tuple(name for name in (*LISTS, "blocks") if isinstance(getattr(model, name, None), torch.nn.ModuleList))


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """A model's blocks, in the order in which they run."""
    return [block for name in lists_of(model) for block in getattr(model, name)]


def named(model: Any) -> Callable[..., Any]:
    """A model called as diffusers' pipelines call it, cached or not: the branch has a name."""

    def call(**arguments: Any) -> Any:
        with model.cache_context("cond"):
            return model(**arguments)

    return call


def guided(model: Any, *, by_name: bool) -> Callable[..., Any]:
    """A step with guidance: the transformer is called for each branch, by name or in turn."""

    def call(**branches: Arguments) -> None:
        for name, arguments in branches.items():
            with model.cache_context(name) if by_name else contextlib.nullcontext():
                model(**arguments)

    return call


# -- published models, with random weights: made where they run, in seconds, from no file


@dataclass(frozen=True)
class Spec:
    """A model as it is published; all of them stand in ``models.json``.

    ``tokens``: of the picture or video, and of the text; ``shape``: of the state that is denoised; ``tiny``: what a
    test's model has instead; ``inputs``: its arguments beside the text's hidden states, by the names of ``_INPUTS``;
    ``feature_text``: whether a block hands text on too; ``timestep_scale``: what a timestep of 1 is for the model.
    """

    name: str
    title: str
    transformer: str
    config: dict[str, Any]
    tokens: tuple[int, int]
    shape: tuple[int, ...]
    tiny: dict[str, Any]
    tiny_shape: tuple[int, ...]
    inputs: tuple[str, ...] = ()
    feature_text: bool = True
    timestep_scale: float = 1.0


def _ids(tokens: int, axes: int, *, text: bool) -> torch.Tensor:
    """Positions: of a square height and width on the second and third axis, of a text the number on a fourth."""
    numbers, side = torch.arange(tokens), math.isqrt(tokens)
    ids = torch.zeros(tokens, axes, dtype=torch.float32)
    if text:
        ids[:, 3:] = numbers[:, None]
    else:
        ids[:, 1], ids[:, 2] = numbers // side, numbers % side
    return ids


#: Arguments of transformers, from a configuration, the tokens of the picture and those of the text.
_INPUTS: dict[str, Callable[[Any, int, int], Any]] = {
    "pooled_projections": lambda config, picture, text: torch.randn(1, config.pooled_projection_dim),
    "guidance": lambda config, picture, text: torch.full((1,), 3.5),
    "img_ids": lambda config, picture, text: _ids(picture, len(config.axes_dims_rope), text=False),
    "txt_ids": lambda config, picture, text: _ids(text, len(config.axes_dims_rope), text=True),
    "img_shapes": lambda config, picture, text: [[(1, math.isqrt(picture), math.isqrt(picture))]],
}
SPECS = {
    one["name"]: Spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in one.items()})
    for one in json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
}


@dataclass
class Made:
    """A published transformer on a device, and what it is called with."""

    spec: Spec
    model: Any
    state: torch.Tensor
    fixed: Arguments

    def arguments(self, state: torch.Tensor, timestep: torch.Tensor) -> Arguments:
        """The arguments of one step."""
        return {"hidden_states": state, "timestep": timestep, "return_dict": False, **self.fixed}

    def timesteps(self, steps: int) -> list[torch.Tensor]:
        """Those of a run: on the device before it begins, as a pipeline's are."""
        levels = START - FALL * torch.arange(steps, dtype=torch.float64)
        return list((levels * self.spec.timestep_scale).float().to(self.state.device).view(steps, 1))

    def drifting(self, steps: int) -> list[Arguments]:
        """The arguments of each step of a run: a state that drifts slowly."""
        drift = DRIFT * torch.randn_like(self.state)
        return [self.arguments(self.state + step * drift, time) for step, time in enumerate(self.timesteps(steps))]

    @property
    def feature_bytes(self) -> int:
        """One feature: what a block hands on; where text is only attended to, the text is none of it."""
        config, shape = self.model.config, self.state.shape
        width = config.num_attention_heads * config.attention_head_dim
        picture = shape[1] if len(shape) == 3 else math.prod(shape[2:]) // 4  # patches of 2 × 2
        text = self.fixed["encoder_hidden_states"].shape[1] * self.spec.feature_text
        return int((picture + text) * width * self.state.element_size())


def make(spec: Spec, device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Made:
    """The model with its input; the same each time on the same device."""
    torch.manual_seed(0)
    with _default_dtype(dtype), torch.device(device):
        model = getattr(diffusers, spec.transformer)(**{**spec.config, **(spec.tiny if tiny else {})})
        _fill(model)
        kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())  # as diffusers loads a checkpoint
        for name, parameter in model.named_parameters():
            if kept & set(name.split(".")):
                parameter.data = parameter.data.float()
        shape, text = (spec.tiny_shape, 4) if tiny else (spec.shape, spec.tokens[1])
        config = model.config
        width = getattr(config, "joint_attention_dim", None) or config.text_dim
        fixed = {name: _INPUTS[name](config, shape[1], text) for name in spec.inputs}
        fixed["encoder_hidden_states"] = torch.randn(1, text, width)
        state = torch.randn(shape)
    return Made(spec, model.eval().requires_grad_(False), state, fixed)


@torch.no_grad()
def _fill(model: torch.nn.Module) -> None:
    """Weights by which a layer's output varies as much as its input: bfloat16 loses no block to rounding."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv3d)):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As diffusers does where it makes a model of another dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
