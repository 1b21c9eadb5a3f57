"""Qwen-Image 2.1: one list over text and image tokens in one sequence; later steps may run the target's alone."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model

QWEN_IMAGE_21 = register_model(
    ModelRecord(
        name="QwenImage21",
        transformers=("QwenImage21Transformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
        separate_cfg=True,
        # The step that fills the prefix's key-value cache must run every block.
        rules=CallRules(computes=lambda call: call.get("kv_cache_mode") == "extract"),
    )
)
