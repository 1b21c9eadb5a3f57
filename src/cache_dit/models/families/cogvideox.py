"""CogVideoX 1.0 and 1.5: one list of double-stream blocks; guidance is one batch."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

COGVIDEOX = register_model(
    ModelRecord(
        name="CogVideoX",
        transformers=("CogVideoXTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
    )
)
