"""HunyuanVideo, Framepack and HunyuanVideo 1.5."""

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal

IMAGE = 3
"""Image tokens."""


def prompt(batch: int) -> Inputs:
    """The text, its last token padding, and the guidance of a distilled model."""
    return {
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).long().expand(batch, TEXT),
        "pooled_projections": normal(batch, 6, seed=2),
        "guidance": torch.full((batch,), 6000.0),
    }


def hunyuan_video(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, 2, 2 * side, 2 * side),
        "timestep": torch.full((batch,), 1000 * timestep),
        **prompt(batch),
    }


def framepack(batch: int, side: int, timestep: float) -> Inputs:
    size = (2 * side, 2 * side)
    return {
        **hunyuan_video(batch, side, timestep),
        "image_embeds": normal(batch, IMAGE, 10, seed=3),
        "indices_latents": torch.arange(8, 10),
        "latents_clean": normal(batch, 4, 2, *size, seed=4),
        "indices_latents_clean": torch.tensor([0, 7]),
        "latents_history_2x": normal(batch, 4, 2, *size, seed=5),
        "indices_latents_history_2x": torch.arange(5, 7),
        "latents_history_4x": normal(batch, 4, 4, *size, seed=6),
        "indices_latents_history_4x": torch.arange(1, 5),
    }


def hunyuan_video_15(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 9, 2, side, side),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).long().expand(batch, TEXT),
        "encoder_hidden_states_2": normal(batch, 4, 6, seed=2),
        "encoder_attention_mask_2": (torch.arange(4) < 3).long().expand(batch, 4),
        "image_embeds": torch.zeros(batch, IMAGE, 10),  # none
    }


_CONFIG = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "num_single_layers": 3,
    "num_refiner_layers": 1,
    "text_embed_dim": 12,
    "pooled_projection_dim": 6,
    "rope_axes_dim": (2, 2, 4),
}

ROWS = {
    "HunyuanVideoTransformer3DModel": Tiny(_CONFIG, hunyuan_video),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        {**_CONFIG, "has_image_proj": True, "image_proj_dim": 10, "has_clean_x_embedder": True}, framepack
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 9,
            "out_channels": 4,
            "num_layers": 5,
            "num_refiner_layers": 1,
            "text_embed_dim": 12,
            "text_embed_2_dim": 6,
            "image_embed_dim": 10,
            "rope_axes_dim": (2, 2, 4),
            "target_size": 16,
        },
        hunyuan_video_15,
    ),
}
