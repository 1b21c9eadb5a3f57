"""LTX-Video, and LTX-2, whose blocks return video and audio; calls that guide by other blocks are other branches."""

from cache_dit.engine.adapters.pattern import HIDDEN, ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model

LTX = register_model(
    ModelRecord(
        name="LTX",
        transformers=("LTXVideoTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_2),),
    )
)

LTX_2 = register_model(
    ModelRecord(
        name="LTX2",
        transformers=("LTX2VideoTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0, streams=(HIDDEN, "audio_hidden_states")),),
        rules=CallRules(
            # With such a mask a video may be made tile by tile: several calls a step, and nothing tells them apart.
            bypasses=lambda call: call.get("video_keyframes_mask") is not None,
            branch_arguments=("isolate_modalities", "spatio_temporal_guidance_blocks"),
        ),
    )
)
