"""PRX: cross-attention blocks that return the image stream alone."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

PRX = register_model(
    ModelRecord(
        name="PRX",
        transformers=("PRXTransformer2DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_3),),
    )
)
