"""Chroma."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, packed


def chroma(batch: int, side: int, timestep: float) -> Inputs:
    return {
        **packed(batch, side, timestep),
        "attention_mask": (torch.arange(TEXT + side * side) != TEXT - 1).expand(batch, -1),
    }


ROWS = {
    "ChromaTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "joint_attention_dim": 12,
            "axes_dims_rope": (2, 2, 4),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        chroma,
    ),
}
