"""What the guard estimates by, fitted to pictures whose true error is known. Numbers only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from cache_dit.config.base import bad_value
from cache_dit.engine.plans.guard import CAP, GuardCalibration, Miss, weighted_errors
from cache_dit.errors import ConfigError

FEWEST = 4
"""So many pictures at least, for a line through two numbers of each."""


@dataclass(frozen=True)
class Observation:
    """One picture drawn by the plan, with nothing inserted and nothing dropped.

    Args:
        misses: what was measured at its full steps.
        psnr: in dB against the uncached picture, at most `CAP`.
    """

    misses: tuple[Miss, ...]
    psnr: float


class _Line(NamedTuple):
    """psnr ≈ offset + slope · x, and the standard deviation of what it leaves when each picture is left out in turn."""

    offset: float
    slope: float
    spread: float


def fit(
    observations: Sequence[Observation],
    *,
    full_steps: int,
    sigmas: Sequence[float],
    level: float = 0.9,
    target: float | None = None,
    sensitivities: Sequence[float] | None = None,
) -> GuardCalibration:
    """The calibration that estimates these pictures best, with no held-out pictures yet.

    Tried are each guidance branch alone and all of them; the best is that with the smallest error on pictures left out.
    A slope below 0 is none: such a guard only watches.

    Args:
        observations: the pictures, at least `FEWEST`.
        full_steps: of the plan's point.
        sigmas: the noise level of each step, descending; one more for the end is taken as 0 where it is missing.
        level: the share of pictures that are to reach the target.
        target: the PSNR to reach, in dB; None: what three quarters of these pictures reach without a guard.
        sensitivities: how much a relative error at each step moves the final picture; None: for a step from noise
            level a to b, (a − b) · ((a + b) / 2)². Early errors move more than their steps do.

    Raises:
        ConfigError: there are too few pictures, nothing was measured in one or what was is no number, or the
            sensitivities are not one per step.
    """
    if len(observations) < FEWEST or not all(one.misses for one in observations):
        raise ConfigError(
            f"the guard needs at least {FEWEST} pictures to fit, each with a cached step before a full one, got "
            f"{sum(bool(one.misses) for one in observations)}: pass more prompts, or a plan with cached steps"
        )
    if not all(math.isfinite(error) for one in observations for miss in one.misses for error in miss.errors):
        raise ConfigError("a prediction's error was no number: see that the plan's pictures are without NaN first")
    names = sorted({miss.branch for miss in observations[0].misses})
    choices: list[tuple[str, ...]] = [(), *((name,) for name in names if len(names) > 1)]
    psnrs = [min(one.psnr, CAP) for one in observations]
    scale = _default_scale(sigmas)
    if sensitivities is not None:
        if len(sensitivities) != len(scale):
            raise bad_value("sensitivities", list(sensitivities), f"{len(scale)} numbers, one for each step")
        scale = tuple(map(float, sensitivities))
    lines = {
        branches: _line([_level(_total(one.misses, scale, branches)) for one in observations], psnrs)
        for branches in choices
    }
    branches, line = min(lines.items(), key=lambda item: item[1].spread)
    target = statistics.quantiles(psnrs, n=4, method="inclusive")[0] if target is None else float(target)
    made = GuardCalibration(
        full_steps=full_steps,
        level=level,
        scale=scale,
        pace=_pace(observations, scale, branches),
        branches=branches,
        offset=line.offset,
        slope=line.slope,
        target=target,
    )
    estimates = [made.estimate(_total(one.misses, scale, branches)) for one in observations]
    return replace(made, margin=_margin(estimates, psnrs, target, level))


def _default_scale(sigmas: Sequence[float]) -> tuple[float, ...]:
    """The weights of the steps where nothing is known of their sensitivities."""
    levels = [*map(float, sigmas)]
    if levels[-1] != 0:
        levels.append(0.0)
    return tuple(abs(high - low) * ((high + low) / 2) ** 2 for high, low in pairwise(levels))


def _level(error: float) -> float:
    """An error in dB."""
    return -10 * math.log10(max(error, 1e-30))


def _total(misses: Sequence[Miss], scale: Sequence[float], branches: Sequence[str]) -> float:
    """A picture's weighted error, the worst sample's."""
    return max(weighted_errors(misses, scale, branches))


def _line(x: Sequence[float], y: Sequence[float]) -> _Line:
    """The least-squares line, with a slope of at least 0."""
    offset, slope = _least_squares(x, y)
    left = []
    for out in range(len(x)):
        a, b = _least_squares([*x[:out], *x[out + 1 :]], [*y[:out], *y[out + 1 :]])
        left.append(y[out] - a - b * x[out])
    return _Line(offset, slope, math.sqrt(statistics.fmean(error * error for error in left)))


def _least_squares(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and slope; a slope that would be below 0 is 0."""
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    width = sum((one - mean_x) ** 2 for one in x)
    together = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True))
    slope = max(0.0, together / width) if width > 0 else 0.0
    return mean_y - slope * mean_x, slope


def _pace(observations: Sequence[Observation], scale: Sequence[float], branches: Sequence[str]) -> tuple[float, ...]:
    """Per step, the mean share of a picture's error that is known after it; straight between full steps."""
    marks = sorted({miss.step for miss in observations[0].misses})
    shares = [0.0]
    for mark in marks:
        parts = []
        for one in observations:
            whole = _total(one.misses, scale, branches)
            known = [miss for miss in one.misses if miss.step <= mark]
            parts.append(_total(known, scale, branches) / whole if whole > 0 else 1.0)
        shares.append(max(statistics.fmean(parts), shares[-1]))
    found = []
    for step in range(len(scale)):
        after = next((index for index, mark in enumerate(marks) if mark >= step), None)
        if after is None:
            found.append(1.0)
            continue
        start = marks[after - 1] if after else 0
        way = (step - start) / (marks[after] - start) if marks[after] > start else 1.0
        found.append(min(shares[after] + (shares[after + 1] - shares[after]) * way, 1.0))
    return tuple(found)


def _margin(estimates: Sequence[float], psnrs: Sequence[float], target: float, level: float) -> float:
    """How far above the target an estimate must be to be trusted.

    Of the pictures that are worse than the target, all but a share 1 − level of all pictures are to be noticed; this is
    the least margin at which they are.
    """
    unnoticed = sorted((estimate for estimate, psnr in zip(estimates, psnrs, strict=True) if psnr < target))
    allowed = math.floor((1 - level) * len(psnrs) + 1e-9)
    if len(unnoticed) <= allowed:
        return min(min(estimates) - target, 0.0)
    return unnoticed[len(unnoticed) - 1 - allowed] - target + 1e-6
