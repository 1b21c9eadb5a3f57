"""MiniMax H3, with a clean row of audio to go by, and MiniMax Music 3."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal

AUDIO = 3
"""Rows of audio."""


def minimax_h3(batch: int, side: int, timestep: float) -> Inputs:
    video = side * side
    rows = torch.arange(TEXT + video + AUDIO)
    text, image, audio = rows[:TEXT], rows[TEXT:-AUDIO], rows[-AUDIO:]
    tags = torch.cat([torch.full_like(part, tag) for tag, part in enumerate((text, image, audio))])
    return {
        "hidden_states": normal(batch, video, 8),
        "audio_hidden_states": normal(batch, AUDIO, 6, seed=1),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=2),
        "timestep": torch.tensor([1 - timestep, 1.0]),
        "timestep_indices": (rows == audio[0]).long(),
        "token_tags": tags,
        "position_ids": torch.stack([rows, rows % side, rows // side], dim=-1),
        "video_indices": image,
        "audio_indices": audio,
        "text_indices": text,
    }


def minimax_music_3(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, side * side),
        "timestep": torch.full((batch,), 1 - timestep),
        "encoder_hidden_states": normal(batch, side * side, 12, seed=1),
    }


ROWS = {
    "MiniMaxH3Transformer3DModel": Tiny(
        {
            **HEADS,
            "hidden_size": 16,
            "num_layers": 5,
            "num_refiner_layers": 1,
            "ffn_dim": 16,
            "in_channels": 2,
            "audio_in_channels": 6,
            "text_dim": 12,
            "freq_dim": 8,
            "time_embed_hidden_dim": 8,
            "time_embed_dim": 8,
            "rope_freq_dim": 1,
        },
        minimax_h3,
    ),
    "MiniMaxMusic3Transformer1DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "condition_dim": 12,
            "num_layers": 5,
            "ff_inner_dim": 16,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        minimax_music_3,
    ),
}
