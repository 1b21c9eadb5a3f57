"""JoyImage-Edit and its form for several pictures, whose pipeline guides with one batch: double-stream blocks."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

JOY_IMAGE = register_model(
    ModelRecord(
        name="JoyImage",
        transformers=("JoyImageEditTransformer3DModel",),
        blocks=(Blocks("double_blocks", ForwardPattern.Pattern_0),),
        separate_cfg=True,
    )
)

JOY_IMAGE_EDIT_PLUS = register_model(
    ModelRecord(
        name="JoyImageEditPlus",
        transformers=("JoyImageEditPlusTransformer3DModel",),
        blocks=(Blocks("double_blocks", ForwardPattern.Pattern_0),),
    )
)
