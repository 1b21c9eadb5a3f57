"""Sana for images and videos, and Sana-WM, whose refiner keeps keys and values in calls that are no step."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model

SANA = register_model(
    ModelRecord(
        name="Sana",
        transformers=(
            "SanaTransformer2DModel",
            "SanaVideoTransformer3DModel",
        ),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
    )
)

SANA_WM = register_model(
    ModelRecord(
        name="SanaWM",
        transformers=("SanaWMTransformer3DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_3, streams=("x", "y")),),
    )
)

SANA_WM_REFINER = register_model(
    ModelRecord(
        name="SanaWMLTX2Refiner",
        transformers=("SanaWMLTX2RefinerTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
        rules=CallRules(bypasses=lambda call: call.get("kv_cache_mode") not in (None, "inject")),
    )
)
