"""Cosmos 3: blocks over a text stream that no timestep reaches, and the stream of all that is generated, unbatched."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

COSMOS_3 = register_model(
    ModelRecord(
        name="Cosmos3",
        transformers=("Cosmos3OmniTransformer",),
        # The blocks take and return text first. It is no H: it is the same at every step, and says nothing of one.
        blocks=(Blocks("layers", ForwardPattern.Pattern_1, streams=("gen_seq", "und_seq")),),
        separate_cfg=True,
    )
)
