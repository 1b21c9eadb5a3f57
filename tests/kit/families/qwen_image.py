"""Qwen-Image."""

import torch
from packaging.version import Version

from tests.kit.row import DIFFUSERS, HEADS, TEXT, Inputs, Tiny, normal


def qwen_image(batch: int, side: int, timestep: float) -> Inputs:
    lengths = {} if Version("0.37.0") <= DIFFUSERS else {"txt_seq_lens": [TEXT] * batch}  # told by the mask since then
    return {
        **lengths,
        "hidden_states": normal(batch, side * side, 8),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_hidden_states_mask": torch.ones(batch, TEXT, dtype=torch.int64),
        "timestep": torch.full((batch,), timestep),
        "img_shapes": [[(1, side, side)]] * batch,
    }


ROWS = {
    "QwenImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 8,
            "out_channels": 2,
            "num_layers": 5,
            "joint_attention_dim": 12,
            "axes_dims_rope": (2, 2, 4),
        },
        qwen_image,
    ),
}
