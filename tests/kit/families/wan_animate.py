"""Wan-Animate, the face's attention after blocks 0, 2 and 4 of 6, and Wan-Animate 2."""

import importlib
from typing import Any

import torch
from torch.nn.attention import flex_attention

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal

FACE = 16
"""The side of a picture of the face."""


def wan_animate(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 12, 3, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, 512, 12, seed=1),  # image tokens are those before the last 512
        "encoder_hidden_states_image": normal(batch, 3, 10, seed=2),
        "pose_hidden_states": normal(batch, 4, 2, 2 * side, 2 * side, seed=3),
        "face_pixel_values": normal(batch, 3, 5, FACE, FACE, seed=4),
    }


# The second's attention, as it is: else every call compiles a wrapper around it, and warns.
flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True


def uncompiled_mask(*args: Any, _compile: bool, **options: Any) -> Any:
    """The mask of its attention: compiling what makes it takes half a minute."""
    return flex_attention.create_block_mask(*args, **options)


LAYERS, REFERENCE, FRAMES = 11, 1, 2
"""Blocks there may be; frames of the reference video, and of the other, which begins with a picture."""


def wan_animate_2(batch: int, side: int, timestep: float) -> Inputs:
    module = importlib.import_module("diffusers.models.transformers.transformer_wan_animate_2")
    module.create_block_mask = uncompiled_mask
    cache = module.WanAnimate2KVCache(LAYERS)
    for layer, one in enumerate(cache.layer_caches):
        one.store(*(normal(batch, REFERENCE * side * side, 2, 8, seed=2 * layer + which) for which in (5, 6)))
    return {
        "hidden_states": list(normal(batch, 4, FRAMES, 2 * side, 2 * side)),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": list(normal(batch, TEXT, 12, seed=1)),
        "condition_latents": list(normal(batch, 8, FRAMES, 2 * side, 2 * side, seed=2)),
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": FRAMES * side * side,
        "reference_grid_sizes": torch.tensor([[REFERENCE, side, side]] * batch),
        "origin_len": 4 * (FRAMES - 2) + 1,
        "origin_area": [16 * side, 16 * side],
    }


ROWS = {
    "WanAnimateTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 12,
            "latent_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 16,
            "num_layers": 6,
            "image_dim": 10,
            "added_kv_proj_dim": 16,
            "rope_max_seq_len": 32,
            "motion_encoder_channel_sizes": {"4": 4, "8": 4, "16": 4},
            "motion_encoder_size": FACE,
            "motion_style_dim": 8,
            "motion_dim": 3,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 8,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        wan_animate,
    ),
    "WanAnimate2Transformer3DModel": Tiny(
        {
            "text_len": TEXT,
            "in_dim": 12,
            "dim": 16,
            "ffn_dim": 16,
            "freq_dim": 16,
            "text_dim": 12,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 5,
            "use_img_emb": False,
        },
        wan_animate_2,
    ),
}
