"""AuraFlow."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def aura_flow(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), timestep),
    }


ROWS = {
    "AuraFlowTransformer2DModel": Tiny(
        {
            **HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "num_mmdit_layers": 3,
            "num_single_dit_layers": 3,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        aura_flow,
    ),
}
