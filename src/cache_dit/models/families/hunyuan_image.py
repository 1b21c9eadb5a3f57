"""HunyuanImage 2.1 and its refiner: double-stream blocks, then single-stream blocks that return both streams."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

HUNYUAN_IMAGE = register_model(
    ModelRecord(
        name="HunyuanImage",
        transformers=("HunyuanImageTransformer2DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_0),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_0),
        ),
        separate_cfg=True,
    )
)
