"""CogView3+ and CogView4."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def cogview(batch: int, side: int, timestep: float) -> Inputs:
    size = torch.full((batch, 2), 16.0 * side)
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(batch, 2),
    }


_CONFIG = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 5,
    "text_embed_dim": 12,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}

ROWS = {
    "CogView3PlusTransformer2DModel": Tiny(_CONFIG, cogview),
    "CogView4Transformer2DModel": Tiny({**_CONFIG, "rope_axes_dim": (16, 16)}, cogview),
}
