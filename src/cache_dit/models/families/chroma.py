"""Chroma: like FLUX.1, but the single-stream blocks read text and image tokens in one sequence."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

CHROMA = register_model(
    ModelRecord(
        name="Chroma",
        transformers=("ChromaTransformer2DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_3),
        ),
        join="eh",
        separate_cfg=True,
    )
)
