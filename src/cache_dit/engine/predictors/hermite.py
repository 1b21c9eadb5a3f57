"""HiCache's damped Taylor polynomial, by scaled Hermite polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from cache_dit.config.base import as_number, bad_value, check_integer
from cache_dit.engine.predictors.base import Predictor, newest, weigh


def hermite(order: int = 2, scale: float = 0.5) -> Predictor:
    """HiCache's damped Taylor polynomial (arXiv 2508.16984): F + Σ_{i≥1} Δ^iF/i! · H̃_i(k) with k steps since the last.

    H̃_n(x) = σⁿ H_n(σx) with the physicists' Hermite polynomials, H_0 = 1, H_1 = 2x, H_{n+1} = 2x H_n − 2n H_{n−1}.
    Δ^iF is the i-th derivative per step: i! times the divided difference of the last i + 1 values, which at steps N
    apart is the finite difference over N^i. It damps on purpose: a constant is reproduced at any spacing, a straight
    line only at σ = 1/√2. H̃_n mixes powers of k, so its unit matters: it is defined in steps.

    Args:
        order: the highest derivative, at least 0; lower while there are fewer than order + 1 values.
        scale: σ, above 0.

    Raises:
        ConfigError: `order` or `scale` cannot work.
    """
    check_integer("order", order, minimum=0)
    sigma = as_number("scale", scale)
    if not 0 < sigma < math.inf:
        raise bad_value("scale", scale, "a finite number > 0")
    return Predictor(f"hermite{order}", order + 1, partial(weigh, partial(_hermite, sigma), order + 1))


def _hermite(scale: float, times: Sequence[float], target: float) -> list[float]:
    weights = newest(times, target)
    x = scale * (target - times[-1])
    lower, polynomial, power = 1.0, 2 * x, scale
    for degree in range(1, len(times)):
        first = len(times) - degree - 1
        for index in range(first, len(times)):
            # i! · (divided difference) / i!: what is left is the divided difference, whose weights are these.
            weight = power * polynomial
            for other in range(first, len(times)):
                if other != index:
                    weight /= times[index] - times[other]
            weights[index] += weight
        lower, polynomial, power = polynomial, 2 * x * polynomial - 2 * degree * lower, power * scale
    return weights
