"""GLM-Image: double-stream blocks, which keep the keys and values of pictures to edit in calls that are no step."""

from collections.abc import Mapping
from typing import Any

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model


def _writes_keys(call: Mapping[str, Any]) -> bool:
    """Whether a call fills the key-value caches: all its blocks must run."""
    caches = getattr(call.get("kv_caches"), "caches", ())
    return any(cache.mode == "write" for cache in caches)


GLM_IMAGE = register_model(
    ModelRecord(
        name="GlmImage",
        transformers=("GlmImageTransformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_0),),
        separate_cfg=True,
        rules=CallRules(bypasses=_writes_keys),
    )
)
