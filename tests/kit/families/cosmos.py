"""Cosmos."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def cosmos(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), timestep),
        "fps": 30,
    }


ROWS = {
    "CosmosTransformer3DModel": Tiny(
        {
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "mlp_ratio": 1.0,
            "text_embed_dim": 12,
            "adaln_lora_dim": 4,
            "max_size": (4, 32, 32),
            "concat_padding_mask": False,  # checkpoints have one channel more before the blocks; torchvision resizes it
        },
        cosmos,
    ),
}
