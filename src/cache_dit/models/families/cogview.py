"""CogView3+ and CogView4: one list of double-stream blocks; guidance is one batch in the first, two calls since."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

COGVIEW3_PLUS = register_model(
    ModelRecord(
        name="CogView3Plus",
        transformers=("CogView3PlusTransformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
    )
)

COGVIEW4 = register_model(
    ModelRecord(
        name="CogView4",
        transformers=("CogView4Transformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
        separate_cfg=True,
    )
)
