"""HiDream."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def hidream(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timesteps": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states_t5": normal(batch, TEXT, 12, seed=1),
        "encoder_hidden_states_llama3": normal(6, batch, TEXT, 10, seed=2),
        "pooled_embeds": normal(batch, 6, seed=3),
    }


ROWS = {
    "HiDreamImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_single_layers": 3,
            "caption_channels": [12, 10],
            "text_emb_dim": 6,
            "axes_dims_rope": (2, 2, 4),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1, 2, 3, 4, 5],
        },
        hidream,
    ),
}
