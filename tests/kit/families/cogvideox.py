"""CogVideoX."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def cogvideox(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 2, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


ROWS = {
    "CogVideoXTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "num_layers": 5,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": TEXT,
        },
        cogvideox,
    ),
}
