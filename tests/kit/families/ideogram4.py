"""Ideogram 4."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal, positions

IMAGE, PROMPT, PADDING = 2, 3, -1
"""What a token is."""


def ideogram4(batch: int, side: int, timestep: float) -> Inputs:
    tokens = torch.tensor([PADDING] + [PROMPT] * (TEXT - 1) + [IMAGE] * side * side)
    places = torch.cat([torch.arange(TEXT)[:, None].expand(-1, 3), 65536 + positions(side, 3).long()])
    return {
        "hidden_states": normal(batch, TEXT + side * side, 8),
        "timestep": torch.full((batch,), 1 - timestep),
        "encoder_hidden_states": normal(batch, TEXT + side * side, 12, seed=1),
        "position_ids": places.expand(batch, -1, -1),
        "segment_ids": tokens.sign().expand(batch, -1),
        "indicator": tokens.expand(batch, -1),
    }


ROWS = {
    "Ideogram4Transformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 5,
            "intermediate_size": 16,
            "adaln_dim": 16,
            "llm_features_dim": 12,
            "rope_theta": 10_000,
            "mrope_section": (2, 1, 1),
        },
        ideogram4,
    ),
}
