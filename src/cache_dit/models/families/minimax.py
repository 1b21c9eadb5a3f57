"""MiniMax H3, blocks over video, audio and text in one sequence, and MiniMax Music 3, whose timesteps rise."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.models.record import Blocks, ModelRecord, register_model

MINIMAX_H3 = register_model(
    ModelRecord(
        name="MiniMaxH3",
        transformers=("MiniMaxH3Transformer3DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
        # One for each kind of row: those that the others are to fit are clean, which is 1, from the first step on.
        rules=CallRules(timestep=lambda call: call["timestep"].min()),
    )
)

MINIMAX_MUSIC_3 = register_model(
    ModelRecord(
        name="MiniMaxMusic3",
        transformers=("MiniMaxMusic3Transformer1DModel",),
        blocks=(Blocks("transformer_blocks", ForwardPattern.Pattern_3),),
        separate_cfg=True,
    )
)
