"""GLM-Image."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal


def glm_image(batch: int, side: int, timestep: float) -> Inputs:
    tokens = torch.arange(side * side).expand(batch, -1) % 16
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "prior_token_id": tokens,
        "prior_token_drop": torch.zeros_like(tokens, dtype=torch.bool),
        "timestep": torch.full((batch,), 1000 * timestep),
        "target_size": torch.full((batch, 2), 16.0 * side),
        "crop_coords": torch.zeros(batch, 2),
    }


ROWS = {
    "GlmImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "text_embed_dim": 12,
            "time_embed_dim": 16,
            "condition_dim": 4,
            "prior_vq_quantizer_codebook_size": 16,
        },
        glm_image,
    ),
}
