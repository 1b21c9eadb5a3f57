"""Lumina-Next, and Lumina 2, whose pipeline guides with two calls and whose refiners run before the list."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

LUMINA = register_model(
    ModelRecord(
        name="Lumina",
        transformers=("LuminaNextDiT2DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3),),
    )
)

LUMINA_2 = register_model(
    ModelRecord(
        name="Lumina2",
        transformers=("Lumina2Transformer2DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3),),
        separate_cfg=True,
    )
)
