"""Spectrogram diffusion: a spectrogram of 16 or 9 frames, after notes and the music before."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal

FRAMES = 16


def spectrogram_diffusion(batch: int, side: int, timestep: float) -> Inputs:
    known = (torch.arange(TEXT) < TEXT - 1).expand(batch, TEXT)
    return {
        "encodings_and_masks": [(normal(batch, TEXT, 12, seed=seed), known) for seed in (1, 2)],
        "decoder_input_tokens": normal(batch, side * side, 8),
        "decoder_noise_time": torch.full((batch,), timestep),
    }


ROWS = {
    "T5FilmDecoder": Tiny(
        {
            "input_dims": 8,
            "targets_length": FRAMES,
            "d_model": 12,
            "num_layers": 5,
            "num_heads": 2,
            "d_kv": 6,
            "d_ff": 16,
        },
        spectrogram_diffusion,
    ),
}
