"""Motif-Video, without a decoder."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def motif_video(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 9, 2, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).long().expand(batch, TEXT),
    }


ROWS = {
    "MotifVideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 9,
            "out_channels": 4,
            "num_layers": 3,
            "num_single_layers": 3,
            "text_embed_dim": 12,
            "image_embed_dim": 10,
            "rope_axes_dim": (2, 2, 4),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        motif_video,
    ),
}
