"""Nucleus-Image."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def nucleus_moe_image(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_hidden_states_mask": torch.arange(TEXT).expand(batch, -1) < TEXT - 1,
        "timestep": torch.full((batch,), timestep),
        "img_shapes": [(1, side, side)] * batch,
    }


ROWS = {
    "NucleusMoEImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 2,
            "num_layers": 6,
            "joint_attention_dim": 12,
            "axes_dims_rope": (2, 2, 4),
            "mlp_ratio": 12.0,
            "num_experts": 4,
            "moe_intermediate_dim": 8,
            "capacity_factors": 2.0,
        },
        nucleus_moe_image,
    ),
}
