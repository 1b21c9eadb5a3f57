"""FLUX.1: double-stream blocks, then single-stream blocks that read and return both streams."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

FLUX = register_model(
    ModelRecord(
        name="Flux",
        transformers=("FluxTransformer2DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_1),
        ),
        split_variable="CACHE_DIT_FLUX_ENABLE_DUMMY_BLOCKS",
        aliases=("VisualCloze",),
    )
)
