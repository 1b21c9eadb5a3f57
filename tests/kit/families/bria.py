"""Bria 3.2, FIBO and FIBO 2."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal, packed


def bria(batch: int, side: int, timestep: float) -> Inputs:
    return packed(batch, side, 1000 * timestep)


def bria_fibo(batch: int, side: int, timestep: float) -> Inputs:
    padding = torch.arange(TEXT + side * side) != TEXT - 1
    return {
        **bria(batch, side, timestep),
        "text_encoder_layers": [normal(batch, TEXT, 6, seed=2 + layer) for layer in range(6)],
        "joint_attention_kwargs": {"attention_mask": padding.expand(batch, 1, 1, -1)},
    }


def bria_fibo_2(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timestep": torch.full((batch,), timestep),
        "encoder_hidden_states": normal(batch, 3, TEXT, 12, seed=1),
        "encoder_attention_mask": torch.arange(TEXT).expand(batch, -1) < TEXT - 1,
    }


DUAL = {
    **HEADS,
    "in_channels": 8,
    "num_layers": 3,
    "num_single_layers": 3,
    "joint_attention_dim": 12,
    "axes_dims_rope": [2, 2, 4],
}

ROWS = {
    "BriaTransformer2DModel": Tiny(DUAL, bria),
    "BriaFiboTransformer2DModel": Tiny({**DUAL, "text_encoder_dim": 6}, bria_fibo),
    "BriaFibo2Transformer2DModel": Tiny(
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 5,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "cap_feat_dim": 12,
            "injection_layer_ids": (1, 3),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 2,
            "max_num_gist_tokens": 4,
            "gist_step": 2,
            "gist_min_text_len": 2,
            "gist_max_text_len": 6,
            "axes_dims": (4, 2, 2),
            "axes_lens": (16, 16, 16),
        },
        bria_fibo_2,
    ),
}
