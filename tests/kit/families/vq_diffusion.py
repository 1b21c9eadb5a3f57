"""VQ-Diffusion, over the tokens of a picture of 4 × 4."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal

TOKENS = 20


def vq_diffusion(batch: int, side: int, timestep: float) -> Inputs:
    generator = torch.Generator().manual_seed(side)
    return {
        "hidden_states": torch.randint(TOKENS, (batch, 16), generator=generator),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.tensor(round(99 * timestep)),
    }


ROWS = {
    "Transformer2DModel": Tiny(
        {
            **HEADS,
            "num_layers": 5,
            "cross_attention_dim": 12,
            "attention_bias": True,
            "sample_size": 4,
            "num_vector_embeds": TOKENS + 1,
            "activation_fn": "geglu-approximate",
            "num_embeds_ada_norm": 100,
            "norm_type": "ada_norm",
        },
        vq_diffusion,
    ),
}
