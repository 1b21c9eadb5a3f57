"""HiDream: the loop adds Llama's tokens before every block and cuts them off after it; image tokens come first."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

HIDREAM = register_model(
    ModelRecord(
        name="HiDream",
        transformers=("HiDreamImageTransformer2DModel",),
        blocks=(
            Blocks("double_stream_blocks", ForwardPattern.Pattern_0),
            Blocks("single_stream_blocks", ForwardPattern.Pattern_3),
        ),
        join="he",
    )
)
