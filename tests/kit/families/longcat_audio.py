"""LongCat-Audio, the end of the audio padded."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def longcat_audio(batch: int, side: int, timestep: float) -> Inputs:
    length = side * side
    return {
        "hidden_states": normal(batch, length, 4),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, TEXT),
        "timestep": torch.full((batch,), timestep),
        "attention_mask": (torch.arange(length) < length - 2).expand(batch, length),
        "latent_cond": normal(batch, length, 4, seed=2),
    }


ROWS = {
    "LongCatAudioDiTTransformer": Tiny(
        {"dit_dim": 16, "dit_depth": 5, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 4, "ff_mult": 1.0},
        longcat_audio,
    ),
}
