"""Stable Audio 1 and 3."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def stable_audio(batch: int, side: int, timestep: float) -> Inputs:
    length = side * side
    angles = torch.outer(torch.arange(length + 1.0), torch.tensor([1.0, 0.1])).repeat(1, 2)
    return {
        "hidden_states": normal(batch, 4, length),
        "timestep": torch.full((1,), timestep),  # one for the whole batch
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "global_hidden_states": normal(batch, 1, 24, seed=2),
        "rotary_embedding": (angles.cos(), angles.sin()),
    }


def stable_audio_3(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, side * side),
        "timestep": torch.full((batch,), timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "global_hidden_states": normal(batch, 10, seed=2),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, TEXT),
    }


ROWS = {
    "StableAudioDiTModel": Tiny(
        {
            **HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "num_layers": 5,
            "num_key_value_attention_heads": 1,
            "out_channels": 4,
            "cross_attention_dim": 12,
            "time_proj_dim": 8,
            "global_states_input_dim": 24,
            "cross_attention_input_dim": 12,
        },
        stable_audio,
    ),
    "StableAudio3DiTModel": Tiny(
        {
            "io_channels": 4,
            "embed_dim": 128,
            "depth": 5,
            "num_heads": 2,
            "cond_token_dim": 12,
            "global_cond_dim": 10,
            "local_add_cond_dim": 5,
            "timestep_features_dim": 8,
            "ff_mult": 1.0,
            "num_memory_tokens": 3,
        },
        stable_audio_3,
    ),
}
