"""Ideogram 4: two transformers, for the prompt and for none, each called once per step at a rising timestep."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

IDEOGRAM_4 = register_model(
    ModelRecord(
        name="Ideogram4",
        transformers=("Ideogram4Transformer2DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3),),
        components=("transformer", "unconditional_transformer"),
    )
)
