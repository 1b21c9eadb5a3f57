"""Spectrogram diffusion: a decoder's blocks, one run of steps for each stretch of music."""

from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.models.record import Blocks, ModelRecord, register_model

SPECTROGRAM_DIFFUSION = register_model(
    ModelRecord(
        name="SpectrogramDiffusion",
        transformers=("T5FilmDecoder",),
        blocks=(Blocks("decoders", ForwardPattern.Pattern_3),),
        components=("decoder",),
    )
)
