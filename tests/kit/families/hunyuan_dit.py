"""HunyuanDiT."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def hunyuan_dit(batch: int, side: int, timestep: float) -> Inputs:
    angles = normal(side * side, 8, seed=4)
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, 3, 12, seed=1),
        "text_embedding_mask": (torch.arange(3) < 2).long().expand(batch, 3),
        "encoder_hidden_states_t5": normal(batch, TEXT, 16, seed=2),
        "text_embedding_mask_t5": (torch.arange(TEXT) < TEXT - 1).long().expand(batch, TEXT),
        "image_meta_size": torch.tensor([64.0, 64.0, 64.0, 64.0, 0.0, 0.0]).repeat(batch, 1),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


ROWS = {
    "HunyuanDiT2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 16,
            "num_layers": 6,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": 3,
            "text_len_t5": TEXT,
        },
        hunyuan_dit,
    ),
}
