"""Nucleus-Image: blocks over the image alone, most with experts; all read one text state that none returns."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

NUCLEUS_MOE_IMAGE = register_model(
    ModelRecord(
        name="NucleusMoEImage",
        transformers=("NucleusMoEImageTransformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
        separate_cfg=True,
    )
)
