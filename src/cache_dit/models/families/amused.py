"""aMUSEd: blocks over masked tokens between two convolutional ones; its calls tell no timestep."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

AMUSED = register_model(
    ModelRecord(
        name="Amused",
        transformers=("UVit2DModel",),
        blocks=(Blocks("transformer_layers", ForwardPattern.Pattern_3),),
    )
)
