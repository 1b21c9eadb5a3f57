"""HunyuanVideo, Framepack and 1.5: double-stream blocks, then (not in 1.5) single-stream blocks that return both."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

HUNYUAN_VIDEO = register_model(
    ModelRecord(
        name="HunyuanVideo",
        transformers=("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_0),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_0),
        ),
        aliases=("HunyuanSkyreelsImageToVideo",),
    )
)

HUNYUAN_VIDEO_15 = register_model(
    ModelRecord(
        name="HunyuanVideo15",
        transformers=("HunyuanVideo15Transformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
        separate_cfg=True,
    )
)
