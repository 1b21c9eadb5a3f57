"""Wan, and VACE, its hints after blocks 0, 2 and 4 of 5."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def wan(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


def vace(batch: int, side: int, timestep: float) -> Inputs:
    return {
        **wan(batch, side, timestep),
        "control_hidden_states": normal(batch, 6, 2, 2 * side, 2 * side, seed=2),
        "control_hidden_states_scale": torch.tensor([1.0, 0.5, 2.0]),
    }


_CONFIG = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 5,
    "rope_max_seq_len": 32,
}

ROWS = {
    "WanTransformer3DModel": Tiny(_CONFIG, wan),
    "WanVACETransformer3DModel": Tiny({**_CONFIG, "vace_layers": [0, 2, 4], "vace_in_channels": 6}, vace),
}
