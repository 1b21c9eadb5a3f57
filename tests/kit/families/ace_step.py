"""ACE-Step: two seconds of context beside the audio."""

import torch

from tests.kit.row import TEXT, Inputs, Tiny, normal


def ace_step(batch: int, side: int, timestep: float) -> Inputs:
    length = 2 * side * side + 1  # padded to whole patches
    times = torch.full((batch,), timestep)
    return {
        "hidden_states": normal(batch, length, 4),
        "timestep": times,
        "timestep_r": times,
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "context_latents": normal(batch, length, 6, seed=2),
    }


ROWS = {
    "AceStepTransformer1DModel": Tiny(
        {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 5,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "in_channels": 10,
            "audio_acoustic_hidden_dim": 4,
            "sliding_window": 4,
            "encoder_hidden_size": 12,
        },
        ace_step,
    ),
}
