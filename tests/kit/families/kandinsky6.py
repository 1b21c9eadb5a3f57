"""Kandinsky 6 for video with audio, and its super-resolution, which attends in blocks of 8 × 8 tokens."""

import torch
from torch.nn.attention import flex_attention

from tests.kit.row import TEXT, Inputs, Tiny, normal

FRAMES = 2

# The super-resolution's attention, as it is: else every call compiles a wrapper around it, and warns.
flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True


def kandinsky6(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, FRAMES, 2 * side, 2 * side, 9),
        "audio_hidden_states": normal(batch, 6, 3, seed=3),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": torch.arange(TEXT).expand(batch, -1) < TEXT - 1,
        "pooled_projections": normal(batch, 6, seed=2),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


def kandinsky6_sr(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, side // 2, 8, 16, 9),
        "timestep": torch.full((batch,), 1000 * timestep),
    }


ROWS = {
    "Kandinsky6Transformer3DModel": Tiny(
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 12,
            "in_text_dim2": 6,
            "time_dim": 16,
            "model_dim": 16,
            "ff_dim": 16,
            "num_text_blocks": 1,
            "num_visual_blocks": 5,
            "axes_dims": (2, 2, 4),
            "in_audio_dim": 3,
            "out_audio_dim": 3,
            "ca_rope": True,
            "cross_gates": True,
            "fix_modulation": True,
        },
        kandinsky6,
    ),
    "Kandinsky6SRTransformer3DModel": Tiny(
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 16,
            "model_dim": 16,
            "ff_dim": 16,
            "num_visual_blocks": 5,
            "axes_dims": (2, 2, 4),
            "nabla_window": (3, 1, 1),
        },
        kandinsky6_sr,
    ),
}
