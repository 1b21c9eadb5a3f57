"""Krea 2."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal, positions


def krea2(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 3, 12, seed=1),
        "timestep": torch.full((batch,), timestep),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), positions(side, 3)]),
        "encoder_attention_mask": torch.arange(TEXT).expand(batch, -1) < TEXT - 1,
    }


ROWS = {
    "Krea2Transformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 5,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 12,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (2, 2, 4),
        },
        krea2,
    ),
}
