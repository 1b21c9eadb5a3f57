"""How far a picture is from another: one number, and a picture of the difference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: How many times a difference is amplified where it is shown.
AMPLIFICATION = 8

Pixels = np.ndarray[Any, np.dtype[Any]]


def psnr(reference: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, in float64: 10 · log10(1 / mean squared error). Infinite for equal pictures.

    Args:
        reference, other: arrays of equal shape with values in 0 … 1.
    """
    error = float(np.mean((reference.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def difference(reference: Pixels, other: Pixels) -> Pixels:
    """The absolute difference of each colour, amplified by ``AMPLIFICATION`` and clipped: black where both agree.

    Args:
        reference, other: arrays of equal shape with values in 0 … 1.
    """
    amplified: Pixels = np.clip(np.abs(reference - other) * AMPLIFICATION, 0, 1)
    return amplified
