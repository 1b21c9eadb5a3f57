"""Numbers of many pictures: mean, 5th percentile, minimum, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.quality.fidelity import CEILING

Values = np.ndarray[Any, np.dtype[np.float64]]
#: Of values along the last axis.
Statistic = Callable[[Values], Values]

RESAMPLINGS = 10_000


def mean(values: Values) -> Values:
    return np.mean(values, axis=-1)


def fifth_percentile(values: Values) -> Values:
    """Linear between neighbours, numpy's default."""
    return np.percentile(values, 5, axis=-1)


def median(values: Values) -> Values:
    return np.median(values, axis=-1)


@dataclass(frozen=True)
class Spread:
    """Mean, 5th percentile and minimum of some pictures' values; `equal`: how many are the very same picture."""

    mean: float
    p5: float
    minimum: float
    equal: int = 0


def decibels(samples: Sequence[float | None]) -> Values:
    """PSNRs as numbers: equal pictures (None) and all above the ceiling count as the ceiling."""
    return np.array([CEILING if value is None else min(value, CEILING) for value in samples], dtype=np.float64)


def spread(samples: Sequence[float | None]) -> Spread:
    """Of PSNRs in dB."""
    values = decibels(samples)
    return Spread(float(mean(values)), float(fifth_percentile(values)), float(values.min()), list(samples).count(None))


def difference(
    first: Values, second: Values, statistic: Statistic, *, per_caption: int = 1, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of `first` minus that of `second`, with its 95 % interval by the paired bootstrap.

    Both have the same pictures in the same order. Captions are drawn with replacement, the same for both, 10,000 times;
    the interval ends at the 2.5th and the 97.5th percentile of the differences.

    Args:
        first, second: of shape (pictures,).
        statistic: mean, 5th percentile …
        per_caption: pictures in a row that are of one caption, which are drawn together.
        seed: of the draws.
    """
    captions = len(first) // per_caption
    draws = np.random.default_rng(seed).integers(captions, size=(RESAMPLINGS, captions))
    indices = (draws[:, :, None] * per_caption + np.arange(per_caption)).reshape(RESAMPLINGS, -1)
    resampled = statistic(first[indices]) - statistic(second[indices])
    low, high = np.percentile(resampled, (2.5, 97.5))
    return float(statistic(first) - statistic(second)), float(low), float(high)
