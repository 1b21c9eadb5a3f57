"""Cosmos 1, 2 and 2.5: cross-attention blocks; a ControlNet's residual is an argument of the block it is added in."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

COSMOS = register_model(
    ModelRecord(
        name="Cosmos",
        transformers=("CosmosTransformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_2),),
        separate_cfg=True,
    )
)
