"""Allegro."""

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

from tests.kit.row import TEXT, Inputs, Tiny, normal

FRAMES = 3


def allegro(batch: int, side: int, timestep: float) -> Inputs:
    *frequencies, frames, rows, columns = get_3d_rotary_pos_embed_allegro(
        embed_dim=24,
        crops_coords=((0, 0), (side, side)),
        grid_size=(side, side),
        temporal_size=FRAMES,
        interpolation_scale=(1.0, 1.0, 1.0),
    )
    grid = torch.cartesian_prod(frames.long(), rows.long(), columns.long()).T.reshape(3, 1, -1)
    return {
        "hidden_states": normal(batch, 4, FRAMES, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).long().expand(batch, TEXT),
        "timestep": torch.full((batch,), 1000 * timestep),
        "image_rotary_emb": (tuple(frequencies), tuple(grid)),
    }


ROWS = {
    "AllegroTransformer3DModel": Tiny(
        {
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "cross_attention_dim": 48,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": FRAMES,
            "caption_channels": 12,
        },
        allegro,
    ),
}
