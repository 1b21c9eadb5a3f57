"""FLUX.3."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal, positions


def flux3(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), timestep),
        "img_ids": positions(side, 4),
        "txt_ids": torch.zeros(TEXT, 4),
    }


ROWS = {
    "Flux3Transformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "cond_in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 5,
            "joint_attention_dim": 12,
            "timestep_channels": 16,
            "axes_dims_rope": (2, 2, 2, 2),
        },
        flux3,
    ),
}
