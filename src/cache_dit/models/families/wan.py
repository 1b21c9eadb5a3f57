"""Wan 2.1, 2.2 and VACE: cross-attention blocks; 2.2 has two transformers, for the noisy and for the clean steps."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.presets import SERVING, Preset
from cache_dit.models.record import Blocks, ModelRecord, register_model

WAN = register_model(
    ModelRecord(
        name="Wan",
        transformers=("WanTransformer3DModel", "WanVACETransformer3DModel"),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_2),),
        separate_cfg=True,
        components=("transformer", "transformer_2"),
        aliases=("LucyEdit",),
        presets={
            "serving": Preset(
                purpose="about 20 steps and more; for both transformers of Wan 2.2, or one of 2.1",
                source=SERVING,
                chains=(
                    {"max_warmup_steps": 4, "max_cached_steps": 8},
                    {"max_warmup_steps": 2, "max_cached_steps": 20},
                ),
            )
        },
    )
)
