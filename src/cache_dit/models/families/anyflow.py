"""AnyFlow: Wan's blocks; the causal form also writes keys and values of a finished chunk, in calls that are no step."""

from collections.abc import Mapping
from typing import Any

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model


def _writes_keys(call: Mapping[str, Any]) -> bool:
    """Whether a call fills the key-value cache: it gives no sample, and all its blocks must run."""
    return call.get("kv_cache") is not None and bool((call.get("kv_cache_flag") or {}).get("is_cache_step"))


ANYFLOW = register_model(
    ModelRecord(
        name="AnyFlow",
        transformers=("AnyFlowTransformer3DModel", "AnyFlowFARTransformer3DModel"),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_2),),
        rules=CallRules(bypasses=_writes_keys),
    )
)
