"""FoCa: forecast, then calibrate by the trend of the latest values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from cache_dit.engine.predictors.base import Predictor, ahead_of, newest, weigh

FOCA_REACH = 3
"""How many steps ahead FoCa forecasts; beyond, it goes back toward the last computed value."""


def foca() -> Predictor:
    """FoCa (arXiv 2508.16211): forecast, then calibrate by the trend of the latest values, forecasts included.

    With F the last computed value, s the slope between the last two, and w₁, w₂ the two latest values of a window that
    takes in every computed value and the forecasts for the steps between, the forecast k ≤ 3 steps after F is

        f_k = F + k/2 · (s + (w₁ − w₂) / (time from w₂ to w₁))

    and beyond 3 steps the horizon stays at 3 and is blended toward F: F + 3/k · (f_3 − F). Blended values are no
    forecasts and do not enter the window. Every difference is divided by its time, so a straight line goes on straight
    for 3 steps, at any spacing. With one value it is reused; the window starts with the two oldest values at hand.

    The steps between two computed ones solve to f_k = F + k s + (d − s) k (3 − k) / 4, where d is the window's slope
    at F. So f_3 = F + 3 s, nothing need be simulated, and one rule serves fractions of a step. The part of d that comes
    from earlier forecasts at least halves with each computed step: 4 values carry all but a quarter of one of them.
    """
    return Predictor("foca", 4, partial(weigh, _foca, 4))


def _foca(times: Sequence[float], target: float) -> list[float]:
    ahead = ahead_of(times, target)
    slope = bend = [0.0] * len(times)  # weights of s and of d − s at the value under way
    for index, (earlier, later) in enumerate(pairwise(times)):
        gap = later - earlier
        before, slope = slope, [0.0] * len(times)
        slope[index], slope[index + 1] = -1 / gap, 1 / gap
        if index == 0:
            continue
        forecasts = max(int(min(gap, FOCA_REACH + 1)) - 1, 0)
        pull = forecasts / (gap - forecasts)
        fading = (FOCA_REACH - forecasts) / 4
        bend = [pull * (new - old - fading * b) for new, old, b in zip(slope, before, bend, strict=True)]
    if ahead > FOCA_REACH:
        reach, calibration = FOCA_REACH**2 / ahead, 0.0
    else:
        reach, calibration = ahead, ahead * (FOCA_REACH - ahead) / 4
    changes = [reach * s + calibration * b for s, b in zip(slope, bend, strict=True)]
    return [weight + change for weight, change in zip(newest(times, target), changes, strict=True)]
