"""Transformers of the sizes that people run, with random weights: made where they run, in seconds, from no file.

The configurations are those of the published checkpoints. Every linear layer's weights have a variance of 1 / inputs,
so that no activation grows or vanishes: bfloat16 neither overflows nor rounds a block's contribution away.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from bench.common import twin
from cache_dit.models.record import record_of

#: Where timesteps begin, by how much they fall from step to step, and how far the state drifts: so little that
#: neighbouring steps are as much alike as those of a trained model, and no less than bfloat16 can tell apart.
START, FALL, DRIFT = 0.1, 0.0005, 0.02


@dataclass(frozen=True)
class Spec:
    """A model as it is published, and a tiny one of the same class.

    Args:
        name: for rows.
        title: for people.
        transformer: its class in diffusers.
        config: that of the checkpoint.
        tokens: of the picture or video, and of the text.
        shape: of the state that is denoised.
        inputs: its other arguments, from this and the text's length.
        tiny: what a test's model has instead.
        tiny_shape: and its state, and tokens.
    """

    name: str
    title: str
    transformer: str
    config: dict[str, Any]
    tokens: tuple[int, int]
    shape: tuple[int, ...]
    inputs: Callable[[Any, tuple[int, ...], int], dict[str, torch.Tensor]]
    tiny: dict[str, Any]
    tiny_shape: tuple[int, ...]
    tiny_text: int = 4
    extra: Callable[[tuple[int, ...]], dict[str, Any]] = field(default=lambda shape: {})
    timestep_scale: float = 1.0


def _grid_ids(tokens: int, axes: int, plane: tuple[int, int]) -> torch.Tensor:
    """Positions of picture tokens in a square; ``plane`` says on which of the axes height and width lie."""
    side = math.isqrt(tokens)
    numbers = torch.arange(tokens)
    ids = torch.zeros(tokens, axes, dtype=torch.float32)
    ids[:, plane[0]], ids[:, plane[1]] = numbers // side, numbers % side
    return ids


def _flux(config: Any, shape: tuple[int, ...], text: int) -> dict[str, torch.Tensor]:
    return {
        "encoder_hidden_states": torch.randn(1, text, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "guidance": torch.full((1,), 3.5),
        "img_ids": _grid_ids(shape[1], 3, (1, 2)),
        "txt_ids": torch.zeros(text, 3, dtype=torch.float32),
    }


def _flux2(config: Any, shape: tuple[int, ...], text: int) -> dict[str, torch.Tensor]:
    txt_ids = torch.zeros(text, 4, dtype=torch.float32)
    txt_ids[:, 3] = torch.arange(text)
    return {
        "encoder_hidden_states": torch.randn(1, text, config.joint_attention_dim),
        "img_ids": _grid_ids(shape[1], 4, (1, 2)),
        "txt_ids": txt_ids,
    }


def _qwen(config: Any, shape: tuple[int, ...], text: int) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": torch.randn(1, text, config.joint_attention_dim)}


def _qwen_extra(shape: tuple[int, ...]) -> dict[str, Any]:
    side = math.isqrt(shape[1])
    return {"img_shapes": [[(1, side, side)]]}


def _wan(config: Any, shape: tuple[int, ...], text: int) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": torch.randn(1, text, config.text_dim)}


_SMALL = {"num_attention_heads": 2, "attention_head_dim": 16}
_SMALL_FLUX = {**_SMALL, "joint_attention_dim": 32, "num_layers": 1, "num_single_layers": 2}

FLUX = Spec(
    name="flux",
    title="FLUX.1-dev",
    transformer="FluxTransformer2DModel",
    config={
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    tokens=(4096, 512),
    shape=(1, 4096, 64),
    inputs=_flux,
    tiny={**_SMALL_FLUX, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6)},
    tiny_shape=(1, 16, 64),
)
KLEIN = Spec(
    name="klein",
    title="FLUX.2-klein-4B",
    transformer="Flux2Transformer2DModel",
    config={
        "in_channels": 128,
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "mlp_ratio": 3.0,
        "axes_dims_rope": (32, 32, 32, 32),
        "rope_theta": 2000,
        "guidance_embeds": False,
    },
    tokens=(4096, 512),
    shape=(1, 4096, 128),
    inputs=_flux2,
    tiny={**_SMALL_FLUX, "axes_dims_rope": (4, 4, 4, 4)},
    tiny_shape=(1, 16, 128),
)
QWEN = Spec(
    name="qwen",
    title="Qwen-Image",
    transformer="QwenImageTransformer2DModel",
    config={
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "axes_dims_rope": (16, 56, 56),
    },
    tokens=(4096, 256),
    shape=(1, 4096, 64),
    inputs=_qwen,
    tiny={**_SMALL, "joint_attention_dim": 32, "num_layers": 3, "axes_dims_rope": (4, 6, 6)},
    tiny_shape=(1, 16, 64),
    extra=_qwen_extra,
)
WAN = Spec(
    name="wan",
    title="Wan2.1-1.3B",
    transformer="WanTransformer3DModel",
    config={
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 4096,
        "ffn_dim": 8960,
        "num_layers": 30,
    },
    tokens=(5 * 30 * 52, 512),
    shape=(1, 16, 5, 60, 104),  # 17 frames of 832 × 480
    inputs=_wan,
    tiny={**_SMALL, "text_dim": 32, "ffn_dim": 64, "num_layers": 3, "rope_max_seq_len": 32},
    tiny_shape=(1, 16, 1, 8, 8),
    timestep_scale=1000.0,
)
SPECS = {spec.name: spec for spec in (FLUX, KLEIN, QWEN, WAN)}


@dataclass
class Made:
    """A transformer on a device, and what it is called with."""

    spec: Spec
    model: Any
    state: torch.Tensor
    fixed: dict[str, Any]

    def arguments(self, state: torch.Tensor, timestep: torch.Tensor) -> dict[str, Any]:
        """The arguments of one step."""
        return {"hidden_states": state, "timestep": timestep, "return_dict": False, **self.fixed}

    def timesteps(self, steps: int) -> list[torch.Tensor]:
        """Those of a run: on the device before it begins, as a pipeline's are."""
        levels = START - FALL * torch.arange(steps, dtype=torch.float64)
        return list((levels * self.spec.timestep_scale).float().to(self.state.device).view(steps, 1))

    def drifting(self, steps: int) -> list[dict[str, Any]]:
        """The arguments of each step of a run: a state that drifts slowly."""
        drift = DRIFT * torch.randn_like(self.state)
        return [self.arguments(self.state + step * drift, time) for step, time in enumerate(self.timesteps(steps))]


