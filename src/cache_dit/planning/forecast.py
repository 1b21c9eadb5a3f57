"""From the value of an objective to the PSNR of the picture: an offset and a slope, fitted to real runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache_dit.planning.gram import Array
from cache_dit.planning.search import Objective, Schedule

_PRIOR = 36.0
"""How firmly the slope is held to 1, in dB²: an objective that is the squared error, up to a factor, has it."""

_FLOOR = 1e-30


@dataclass(frozen=True)
class Forecast:
    """PSNR = offset − slope · 10 log10(objective).

    Args:
        objective: which one.
        offset, slope: of the fit.
        spread: the root mean square of what the fit leaves over, in dB.
    """

    objective: Objective
    offset: float
    slope: float
    spread: float

    def psnr(self, schedule: Schedule, grams: Sequence[Array] = ()) -> Array:
        """The predicted PSNR of a schedule, for each of some items by their inner products, or else for all as one."""
        objectives = [replace(self.objective, gram=gram) for gram in grams] or [self.objective]
        levels = np.array([decibels(objective.cost(schedule)) for objective in objectives])
        found: Array = self.offset - self.slope * levels
        return found

    def at(self, cost: float) -> float:
        """The predicted PSNR at a value of the objective."""
        return self.offset - self.slope * decibels(cost)


def decibels(cost: float) -> float:
    """A squared error in dB."""
    return float(10 * np.log10(max(cost, _FLOOR)))


def fitted(objective: Objective, schedules: Sequence[Schedule], measured: Sequence[float]) -> Forecast:
    """The fit of one objective to what was measured of some schedules, in dB."""
    x = np.array([decibels(objective.cost(schedule)) for schedule in schedules])
    y = np.asarray(measured, dtype=np.float64)
    moved, level = x - x.mean(), y - y.mean()
    slope = float((_PRIOR - moved @ level) / (_PRIOR + moved @ moved))
    offset = float(y.mean() + slope * x.mean())
    spread = float(np.sqrt(np.mean((y - offset + slope * x) ** 2)))
    return Forecast(objective, offset, slope, spread)


def best_fit(objectives: Sequence[Objective], schedules: Sequence[Schedule], measured: Sequence[float]) -> Forecast:
    """The fit of the objective that leaves the least over; of equals the first."""
    fits = [fitted(objective, schedules, measured) for objective in objectives]
    return min(fits, key=lambda fit: fit.spread)
