"""DiT: blocks over the image, told its class; the first one's embedding is used after them too."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

DIT = register_model(
    ModelRecord(
        name="DiT",
        transformers=("DiTTransformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
    )
)
