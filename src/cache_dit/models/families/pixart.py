"""PixArt-alpha and -sigma: cross-attention blocks that return the image stream alone."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

PIXART = register_model(
    ModelRecord(
        name="PixArt",
        transformers=("PixArtTransformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
    )
)
