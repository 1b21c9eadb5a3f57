"""How far a picture is from another: one number, and a picture of the difference."""

from __future__ import annotations

import numpy as np

from cache_dit.metrics import pixels
from cache_dit.metrics.pictures import Pixels

__all__ = ["AMPLIFICATION", "Pixels", "difference", "psnr"]

#: How many times a difference is amplified where it is shown.
AMPLIFICATION = 8


def psnr(reference: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, in float64, see `cache_dit.metrics.pixels.psnr`. Infinite for equal pictures.

    Args:
        reference, other: arrays of equal shape with values in 0 … 1.
    """
    return pixels.psnr(reference, other, peak=1.0)


def difference(reference: Pixels, other: Pixels) -> Pixels:
    """The absolute difference of each colour, amplified by ``AMPLIFICATION`` and clipped: black where both agree.

    Args:
        reference, other: arrays of equal shape with values in 0 … 1.
    """
    amplified: Pixels = np.clip(np.abs(reference - other) * AMPLIFICATION, 0, 1)
    return amplified
