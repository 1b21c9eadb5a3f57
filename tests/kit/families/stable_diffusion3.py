"""Stable Diffusion 3."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def sd3(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "pooled_projections": normal(batch, 6, seed=2),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


ROWS = {
    "SD3Transformer2DModel": Tiny(
        {
            **HEADS,
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
}
