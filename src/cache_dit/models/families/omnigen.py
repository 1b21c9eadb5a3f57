"""OmniGen: one list over text, pictures, the timestep's token and the latent in one sequence."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

OMNIGEN = register_model(
    ModelRecord(
        name="OmniGen",
        transformers=("OmniGenTransformer2DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3),),
    )
)
