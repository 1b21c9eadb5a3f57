"""Mochi: one list of double-stream blocks, the last of which leaves the text as it is; timesteps rise."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

MOCHI = register_model(
    ModelRecord(
        name="Mochi",
        transformers=("MochiTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
    )
)
