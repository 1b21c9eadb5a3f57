"""Sana, Sana-Video, Sana-WM after a clean frame, and its refiner, which reads the keys and values of such a one."""

import importlib

import torch

from tests.kit.row import HEADS, TEXT, Inputs, Tiny, normal

FRAMES, LAYERS = 2, 5


def sana(batch: int, side: int, timestep: float) -> Inputs:
    return {
        "hidden_states": normal(batch, 4, side, side),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch,), 1000 * timestep),
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).long().expand(batch, TEXT),
    }


def sana_video(batch: int, side: int, timestep: float) -> Inputs:
    return {**sana(batch, side, timestep), "hidden_states": normal(batch, 4, FRAMES, 2 * side, 2 * side)}


def sana_wm(batch: int, side: int, timestep: float) -> Inputs:
    times = torch.tensor([0.0, 1000 * timestep]).expand(batch, 1, FRAMES)
    camera = torch.cat([torch.eye(4).flatten(), torch.tensor([float(side), float(side), side / 2, side / 2])])
    given = sana(batch, side, timestep)
    return {
        "hidden_states": normal(batch, 4, FRAMES, side, side),
        "timestep": times,
        "encoder_hidden_states": given["encoder_hidden_states"][:, None],
        "mask": given["encoder_attention_mask"],
        "camera_conditions": camera.expand(batch, FRAMES, -1),
        "chunk_plucker": normal(batch, 6, FRAMES, side, side, seed=3),
    }


def refiner(batch: int, side: int, timestep: float) -> Inputs:
    module = importlib.import_module("diffusers.models.transformers.transformer_sana_wm_refiner")
    tokens = side * side
    cache = module.SanaWMRefinerKVCache(LAYERS)
    for index, layer in enumerate(cache.layer_caches):
        layer.store_sink(*(normal(batch, tokens, 16, seed=3 + 4 * index + which) for which in range(2)))
        layer.store_history(*(normal(batch, tokens, 16, seed=5 + 4 * index + which) for which in range(2)))
    rotary, cache.sink_pe = (
        tuple(part(normal(batch, frames * tokens, 16, seed=frames)) for part in (torch.cos, torch.sin))
        for frames in (FRAMES, 1)
    )
    return {
        "hidden_states": normal(batch, FRAMES * tokens, 4),
        "encoder_hidden_states": normal(batch, TEXT, 12, seed=1),
        "timestep": torch.full((batch, FRAMES * tokens), 1000 * timestep),
        "video_rotary_emb": rotary,
        "encoder_attention_mask": (torch.arange(TEXT) < TEXT - 1).long().expand(batch, TEXT),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
    }


_CONFIG = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": LAYERS,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "sample_size": 4,
}

ROWS = {
    "SanaTransformer2DModel": Tiny(_CONFIG, sana),
    "SanaVideoTransformer3DModel": Tiny({**_CONFIG, "rope_max_seq_len": 16}, sana_video),
    "SanaWMTransformer3DModel": Tiny(
        {
            "in_channels": 4,
            "num_layers": LAYERS,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "linear_head_dim": 16,
            "chunk_plucker_channels": 6,
            "caption_channels": 12,
            "mlp_ratio": 1.0,
        },
        sana_wm,
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 4,
            "audio_cross_attention_dim": 8,
            "num_layers": LAYERS,
            "caption_channels": 12,
            "rope_double_precision": False,
        },
        refiner,
    ),
}
