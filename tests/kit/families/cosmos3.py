"""Cosmos 3, whose sequence has no batch: text, then the tokens of all videos."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal

FRAMES = 2


def cosmos3(batch: int, side: int, timestep: float) -> Inputs:
    """``batch`` videos in one sequence; of the first one, the first frame is given."""
    tokens = batch * FRAMES * side * side
    given = side * side
    return {
        "input_ids": torch.arange(TEXT),
        "text_indexes": torch.arange(TEXT),
        "position_ids": torch.arange(TEXT + tokens).expand(3, -1),
        "und_len": TEXT,
        "sequence_length": TEXT + tokens,
        "vision_tokens": list(normal(batch, 1, 4, FRAMES, 2 * side, 2 * side)),
        "vision_token_shapes": [(FRAMES, side, side)] * batch,
        "vision_sequence_indexes": TEXT + torch.arange(tokens),
        "vision_mse_loss_indexes": TEXT + torch.arange(given, tokens),
        "vision_timesteps": torch.full((tokens - given,), 1000 * timestep),
        "vision_noisy_frame_indexes": [torch.arange(int(video == 0), FRAMES) for video in range(batch)],
    }


ROWS = {
    "Cosmos3OmniTransformer": Tiny(
        {
            "hidden_size": 16,
            "head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "latent_channel": 4,
            "patch_latent_dim": 16,
            "num_hidden_layers": 5,
            "vocab_size": 16,
            "rope_axes_dim": (2, 1, 1),
        },
        cosmos3,
    ),
}
