"""Kandinsky 5."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal

FRAMES = 2


def kandinsky5(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, FRAMES, 2 * side, 2 * side, 4),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "pooled_projections": normal(batch, 6, seed=2),
        "timestep": torch.full((batch,), 1000 * timestep),
        "visual_rope_pos": [torch.arange(FRAMES), torch.arange(side), torch.arange(side)],
        "text_rope_pos": torch.arange(TEXT),
    }


ROWS = {
    "Kandinsky5Transformer3DModel": Tiny(
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
        },
        kandinsky5,
    ),
}
