"""Tiny random transformers of the families that have a record: one row of a table each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from packaging.version import Version

DIFFUSERS = Version(diffusers.__version__)

TEXT = 5
"""Text tokens."""

Inputs = dict[str, Any]


class Tiny(NamedTuple):
    """A family's row: how to make a small transformer, and what to call it with.

    Args:
        config: the arguments of its constructor.
        inputs: called with the batch size, the side of the latent picture in tokens and the timestep from 1 (noise)
            to 0; gives the arguments of its forward.
    """

    config: dict[str, Any]
    inputs: Callable[[int, int, float], Inputs]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal random numbers that depend on the shape and the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flux(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "pooled_projections": normal(batch, 6, seed=2),
        "timestep": torch.full((batch,), timestep),
        "img_ids": _positions(side, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def flux2(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), timestep),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": _positions(side, 4),
        "txt_ids": torch.zeros(TEXT, 4),
    }


def qwen_image(batch: int, side: int, timestep: float) -> Inputs:
    lengths = {} if Version("0.37.0") <= DIFFUSERS else {"txt_seq_lens": [TEXT] * batch}  # told by the mask since then
    return {
        **lengths,
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_hidden_states_mask": torch.ones(batch, TEXT, dtype=torch.int64),
        "timestep": torch.full((batch,), timestep),
        "img_shapes": [[(1, side, side)]] * batch,
    }


def wan(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


def sd3(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "pooled_projections": normal(batch, 6, seed=2),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


def pixart(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _positions(side: int, axes: int) -> torch.Tensor:
    ids = torch.zeros(side, side, axes)
    ids[..., 1] += torch.arange(side)[:, None]
    ids[..., 2] += torch.arange(side)[None]
    return ids.reshape(-1, axes)


_HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}

#: Class name of the transformer -> its row. A new family is one row more.
TINY: dict[str, Tiny] = {
    "FluxTransformer2DModel": Tiny(
        {
            **_HEADS,
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 6,
            "axes_dims_rope": (2, 2, 4),
        },
        flux,
    ),
    "Flux2Transformer2DModel": Tiny(
        {
            **_HEADS,
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "joint_attention_dim": 12,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (2, 2, 2, 2),
        },
        flux2,
    ),
    "QwenImageTransformer2DModel": Tiny(
        {
            **_HEADS,
            "in_channels": 8,
            "out_channels": 2,
            "num_layers": 5,
            "joint_attention_dim": 12,
            "axes_dims_rope": (2, 2, 4),
        },
        qwen_image,
    ),
    "WanTransformer3DModel": Tiny(
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 16,
            "num_layers": 5,
            "rope_max_seq_len": 32,
        },
        wan,
    ),
    "SD3Transformer2DModel": Tiny(
        {
            **_HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 6,
            "pos_embed_max_size": 8,
        },
        sd3,
    ),
    "PixArtTransformer2DModel": Tiny(
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 5,
            "cross_attention_dim": 16,
            "sample_size": 8,
            "caption_channels": 12,
            "use_additional_conditions": False,
        },
        pixart,
    ),
}


def tiny(name: str, **changes: Any) -> torch.nn.Module:
    """A tiny random transformer by its class name, the same weights each time, none of them zero."""
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(diffusers, name)(**{**TINY[name].config, **changes}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # zero-initialized gates and outputs would hide what the blocks do
                parameter.normal_(std=0.05, generator=generator)
    return model


def inputs(name: str, *, batch: int = 1, side: int = 4, timestep: float = 1.0) -> Inputs:
    """What a family's transformer is called with."""
    return TINY[name].inputs(batch, side, timestep)
