"""Helios, with a history of frames at three resolutions."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal

#: Frames of the long, middle and short history, and of the new chunk.
LONG, MIDDLE, SHORT, NEW = 4, 2, 2, 2


def helios(batch: int, side: int, timestep: float) -> Inputs:
    long, middle, short, new = torch.arange(LONG + MIDDLE + SHORT + NEW)[None].split([LONG, MIDDLE, SHORT, NEW], dim=1)
    size = (2 * side, 2 * side)
    return {
        "hidden_states": normal(batch, 4, NEW, *size),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
        "indices_hidden_states": new,
        "indices_latents_history_short": short,
        "indices_latents_history_mid": middle,
        "indices_latents_history_long": long,
        "latents_history_short": normal(batch, 4, SHORT, *size, seed=2),
        "latents_history_mid": normal(batch, 4, MIDDLE, *size, seed=3),
        "latents_history_long": normal(batch, 4, LONG, *size, seed=4),
    }


ROWS = {
    "HeliosTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 16,
            "num_layers": 5,
            "rope_dim": (4, 2, 2),
        },
        helios,
    ),
}
