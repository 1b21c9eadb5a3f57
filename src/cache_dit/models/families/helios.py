"""Helios: Wan's blocks over the frames so far and the new ones; every chunk and pyramid stage is a loop of its own."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

HELIOS = register_model(
    ModelRecord(
        name="Helios",
        transformers=("HeliosTransformer3DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_2),),
        separate_cfg=True,
    )
)
