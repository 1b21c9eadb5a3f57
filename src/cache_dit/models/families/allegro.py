"""Allegro: cross-attention blocks that return the video stream alone; guidance is one batch."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

ALLEGRO = register_model(
    ModelRecord(
        name="Allegro",
        transformers=("AllegroTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_2),),
    )
)
