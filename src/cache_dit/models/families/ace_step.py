"""ACE-Step: cross-attention blocks over audio; guidance is one batch, a cover's second call is another branch."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

ACE_STEP = register_model(
    ModelRecord(
        name="AceStep",
        transformers=("AceStepTransformer1DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3),),
    )
)
