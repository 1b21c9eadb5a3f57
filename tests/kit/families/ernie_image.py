"""ERNIE-Image."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def ernie_image(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 8, side, side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "text_bth": normal(batch, TEXT, 12, seed=1),
        "text_lens": torch.full((batch,), TEXT - 1),
    }


ROWS = {
    "ErnieImageTransformer2DModel": Tiny(
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_layers": 5,
            "ffn_hidden_size": 16,
            "in_channels": 8,
            "out_channels": 8,
            "text_in_dim": 12,
            "rope_axes_dim": (2, 2, 4),
        },
        ernie_image,
    ),
}
