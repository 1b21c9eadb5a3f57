"""FLUX.1 and FLUX.2."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal, positions


def flux(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "pooled_projections": normal(batch, 6, seed=2),
        "timestep": torch.full((batch,), timestep),
        "img_ids": positions(side, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def flux2(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), timestep),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": positions(side, 4),
        "txt_ids": torch.zeros(TEXT, 4),
    }


ROWS = {
    "FluxTransformer2DModel": Tiny(
        {
            **HEADS,
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
            **HEADS,
            "in_channels": 8,
            "num_layers": 3,
            "num_single_layers": 3,
            "joint_attention_dim": 12,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (2, 2, 2, 2),
        },
        flux2,
    ),
}
