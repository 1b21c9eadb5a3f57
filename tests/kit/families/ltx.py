"""LTX-Video and LTX-2."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def ltx(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 2 * side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, TEXT),
        "num_frames": 2,
        "height": side,
        "width": side,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


def ltx2(batch: int, side: int, timestep: float) -> Inputs:
    given = ltx(batch, side, timestep)
    del given["rope_interpolation_scale"]
    return {
        **given,
        "sigma": given["timestep"],
        "audio_hidden_states": normal(batch, 6, 4, seed=2),
        "audio_encoder_hidden_states": normal(batch, TEXT, 12, seed=3),
        "audio_encoder_attention_mask": given["encoder_attention_mask"],
        "fps": 24.0,
        "audio_num_frames": 6,
    }


ROWS = {
    "LTXVideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 16,
            "num_layers": 5,
            "caption_channels": 12,
        },
        ltx,
    ),
    "LTX2VideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 4,
            "audio_cross_attention_dim": 8,
            "num_layers": 5,
            "caption_channels": 12,
            "rope_double_precision": False,
        },
        ltx2,
    ),
}
