"""Wan-Animate: Wan's blocks with attention to a face between them; the second reads a reference's keys and values."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model

WAN_ANIMATE = register_model(
    ModelRecord(
        name="WanAnimate",
        transformers=("WanAnimateTransformer3DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_2),),
        idle={"face_adapter": "hidden_states"},
        separate_cfg=True,
    )
)

WAN_ANIMATE_2 = register_model(
    ModelRecord(
        name="WanAnimate2",
        transformers=("WanAnimate2Transformer3DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_3),),
        rules=CallRules(
            # Before the loop the reference goes through all blocks, which keep its keys and values.
            bypasses=lambda call: call.get("kv_cache_mode") == "extract",
            # The unconditional call leaves out a block.
            branch_arguments=("is_uncondtion",),
        ),
    )
)
