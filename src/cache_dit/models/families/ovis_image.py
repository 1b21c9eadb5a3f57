"""Ovis-Image: double-stream blocks, then single-stream blocks that return both streams."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

OVIS_IMAGE = register_model(
    ModelRecord(
        name="OvisImage",
        transformers=("OvisImageTransformer2DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_1),
        ),
        separate_cfg=True,
    )
)
