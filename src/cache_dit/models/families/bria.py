"""Bria 3.2, FIBO and FIBO 2: the latter two give the blocks text states of their own, layer by layer."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

BRIA = register_model(
    ModelRecord(
        name="Bria",
        transformers=("BriaTransformer2DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_1),
        ),
    )
)

# Before each block the loop replaces half of the text stream's channels; what stays of a block's text is the rest.
BRIA_FIBO = register_model(
    ModelRecord(
        name="BriaFibo",
        transformers=("BriaFiboTransformer2DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_1),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_3),
        ),
        join="eh",
    )
)

# Its `encoder_hidden_states` are no stream: some blocks read them, none returns them.
BRIA_FIBO_2 = register_model(
    ModelRecord(
        name="BriaFibo2",
        transformers=("BriaFibo2Transformer2DModel",),
        blocks=(Blocks("layers", ForwardPattern.Pattern_3, streams=("x", "encoder_hidden_states")),),
        separate_cfg=True,
    )
)
