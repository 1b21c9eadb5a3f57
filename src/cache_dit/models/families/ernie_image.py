"""ERNIE-Image: one list over image and text tokens in one sequence ``x``, whose first dimension is the tokens."""

from cache_dit.engine.adapters.pattern import ENCODER, ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

ERNIE_IMAGE = register_model(
    ModelRecord(
        name="ErnieImage",
        transformers=("ErnieImageTransformer2DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3, streams=("x", ENCODER)),),
    )
)
