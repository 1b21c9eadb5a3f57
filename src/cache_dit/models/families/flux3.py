"""FLUX.3: joint blocks of two streams; the blocks before them, of each stream by itself, always run."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

FLUX3 = register_model(
    ModelRecord(
        name="Flux3",
        transformers=("Flux3Transformer2DModel",),
        blocks=(Blocks("single_transformer_blocks", ForwardPattern.Pattern_1),),
        separate_cfg=True,
    )
)
