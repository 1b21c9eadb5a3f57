"""VQ-Diffusion: blocks over the tokens of an image; other uses of this class stand inside U-Nets."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

VQ_DIFFUSION = register_model(
    ModelRecord(
        name="VQDiffusion",
        transformers=("Transformer2DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
    )
)
