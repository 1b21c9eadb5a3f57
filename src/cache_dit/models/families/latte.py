"""Latte: blocks over the tokens of a frame and blocks over the frames of a token take turns."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model

LATTE = register_model(
    ModelRecord(
        name="Latte",
        transformers=("LatteTransformer3DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_3),
            Blocks("temporal_transformer_blocks", ForwardPattern.Pattern_3),
        ),
        interleave=True,
        rules=CallRules(branch_arguments=("enable_temporal_attentions",)),
    )
)
