"""Curves through measured times, and where the wrapper's Python becomes a small share of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

#: The powers of what grows in a full step: attention is quadratic in tokens, a linear layer in width.
POWERS = {"tokens": (0, 1, 2), "depth": (0, 1), "width": (0, 1, 2), "batch": (0, 1)}


@dataclass(frozen=True)
class Fit:
    """y = Σ coefficient · x^power.

    Args:
        powers, coefficients: of the terms.
        error: root mean square of (fit − measured) / measured at the points.
        largest: the largest of these.
    """

    powers: tuple[int, ...]
    coefficients: tuple[float, ...]
    error: float
    largest: float

    def __call__(self, x: float) -> float:
        return sum(float(c) * x**p for c, p in zip(self.coefficients, self.powers, strict=True))


def fitted(xs: Sequence[float], ys: Sequence[float], powers: Sequence[int]) -> Fit:
    """Least squares of the relative error, without negative coefficients: no part of a step takes less than no time.

    Of the lowest powers only as many are taken as leave a point to be wrong at.
    """
    powers = tuple(powers)[: max(1, len(xs) - 1)]
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    columns = np.stack([x**power for power in powers], axis=1) / y[:, None]
    solved = _not_negative(columns / columns.max(axis=0)) / columns.max(axis=0)
    wrong = columns @ solved - 1
    error, largest = float(np.sqrt(np.mean(wrong**2))), float(np.abs(wrong).max())
    return Fit(powers, tuple(solved.tolist()), error, largest)


def _not_negative(columns: np.ndarray) -> np.ndarray:
    """What columns times it comes nearest to 1 everywhere: the best of all choices of columns; there are few."""
    count, best, least = columns.shape[1], np.zeros(columns.shape[1]), np.inf
    for chosen in (part for size in range(1, count + 1) for part in combinations(range(count), size)):
        solved, *_ = np.linalg.lstsq(columns[:, chosen], np.ones(len(columns)), rcond=None)
        wrong = float(((columns[:, chosen] @ solved - 1) ** 2).sum())
        if solved.min() >= 0 and wrong < least:
            best, least = np.zeros(count), wrong
            best[list(chosen)] = solved
    return best


def falls_below(
    share: Callable[[float], float], smallest: float, largest: float, most: float = 0.01
) -> tuple[float, str]:
    """Where a share that falls with size comes to ``most``, and how that is known.

    Returns:
        The size, and ``"measured"`` where it lies between measured ones, ``"extrapolated"`` where it lies beyond the
        largest (at most a thousand times) or before the smallest (at least 1), ``"below"`` where the share is small at
        size 1 already, ``"never"`` where it is not at a thousand times the largest; the size is then the last one that
        was looked at.
    """
    low, high = (1.0 if share(smallest) <= most else smallest), 1000 * largest
    if share(low) <= most:
        return low, "below"
    if share(high) > most:
        return high, "never"
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if share(middle) <= most else (middle, high)
    return high, "measured" if smallest <= high <= largest else "extrapolated"
