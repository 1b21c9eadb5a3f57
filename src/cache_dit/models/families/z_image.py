"""Z-Image: one list over image and text tokens in one sequence, which blocks call ``x``; refiners run before it."""

from cache_dit.config.masks import steps_mask
from cache_dit.engine.adapters.pattern import ENCODER, ForwardPattern
from cache_dit.models.presets import SERVING, Preset
from cache_dit.models.record import Blocks, ModelRecord, register_model

Z_IMAGE = register_model(
    ModelRecord(
        name="ZImage",
        transformers=("ZImageTransformer2DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3, streams=("x", ENCODER)),),
        presets={
            "turbo": Preset(
                purpose="Z-Image-Turbo in 9 steps",
                source=SERVING,
                options={"max_warmup_steps": 4, "steps_computation_mask": steps_mask([5, 1, 1], [1, 1])},
            )
        },
    )
)
