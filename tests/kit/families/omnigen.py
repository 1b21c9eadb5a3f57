"""OmniGen with a picture of four tokens in each prompt."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def omnigen(batch: int, side: int, timestep: float) -> Inputs:
    length = TEXT + 4 + 1 + side * side  # text, picture, timestep, latent
    return {
        "hidden_states": normal(batch, 4, 2 * side, 2 * side),
        "timestep": torch.full((batch,), timestep),
        "input_ids": torch.arange(TEXT + 4).expand(batch, -1),
        "input_img_latents": list(normal(batch, 1, 4, 4, 4, seed=1)),
        "input_image_sizes": {sample: [[TEXT, TEXT + 4]] for sample in range(batch)},
        "attention_mask": torch.ones(length, length).tril(length - TEXT).expand(batch, -1, -1),
        "position_ids": torch.arange(length).expand(batch, -1),
    }


ROWS = {
    "OmniGenTransformer2DModel": Tiny(
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
            "num_layers": 5,
            "pad_token_id": 0,
            "vocab_size": 16,
            "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
            "pos_embed_max_size": 8,
            "time_step_dim": 16,
        },
        omnigen,
    ),
}
