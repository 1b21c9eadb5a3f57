"""LongCat-Audio: cross-attention blocks; the model adds their common input to what they return."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

LONGCAT_AUDIO = register_model(
    ModelRecord(
        name="LongCatAudioDiT",
        transformers=("LongCatAudioDiTTransformer",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_3),),
        separate_cfg=True,
    )
)
