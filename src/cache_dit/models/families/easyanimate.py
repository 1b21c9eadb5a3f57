"""EasyAnimate: one list of double-stream blocks, the last of which may share weights between streams."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

EASYANIMATE = register_model(
    ModelRecord(
        name="EasyAnimate",
        transformers=("EasyAnimateTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
    )
)
