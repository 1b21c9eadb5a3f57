"""What a family's row of the table of tiny transformers is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from packaging.version import Version

from tests.kit.toys import normal

DIFFUSERS = Version(diffusers.__version__)

TEXT = 5
"""Text tokens."""

HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}

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


def positions(side: int, axes: int) -> torch.Tensor:
    """Row and column of each token of a square picture, on the second and third of ``axes`` axes."""
    ids = torch.zeros(side, side, axes)
    ids[..., 1] += torch.arange(side)[:, None]
    ids[..., 2] += torch.arange(side)[None]
    return ids.reshape(-1, axes)


def packed(batch: int, side: int, timestep: float) -> Inputs:
    """What models over packed pictures of 8 channels and text of width 12 are called with."""
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), timestep),
        "img_ids": positions(side, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }
