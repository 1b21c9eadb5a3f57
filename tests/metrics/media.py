"""Small pictures and videos for tests: random, changed by a known amount, and kept without loss."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from cache_dit.metrics.pictures import Pixels


def picture(seed: int = 0, height: int = 24, width: int = 32) -> Pixels:
    """Random uint8 pixels within 20 … 235, so that a small change is not clipped."""
    return np.random.default_rng(seed).integers(20, 236, (height, width, 3), dtype=np.uint8)


def shifted(pixels: Pixels, offset: int) -> Pixels:
    """Every pixel moved by `offset`: the mean squared error is its square."""
    return (pixels.astype(np.int16) + offset).astype(np.uint8)


def save(path: Path, pixels: Pixels) -> Path:
    """Write a picture's file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_folder(folder: Path, pictures: Iterable[Pixels]) -> Path:
    """Write pictures as 0.png, 1.png, … into a folder."""
    for number, pixels in enumerate(pictures):
        save(folder / f"{number}.png", pixels)
    return folder


def save_video(path: Path, frames: Iterable[Pixels], *, codec: str = "png", pixel_format: str = "rgb24") -> Path:
    """Write a video, without loss unless another codec is asked for; all frames must have one size."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream = None
        for pixels in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=Fraction(8))
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = pixel_format
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
    return path
