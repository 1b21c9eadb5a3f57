"""Qwen-Image: one list of double-stream blocks."""

from typing import Any

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.presets import SERVING, Preset
from cache_dit.models.record import Blocks, ModelRecord, register_model


def _lightning(steps: int, **options: Any) -> Preset:
    """Distilled to a few steps and without guidance: most blocks compute, and a step in between is cached."""
    common = {"Fn_compute_blocks": 16, "Bn_compute_blocks": 16, "max_continuous_cached_steps": 1}
    return Preset(
        purpose=f"Qwen-Image-Lightning, and its editing forms, in {steps} steps",
        source=SERVING,
        options={**common, "enable_separate_cfg": False, **options},
    )


QWEN_IMAGE = register_model(
    ModelRecord(
        name="QwenImage",
        transformers=("QwenImageTransformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_1),),
        separate_cfg=True,
        presets={
            "lightning_4": _lightning(4, max_warmup_steps=2, max_cached_steps=1, residual_diff_threshold=0.8),
            "lightning_8": _lightning(8, max_warmup_steps=4, max_cached_steps=2, residual_diff_threshold=0.5),
        },
    )
)
