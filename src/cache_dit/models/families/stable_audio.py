"""Stable Audio 1 and 3: cross-attention blocks that return the audio stream alone."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

STABLE_AUDIO = register_model(
    ModelRecord(
        name="StableAudio",
        transformers=(
            "StableAudioDiTModel",
            "StableAudio3DiTModel",
        ),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
    )
)
