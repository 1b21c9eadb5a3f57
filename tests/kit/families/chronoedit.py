"""ChronoEdit."""

import torch

from tests.kit.row import HEADS, Inputs, Tiny, normal


def chronoedit(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 8, 3, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, 512, 12, seed=1),  # image tokens are those before the last 512
        "encoder_hidden_states_image": normal(batch, 3, 10, seed=2),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


ROWS = {
    "ChronoEditTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 16,
            "num_layers": 5,
            "image_dim": 10,
            "added_kv_proj_dim": 16,
            "rope_max_seq_len": 32,
        },
        chronoedit,
    ),
}
