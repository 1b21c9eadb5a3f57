"""FLUX.2: double-stream blocks, then single-stream blocks over text and image tokens in one sequence."""

from cache_dit.caching.pattern import CallRules, ForwardPattern
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
    )
)
