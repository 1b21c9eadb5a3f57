"""AnyFlow, and its causal form in the middle of a video: one chunk is done, its keys and values are kept."""

import torch
from torch.nn.attention import flex_attention

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal

FRAMES, LAYERS = 2, 5

# The causal form's attention, as it is: else every call compiles a wrapper around it, and warns.
flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True


def anyflow(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, FRAMES, 4, 2 * side, 2 * side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch, FRAMES), 1000 * timestep),
        "r_timestep": torch.full((batch, FRAMES), 800 * timestep),
    }


def far(batch: int, side: int, timestep: float) -> Inputs:
    tokens = FRAMES * side * side
    return {
        **anyflow(batch, side, timestep),
        "chunk_partition": [1, FRAMES],
        "kv_cache": {
            layer: {
                "full_cache": normal(2, batch, 2, 2 * tokens, 8, seed=2 + layer),
                "compressed_cache": normal(2, batch, 2, tokens, 8, seed=8 + layer),
            }
            for layer in range(LAYERS)
        },
        "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False},
    }


_CONFIG = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": LAYERS,
    "rope_max_seq_len": 32,
}

ROWS = {
    "AnyFlowTransformer3DModel": Tiny(_CONFIG, anyflow),
    "AnyFlowFARTransformer3DModel": Tiny({**_CONFIG, "chunk_partition": (1, FRAMES)}, far),
}
