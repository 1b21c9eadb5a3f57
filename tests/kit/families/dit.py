"""DiT."""

import torch

from tests.kit.row import HEADS, Inputs, Tiny, normal


def dit(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timestep": torch.full((batch,), round(999 * timestep)),
        "class_labels": torch.arange(batch) + 3,
    }


ROWS = {
    "DiTTransformer2DModel": Tiny(
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 5, "sample_size": 8, "num_embeds_ada_norm": 1000},
        dit,
    ),
}
