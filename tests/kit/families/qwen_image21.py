"""Qwen-Image 2.1: its prompt has a slot for each 2 × 2 tokens of a picture, here of the target alone."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def qwen_image21(batch: int, side: int, timestep: float) -> Inputs:
    slots = torch.arange(TEXT + side * side) >= TEXT
    return {
        "hidden_states": normal(batch, 4 * side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_hidden_states_mask": torch.arange(TEXT).expand(batch, -1) < TEXT - 1,
        "timestep": torch.full((batch,), timestep),
        "img_shapes": [[(1, 2 * side, 2 * side)]] * batch,
        "img_mask": slots.expand(batch, -1),
    }


ROWS = {
    "QwenImage21Transformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 5,
            "context_in_dim": 12,
            "axes_dims_rope": (2, 2, 4),
        },
        qwen_image21,
    ),
}
