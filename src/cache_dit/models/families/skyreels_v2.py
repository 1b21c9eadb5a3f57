"""SkyReels-V2: Wan's blocks; with diffusion forcing each frame has a timestep of its own."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

SKYREELS_V2 = register_model(
    ModelRecord(
        name="SkyReelsV2",
        transformers=("SkyReelsV2Transformer3DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_3),),
        separate_cfg=True,
    )
)
