"""Latte."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def latte(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 3, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "enable_temporal_attentions": True,
    }


ROWS = {
    "LatteTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 5,
            "cross_attention_dim": 16,
            "attention_bias": True,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "caption_channels": 12,
            "video_length": 3,
        },
        latte,
    ),
}
