"""Qwen-Image: one list of double-stream blocks."""

from cache_dit.caching.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

QWEN_IMAGE = register_model(
    ModelRecord(
        name="QwenImage",
        transformers=("QwenImageTransformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_1),),
        separate_cfg=True,
    )
)
