"""Motif-Video: double-stream, then single-stream blocks, the last of which may be a decoder with streams of its own."""

from typing import Any

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model


def _encoder(transformer: Any) -> slice:
    """The single-stream blocks that go on with the streams of the double-stream blocks."""
    return slice(len(transformer.single_transformer_blocks) - transformer.num_decoder_layers)


def _decoder(transformer: Any) -> slice:
    """The others: they begin with the patches again, and read the encoder's image stream in place of text."""
    return slice(_encoder(transformer).stop, None)


MOTIF_VIDEO = register_model(
    ModelRecord(
        name="MotifVideo",
        transformers=("MotifVideoTransformer3DModel",),
        blocks=(
            Blocks("transformer_blocks", ForwardPattern.Pattern_0),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_0, part=_encoder),
            Blocks("single_transformer_blocks", ForwardPattern.Pattern_0, part=_decoder, chain=1),
        ),
        separate_cfg=True,
    )
)
