"""Kandinsky 5: blocks over ``visual_embed``, which stays on its grid of frames, rows and columns; text has its own."""

from cache_dit.engine.adapters.pattern import ENCODER, ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

KANDINSKY_5 = register_model(
    ModelRecord(
        name="Kandinsky5",
        transformers=("Kandinsky5Transformer3DModel",),
        blocks=(Blocks("visual_transformer_blocks", ForwardPattern.Pattern_3, streams=("visual_embed", ENCODER)),),
        separate_cfg=True,
    )
)