def config_of(spec: Spec, *, tiny: bool) -> dict[str, Any]:
    """The arguments of its class."""
    return {**spec.config, **(spec.tiny if tiny else {})}


def make(spec: Spec, device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Made:
    """The model with its input; the same each time on the same device."""
    torch.manual_seed(0)
    with _default_dtype(dtype), torch.device(device):
        model = getattr(diffusers, spec.transformer)(**config_of(spec, tiny=tiny))
        fill(model)
        _keep_in_float32(model)
        shape, text = (spec.tiny_shape, spec.tiny_text) if tiny else (spec.shape, spec.tokens[1])
        fixed = {**spec.inputs(model.config, shape, text), **spec.extra(shape)}
        state = torch.randn(shape)
    return Made(spec, model.eval().requires_grad_(False), state, fixed)


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights by which every layer's output varies as much as its input."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv3d)):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.zero_()


def _keep_in_float32(model: torch.nn.Module) -> None:
    """What diffusers keeps in float32 when it loads a checkpoint as another dtype."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As diffusers does where it makes a model of another dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def without_blocks(model: torch.nn.Module) -> Any:
    """A twin that has no blocks: what a step costs that skips all of them."""
    hollow, record = twin(model), record_of(model)
    for blocks in record.blocks if record is not None else ():
        setattr(hollow, blocks.attribute, torch.nn.ModuleList())
    return hollow


def blocks_of(model: torch.nn.Module) -> int:
    """How many blocks it has."""
    record = record_of(model)
    return 0 if record is None else sum(len(blocks.find(model)) for blocks in record.blocks)
