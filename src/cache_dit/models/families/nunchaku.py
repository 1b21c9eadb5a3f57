"""FLUX.1 as nunchaku quantizes it: its single-stream blocks take text and image tokens in one sequence.

What it makes of Qwen-Image, Z-Image and Sana derives from the classes of diffusers, and goes by their records.
"""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

NUNCHAKU_FLUX = register_model(
    ModelRecord(
        name="Flux",
        transformers=("NunchakuFluxTransformer2DModelV2", "NunchakuFluxTransformer2dModel"),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_3),
        ),
        join="eh",
        package="nunchaku",
    )
)
