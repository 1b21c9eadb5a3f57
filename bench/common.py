"""What several benches share: the extremes of a threshold, and how times are compared."""

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.peers.cost import Times, twin

__all__ = [
    "ALWAYS",
    "NEVER",
    "Times",
    "flat",
    "interval",
    "median_ms",
    "median_ratio",
    "pairs_of",
    "ratio_of_medians",
    "static",
    "twin",
]

#: A threshold that every diff is below, and yet is measured; and one that none is.
ALWAYS, NEVER = 0.99, 1e-9


def static(mask: list[int]) -> dict[str, Any]:
    """The options of a plan that is made in advance."""
    return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


def pairs_of(times: Times, name: str, base: str, steps: Sequence[int] | None = None) -> list[tuple[float, float]]:
    """The times of the same steps of two models; None: of all steps."""
    return [
        (row[step], other[step])
        for row, other in zip(times[name], times[base], strict=True)
        for step in (range(len(row)) if steps is None else steps)
    ]


def interval(samples: Sequence[Any], statistic: Callable[[Sequence[Any]], float]) -> tuple[float, float]:
    """The 95 % interval of a statistic by the bootstrap (percentiles of 1,000 resamplings)."""
    draw = random.Random(0)
    values = sorted(statistic(draw.choices(samples, k=len(samples))) for _ in range(1000))
    return values[25], values[974]


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of first over second, pair by pair."""
    return statistics.median(first / second for first, second in pairs)


def ratio_of_medians(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(first for first, _ in pairs) / statistics.median(second for _, second in pairs)


def flat(rows: Iterable[Iterable[float]]) -> list[float]:
    return [seconds for row in rows for seconds in row]


def median_ms(seconds: Iterable[float]) -> float:
    return 1000 * statistics.median(seconds)
