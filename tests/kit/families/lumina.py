"""Lumina-Next and Lumina 2, whose time is 0 at noise."""

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from tests.kit.row import TEXT, Inputs, Tiny, normal


def lumina_next(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1 - timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, -1).long(),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 8, 8),
        "cross_attention_kwargs": {},
    }


def lumina2(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1 - timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": torch.arange(TEXT).expand(batch, -1) < TEXT - 1,
    }


_CONFIG = {
    "sample_size": 8,
    "in_channels": 4,
    "hidden_size": 16,
    "num_layers": 5,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 8,
}

ROWS = {
    "LuminaNextDiT2DModel": Tiny({**_CONFIG, "cross_attention_dim": 12}, lumina_next),
    "Lumina2Transformer2DModel": Tiny(
        {
            **_CONFIG,
            "num_refiner_layers": 1,
            "axes_dim_rope": (2, 2, 4),
            "axes_lens": (16, 16, 16),
            "cap_feat_dim": 12,
        },
        lumina2,
    ),
}
