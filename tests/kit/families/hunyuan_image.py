"""HunyuanImage."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def hunyuan_image(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, side, side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": torch.arange(TEXT).expand(batch, -1) < TEXT - 1,
        "encoder_hidden_states_2": normal(batch, 3, 6, seed=2),
        "encoder_attention_mask_2": torch.arange(3).expand(batch, -1) < 2,
    }


ROWS = {
    "HunyuanImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_single_layers": 3,
            "num_refiner_layers": 1,
            "text_embed_dim": 12,
            "text_embed_2_dim": 6,
            "rope_axes_dim": (4, 4),
        },
        hunyuan_image,
    ),
}
