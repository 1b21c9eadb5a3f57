"""Stable Diffusion 3 and 3.5: double-stream blocks, the last of which returns no text stream."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model

STABLE_DIFFUSION_3 = register_model(
    ModelRecord(
        name="StableDiffusion3",
        transformers=("SD3Transformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_1),),
        rules=CallRules(branch_arguments=("skip_layers",)),
    )
)
