"""Krea 2: one list of blocks over text and image tokens in one sequence."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

KREA_2 = register_model(
    ModelRecord(
        name="Krea2",
        transformers=("Krea2Transformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
        separate_cfg=True,
    )
)
