"""Wan 2.1, 2.2 and VACE: cross-attention blocks; 2.2 has two transformers, for the noisy and for the clean steps."""

from cache_dit.caching.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

WAN = register_model(
    ModelRecord(
        name="Wan",
        transformers=("WanTransformer3DModel", "WanVACETransformer3DModel"),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_2),),
        separate_cfg=True,
        components=("transformer", "transformer_2"),
    )
)
