"""JoyImage-Edit with a picture to edit, and its form for several, in patches of unlike pictures."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def edit(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 2, 4, 1, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
    }


def edit_plus(batch: int, side: int, timestep: float) -> Inputs:
    shapes = [(1, side, side), (1, 1, 2)]
    return {
        "hidden_states": normal(batch, side * side + 3, 4, 1, 2, 2),  # the last is padding
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_hidden_states_mask": (torch.arange(TEXT) < TEXT - 1).expand(batch, -1).float(),
        "shape_list": [shapes] * batch,
    }


_CONFIG = {
    "in_channels": 4,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "text_dim": 12,
    "num_layers": 5,
    "rope_dim_list": [2, 2, 4],
}

ROWS = {
    "JoyImageEditTransformer3DModel": Tiny(_CONFIG, edit),
    "JoyImageEditPlusTransformer3DModel": Tiny(_CONFIG, edit_plus),
}
