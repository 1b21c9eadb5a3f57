"""What is found: a number with its interval, its target, and what must be known of it."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bench.timer import Times

Values = np.ndarray[Any, np.dtype[np.float64]]
#: Of samples along the second last axis, or, where a sample is one number, along the last.
Statistic = Callable[[Values], Values]

_DIGITS = {"×": 4, "features": 2, "µs": 1, "ms": 2, "dB": 2, "GiB": 2, "s": 2}
_MEETS = {"≤": operator.le, "≥": operator.ge, ">": operator.gt, "<": operator.lt}


@dataclass
class Finding:
    """One row of a table; ``details`` is plain data."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    reached: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)
    group: str = ""

    @property
    def value_text(self) -> str:
        """The value, with as many digits as its unit deserves."""
        return f"{_number(self.value, self.unit)} {self.unit}".rstrip()

    @property
    def interval_text(self) -> str:
        """The interval, or nothing."""
        if self.low is None or self.high is None:
            return ""
        return f"{_number(self.low, self.unit)} – {_number(self.high, self.unit)}"


def _number(value: float, unit: str) -> str:
    if unit in _DIGITS:
        return f"{value:.{_DIGITS[unit]}f}"
    return f"{value:.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def found(name: str, value: float, unit: str, target: str = "", **details: Any) -> Finding:
    """A number, and whether it is as it should be, e.g. ``"≤ 1.01"``."""
    reached = _MEETS[target[0]](value, float(target[1:].partition(",")[0])) if target else None
    return Finding(name, float(value), unit, target=target, reached=reached, details=details)


def measured(
    name: str,
    samples: Any,
    statistic: Statistic,
    unit: str = "×",
    target: str = "",
    *,
    scale: float = 1,
    **details: Any,
) -> Finding:
    """A statistic of samples, with its 95 % interval by the bootstrap."""
    values = np.asarray(samples, dtype=np.float64)
    finding = found(name, scale * float(statistic(values)), unit, target, **details)
    finding.low, finding.high = (scale * end for end in bootstrap(values, statistic))
    return finding


def bootstrap(
    samples: Values, statistic: Statistic, *, draws: int = 1000, together: int = 1, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a statistic: from the 2.5th to the 97.5th percentile of as many resamplings."""
    count = len(samples) // together
    places = np.random.default_rng(seed).integers(count, size=(draws, count))
    indices = (places[:, :, None] * together + np.arange(together)).reshape(draws, -1)
    low, high = np.percentile(statistic(samples[indices]), (2.5, 97.5))
    return float(low), float(high)


# -- times


median: Statistic = partial(np.median, axis=-1)


def median_ratio(pairs: Values) -> Values:
    """The median of first over second, pair by pair."""
    return np.median(pairs[..., 0] / pairs[..., 1], axis=-1)


def ratio_of_medians(pairs: Values) -> Values:
    return np.median(pairs[..., 0], axis=-1) / np.median(pairs[..., 1], axis=-1)


def flat(rows: Iterable[Iterable[float]]) -> list[float]:
    return [seconds for row in rows for seconds in row]


def pairs_of(
    times: Times, name: str, base: str = "bare", steps: Sequence[int] | None = None
) -> list[tuple[float, float]]:
    """The times of the same steps of two models; None: of all steps."""
    return [
        (row[step], other[step])
        for row, other in zip(times[name], times[base], strict=True)
        for step in (range(len(row)) if steps is None else steps)
    ]


def ratio(name: str, pairs: Sequence[tuple[float, float]], target: str = "", **details: Any) -> Finding:
    """How many times as long the first of each pair takes as the second."""
    told = {
        "ratio_of_medians": float(ratio_of_medians(np.asarray(pairs))),
        "median_ms": [1000 * statistics.median(seconds) for seconds in zip(*pairs, strict=True)],
    }
    return measured(name, pairs, median_ratio, "×", target, **details, **told)


def milliseconds(name: str, seconds: Sequence[float], **details: Any) -> Finding:
    """The median, with its interval."""
    return measured(name, seconds, median, "ms", scale=1000, **details)
