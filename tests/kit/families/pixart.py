"""PixArt."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def pixart(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


ROWS = {
    "PixArtTransformer2DModel": Tiny(
        {
            **HEADS,
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
