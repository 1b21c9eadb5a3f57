"""AuraFlow: double-stream blocks, then single-stream blocks over text and image tokens in one sequence."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

AURA_FLOW = register_model(
    ModelRecord(
        name="AuraFlow",
        transformers=("AuraFlowTransformer2DModel",),
        blocks=(
            Blocks("joint_transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_3),
        ),
        join="eh",
    )
)
