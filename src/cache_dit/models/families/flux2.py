"""FLUX.2: double-stream blocks, then single-stream blocks over text and image tokens in one sequence."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.presets import SERVING, Preset
from cache_dit.models.record import Blocks, ModelRecord, register_model

FLUX2 = register_model(
    ModelRecord(
        name="Flux2",
        transformers=("Flux2Transformer2DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_3),
        ),
        join="eh",
        # The step that fills the reference tokens' key-value cache must run every block.
        rules=CallRules(computes=lambda call: call.get("kv_cache_mode") == "extract"),
        presets={
            "serving": Preset(
                purpose="about 20 steps and more; the second chain, where the lists are two, has 3 × the threshold",
                source=SERVING,
                # Both lists are one chain here, whose one decision the first double-stream block makes: there is no
                # second threshold then. It counts for flux2_adapter(pipe, merge=False), where each list decides.
                chains=({}, {"residual_diff_threshold": 0.72}),
            )
        },
    )
)
