"""HunyuanDiT: each block of the second half also reads what its counterpart in the first half returned."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

HUNYUAN_DIT = register_model(
    ModelRecord(
        name="HunyuanDiT",
        transformers=("HunyuanDiT2DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_3),),
        long_skip=True,
        aliases=("HunyuanDiTPAG",),
    )
)
