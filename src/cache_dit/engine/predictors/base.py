"""How to fill a skipped step: weights for the last computed ones. Numbers in, numbers out.

Every linear predictor is a weighted sum of the last m computed values, F̂(t) = Σ_j c_j F(t_j), and only the weights c
differ. They are m floats made on the host; `history` keeps the values and evaluates the sum.

A rule is a function of the times at hand (ascending, at most as many as it wants) and the target. What all rules share
stands in `weigh`: times are checked, a time that is among them gives its own value back, and weights that are not
finite give way to reuse.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cache_dit.config.base import bad_value
from cache_dit.errors import ConfigError

logger = logging.getLogger(__name__)

Rule = Callable[[Sequence[float], float], list[float]]


@dataclass(frozen=True, slots=True)
class Predictor:
    """A rule that predicts a value from earlier ones.

    Args:
        name: the rule's name, for people.
        history: how many of the last computed values it wants, at least 1. It makes do with fewer.
        coefficients: called with the times of the values at hand, ascending and at least one, and the time to
            predict; returns one weight for each. Times are in the caller's coordinate: steps of the request, or
            −timestep, or −sigma. Raises `ConfigError` for times that are not finite or do not ascend.
        needs_gram: whether `coefficients` wants a third argument: the inner products of the values, as nested lists,
            one row for each time.
    """

    name: str
    history: int
    coefficients: Callable[..., list[float]]
    needs_gram: bool = False


def weigh(rule: Rule, history: int, times: Sequence[float], target: float) -> list[float]:
    """The weights that `rule` gives to the newest `history` times, and zeros for the older ones."""
    if not times or any(map(operator.ge, times, times[1:])):
        raise ConfigError(f"times={list(times)!r} are not valid: expected at least one, each later than the one before")
    if not all(map(math.isfinite, (*times, target))):
        raise ConfigError(f"times={list(times)!r} and target={target!r} are not valid: expected finite numbers")
    nodes = times[-history:]
    older = [0.0] * (len(times) - len(nodes))
    if target in nodes:
        return older + [float(node == target) for node in nodes]
    weights = rule(nodes, target)
    if not all(map(math.isfinite, weights)):
        logger.warning("cache_dit: no finite prediction of %s from %s: the last value is reused", target, nodes)
        weights = newest(nodes, target)
    return older + weights


def newest(times: Sequence[float], target: float) -> list[float]:
    """The rule of reuse: the newest value."""
    return [0.0] * (len(times) - 1) + [1.0]


def ahead_of(times: Sequence[float], target: float) -> float:
    """How far the target is after the last time."""
    if target < times[-1]:
        raise bad_value("target", target, f"a time after the last one, {times[-1]!r}")
    return target - times[-1]


reuse = Predictor("reuse", 1, partial(weigh, newest, 1))
"""The last computed value, as it is."""
