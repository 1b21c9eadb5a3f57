"""ChronoEdit: Wan's blocks; after its temporal reasoning steps only two frames go on, and the cache begins anew."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

CHRONOEDIT = register_model(
    ModelRecord(
        name="ChronoEdit",
        transformers=("ChronoEditTransformer3DModel",),
        blocks=(Blocks("blocks", ForwardPattern.Pattern_2),),
        separate_cfg=True,
    )
)
