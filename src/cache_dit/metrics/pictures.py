"""Pictures as every metric reads them: files, Pillow's images and arrays become RGB on a scale of 0 … 255."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
from PIL import Image, ImageOps

from cache_dit.errors import ConfigError

Pixels: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Source: TypeAlias = Union[str, "os.PathLike[str]", Pixels, Image.Image]
"""One picture, or the path of many: a file, a folder, an array, or one of Pillow's images."""

SUFFIXES = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The files in a folder that are pictures; case does not matter."""


def is_path(source: Source) -> bool:
    """Whether a source is a file's or a folder's path, not a picture in memory."""
    return isinstance(source, (str, os.PathLike))


def read_picture(source: Source) -> Pixels:
    """A picture as uint8 of shape (H, W, 3), RGB.

    Args:
        source: a picture's file, one of Pillow's images, or an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), either
            uint8 or floating within 0 … 1, which is rounded. Grey becomes three equal channels, transparency is left
            out, a photograph is turned as its EXIF entry says, 16-bit grey is scaled to 8 bits, and of a file with
            several pictures the first is taken.

    Raises:
        ConfigError: there is no such file, it cannot be read, or the array is no picture.
    """
    levels = read_levels(source)
    return levels if levels.dtype == np.uint8 else np.rint(levels).astype(np.uint8)


def read_levels(source: Source) -> Pixels:
    """A picture as `read_picture` has it, but a floating array is not rounded: float64 within 0 … 255.

    Raises:
        ConfigError: as `read_picture` does.
    """
    if isinstance(source, Image.Image):
        return _from_image(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if not is_path(source):
        kind = type(source).__name__
        raise ConfigError(f"a picture is a file's path, a NumPy array or one of Pillow's images, not {kind}")
    path = Path(source)
    if not path.is_file():
        what = "is a folder, not a picture" if path.is_dir() else "does not exist"
        raise ConfigError(f"{path} {what}: pass a picture's file")
    try:
        with Image.open(path) as image:
            image.load()
            return _from_image(image)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read as a picture: {error}") from error


def _from_image(image: Image.Image) -> Pixels:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ConfigError(f"pictures of Pillow's mode {image.mode!r} have no fixed scale: pass one with 8 or 16 bits")
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would cut everything above 255 off
        return _three_channels(np.rint(np.asarray(turned) / 257.0).astype(np.uint8))
    return np.asarray(turned.convert("RGB"))


def _from_array(array: Pixels) -> Pixels:
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ConfigError(
            f"an array of shape {shape} is no picture: pass (height, width) or (height, width, 1, 3 or 4)"
        )
    if array.dtype == np.uint8:
        return _three_channels(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(f"an array of {array.dtype} has no fixed scale: pass uint8, or floating numbers within 0 … 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise ConfigError(f"a floating array must be within 0 … 1, this one has {low:g} … {high:g}: scale or clip it")
    return _three_channels(array.astype(np.float64) * 255)


def _three_channels(array: Pixels) -> Pixels:
    if array.ndim == 2:
        array = array[:, :, None]
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]


def check_same_size(true: Pixels, test: Pixels, *, where: str) -> None:
    """Raise `ConfigError` unless two pictures have the same height and width.

    Args:
        true, test: the pictures, (H, W, 3).
        where: what they are, for the message.
    """
    if true.shape != test.shape:
        sizes = [f"{width}x{height}" for height, width in (true.shape[:2], test.shape[:2])]
        raise ConfigError(f"{where}: {sizes[0]} and {sizes[1]} pixels cannot be compared: pass pictures of one size")
