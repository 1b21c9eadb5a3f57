"""PRX."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def prx(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timestep": torch.full((batch,), timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "attention_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, TEXT),
    }


ROWS = {
    "PRXTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "context_in_dim": 12,
            "hidden_size": 16,
            "num_heads": 2,
            "depth": 5,
            "axes_dim": [4, 4],
        },
        prx,
    ),
}
