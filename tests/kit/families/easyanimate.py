"""EasyAnimate."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def easyanimate(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


ROWS = {
    "EasyAnimateTransformer3DModel": Tiny(
        {
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 5,
            "mmdit_layers": 3,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
        },
        easyanimate,
    ),
}
