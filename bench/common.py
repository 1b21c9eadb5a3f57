"""What several benches share: the extremes of a threshold, how times are compared, and quiet."""

import contextlib
import logging
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    "quiet",
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


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without the warnings of these loggers inside, e.g. that nothing was skipped, where that is the point."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
