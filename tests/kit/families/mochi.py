"""Mochi."""

import warnings

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def mochi(batch: int, side: int, timestep: float) -> Inputs:
    # The rotary embedding asks for autocast to float32, which is none on a CPU. pytest takes the filter back.
    warnings.filterwarnings("ignore", "In CPU autocast", UserWarning)
    return {
        "hidden_states": normal(batch, 4, 2, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 16, seed=1),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, TEXT),
        "timestep": torch.full((batch,), 1000 * (1 - timestep)),
    }


ROWS = {
    "MochiTransformer3DModel": Tiny(
        {
            **HEADS,
            "num_layers": 5,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
        },
        mochi,
    ),
}
