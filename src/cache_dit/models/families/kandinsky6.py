"""Kandinsky 6: blocks over video and, where there is any, audio; its super-resolution has video blocks alone."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

KANDINSKY_6 = register_model(
    ModelRecord(
        name="Kandinsky6",
        transformers=("Kandinsky6Transformer3DModel",),
        blocks=(Blocks("visual_transformer_blocks", ForwardPattern.Pattern_0, streams=("vis", "aud")),),
        separate_cfg=True,
    )
)

KANDINSKY_6_SR = register_model(
    ModelRecord(
        name="Kandinsky6SR",
        transformers=("Kandinsky6SRTransformer3DModel",),
        blocks=(Blocks("visual_transformer_blocks", ForwardPattern.Pattern_3),),
    )
)
