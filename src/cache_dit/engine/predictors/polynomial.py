"""Taylor's polynomial through the last computed values, which Newton's form writes too; and how it is damped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cache_dit.config.base import check_integer, check_number
from cache_dit.engine.predictors.base import Predictor, weigh


def taylor(order: int, damping: float = 1.0) -> Predictor:
    """The Taylor polynomial through the last order + 1 computed values; of lower order while there are fewer.

    Its weights are those of Lagrange's form, c_j = Π_{i≠j} (t - t_i) / (t_j - t_i), so it is exact on polynomials of
    this degree at any spacing of the steps. At even spacing and order 1 it is TaylorSeer's F + ΔF/N · k (arXiv
    2503.06923). Newton's form by divided differences writes the same polynomial, so `"newton"` in the registry is this
    function too.

    Damped by d it is (1 - d) · reuse + d · polynomial. What a skipped step gets wrong moves the values of the computed
    steps after it, and the weights of an extrapolation amplify that: strong guidance and long gaps want less of it.

    Args:
        order: the polynomial's degree, at least 0 (0: reuse of the last value).
        damping: d, from 0 (reuse) to 1 (the polynomial).

    Raises:
        ConfigError: `order` is no integer of at least 0, or `damping` is not from 0 to 1.
    """
    check_integer("order", order, minimum=0)
    check_number("damping", damping, minimum=0, maximum=1)
    if damping == 1:
        return Predictor(f"taylor{order}", order + 1, partial(weigh, lagrange, order + 1))
    return Predictor(f"taylor{order}*{damping:g}", order + 1, partial(weigh, partial(_damped, damping), order + 1))


def lagrange(times: Sequence[float], target: float) -> list[float]:
    """The weights of the polynomial through all values."""
    weights = []
    for node in times:
        weight = 1.0
        for other in times:
            if other != node:
                weight *= (target - other) / (node - other)
        weights.append(weight)
    return weights


def _damped(damping: float, times: Sequence[float], target: float) -> list[float]:
    """(1 - damping) · reuse + damping · the polynomial."""
    *older, last = lagrange(times, target)
    return [*(damping * weight for weight in older), (1 - damping) + damping * last]
