"""What a run gave, as numbers, and how near it is to what another one gave."""

from __future__ import annotations

from typing import Any

import numpy as np

from cache_dit.config.base import bad_value
from cache_dit.errors import MissingModelError

PERFECT = 100.0
"""The PSNR in dB that a picture without a difference counts as: means need a number."""


def as_array(result: Any) -> Any:
    """The numbers of what a run gave: a pipeline's output, a picture, a tensor, or a list of them."""
    for name in ("images", "frames", "audios", "sample"):
        if hasattr(result, name):
            return as_array(getattr(result, name))
    if isinstance(result, (list, tuple)):
        if not result:
            raise bad_value("run", result, "a function that gives a picture, an array or a tensor")
        return as_array(result[0]) if len(result) == 1 else np.stack([as_array(one) for one in result])
    if hasattr(result, "detach"):
        result = result.detach().cpu()
        return (result.float() if result.dtype.itemsize < 4 and result.is_floating_point() else result).numpy()
    array = np.asarray(result)
    if array.dtype == object or not np.issubdtype(array.dtype, np.number):
        raise bad_value("run", type(result).__name__, "a function that gives a picture, an array or a tensor")
    return array


def psnr(reference: Any, other: Any) -> float:
    """PSNR in dB, at most `PERFECT`: of pictures on their scale (0 … 1, or 0 … 255), else by the reference's range."""
    from cache_dit.metrics import pixels

    low, high = float(reference.min()), float(reference.max())
    if np.issubdtype(reference.dtype, np.integer):
        peak = 255.0
    else:
        peak = 1.0 if low >= 0 and high <= 1 and reference.ndim >= 3 else high - low
    if not np.isfinite(other).all():
        return 0.0
    return float(min(pixels.psnr(reference, other, peak=peak or 1.0), PERFECT))


def lpips_network() -> Any:
    """The network of LPIPS, or None where its weights are not here."""
    from cache_dit.metrics.lpips import Lpips

    try:
        return Lpips(device="cpu")
    except MissingModelError:
        return None


def is_picture(array: Any) -> bool:
    """Whether these are the numbers of one picture: (height, width, 3), or a batch of one, as pipelines give."""
    floating = not np.issubdtype(array.dtype, np.integer)
    alone = array.ndim == 3 or (array.ndim == 4 and len(array) == 1)
    return alone and array.shape[-1] == 3 and not (floating and (array.min() < 0 or array.max() > 1))


def levels(array: Any) -> Any:
    """A picture on the scale of 0 … 255, shape (height, width, 3)."""
    picture = array.reshape(array.shape[-3:])
    if np.issubdtype(picture.dtype, np.integer):
        return picture
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
