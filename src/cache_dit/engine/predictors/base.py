"""How to fill a skipped step: weights for the last computed ones. Numbers in, numbers out.

Every linear predictor is a weighted sum of the last m computed values, F̂(t) = Σ_j c_j F(t_j), and only the weights c
differ. They are m floats made on the host; `history` keeps the values and evaluates the sum.

A rule here is a function of the times at hand (ascending, at most as many as it wants) and the target. What all rules
share stands in `_weigh`: times are checked, a time that is among them gives its own value back, and weights that are
not finite give way to reuse.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from cache_dit.config.base import (
    as_number,
    bad_value,
    check_choice,
    check_integer,
    check_number,
    check_registration,
    unknown_key,
)
from cache_dit.config.calibrator import CalibratorConfig
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


def _weigh(rule: Rule, history: int, times: Sequence[float], target: float) -> list[float]:
    """The weights that `rule` gives to the newest `history` times, and zeros for the older ones."""
    if not times or any(earlier >= later for earlier, later in pairwise(times)):
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
        weights = _newest(nodes)
    return older + weights


def _newest(times: Sequence[float]) -> list[float]:
    return [0.0] * (len(times) - 1) + [1.0]


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
        return Predictor(f"taylor{order}", order + 1, partial(_weigh, _lagrange, order + 1))
    return Predictor(f"taylor{order}*{damping:g}", order + 1, partial(_weigh, partial(_damped, damping), order + 1))


def _lagrange(times: Sequence[float], target: float) -> list[float]:
    weights = []
    for node in times:
        weight = 1.0
        for other in times:
            if other != node:
                weight *= (target - other) / (node - other)
        weights.append(weight)
    return weights


def _damped(damping: float, times: Sequence[float], target: float) -> list[float]:
    return damped(_lagrange(times, target), damping)


def damped(weights: Sequence[float], damping: float) -> list[float]:
    """(1 - damping) · reuse + damping · what has these weights, the newest value's last."""
    return [*(damping * weight for weight in weights[:-1]), (1 - damping) + damping * weights[-1]]


reuse = Predictor("reuse", 1, partial(_weigh, _lagrange, 1))
"""The last computed value, as it is."""


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
    return Predictor(f"hermite{order}", order + 1, partial(_weigh, partial(_hermite, sigma), order + 1))


def _hermite(scale: float, times: Sequence[float], target: float) -> list[float]:
    weights = _newest(times)
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
    return Predictor("foca", 4, partial(_weigh, _foca, 4))


def _foca(times: Sequence[float], target: float) -> list[float]:
    ahead = _ahead(times, target)
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
    return [weight + change for weight, change in zip(_newest(times), changes, strict=True)]


def _ahead(times: Sequence[float], target: float) -> float:
    if target < times[-1]:
        raise bad_value("target", target, f"a time after the last one, {times[-1]!r}")
    return target - times[-1]


MIN_DMD_HISTORY = 4
"""The fewest evenly spaced values that a dynamic mode decomposition is made of."""


def dmd(history: int = 6, rank: int = 0, ridge: float = 1e-8, svd_precision: str = "medium") -> Predictor:
    """Dynamic mode decomposition: the linear map that carries each value to the next is fitted, and carried on.

    It takes the longest run of evenly spaced values up to the newest; where that is shorter than 4, the straight line
    through the last two; `dmd.forecast` has the formulas. A fit that is degenerate or not finite
    gives way to reuse of the newest value.

    Args:
        history: how many values it wants, at least 4.
        rank: how many modes; 0: those whose singular value is above 1e-4 of the largest.
        ridge: added to every singular value where it divides, at least 0.
        svd_precision: `"low"`, `"medium"` or `"high"`. All three give the same: the fit is made in float64 from
            the inner products of the values, where none of them saves anything.

    Raises:
        ConfigError: a value cannot work.
    """
    check_integer("history", history, minimum=MIN_DMD_HISTORY)
    check_integer("rank", rank, minimum=0)
    check_choice("svd_precision", svd_precision, choices=("low", "medium", "high"))
    shift = as_number("ridge", ridge)
    if not 0 <= shift < math.inf:
        raise bad_value("ridge", ridge, "a finite number >= 0")
    from cache_dit.engine.predictors.dmd import forecast  # needs numpy, which nothing else here does

    fit = partial(forecast, rank=rank, ridge=shift)
    return Predictor(f"dmd{history}", history, partial(_weigh_by_gram, fit, history), needs_gram=True)


def _weigh_by_gram(
    fit: Callable[..., list[float]],
    history: int,
    times: Sequence[float],
    target: float,
    gram: Sequence[Sequence[float]],
) -> list[float]:
    if any(len(rows) != len(times) for rows in (gram, *gram)):
        raise ConfigError(f"gram is not valid: expected {len(times)} rows and columns, one for each of the times")
    return _weigh(partial(_dmd, fit, gram), history, times, target)


def _dmd(
    fit: Callable[..., list[float]], gram: Sequence[Sequence[float]], times: Sequence[float], target: float
) -> list[float]:
    ahead = _ahead(times, target)
    count = _evenly_spaced(times)
    older = [0.0] * (len(times) - count)
    if count < MIN_DMD_HISTORY:
        return _weigh(_lagrange, 2, times, target)
    products = [row[-count:] for row in gram[-count:]]
    if products[-1][-1] == 0:
        return _newest(times)  # zero: every linear map carries it to zero, and there is nothing to warn of
    return older + fit(products, ahead / (times[-1] - times[-2]))


def _evenly_spaced(times: Sequence[float]) -> int:
    """How many of the newest times lie evenly apart."""
    count = min(len(times), 2)
    while count < len(times) and math.isclose(times[-count] - times[-count - 1], times[-1] - times[-2], rel_tol=1e-9):
        count += 1
    return count


COORDINATES = ("step", "timestep", "sigma")
"""What a predictor may count time in: steps of the request, or −timestep, or −sigma."""

PredictorFactory = Callable[[CalibratorConfig], Predictor]


class _Registered(NamedTuple):
    factory: PredictorFactory
    coordinates: tuple[str, ...]


_registry: dict[str, _Registered] = {}


def register_predictor(*, name: str, factory: PredictorFactory, coordinates: Iterable[str] = ("step",)) -> None:
    """Make a predictor available as `calibrator_type=name`.

    Args:
        name: a lower-case identifier that is not taken yet, e.g. `"chebyshev"`.
        factory: called with the calibrator configuration (its `to_kwargs()` are the predictor's arguments); returns the
            predictor, or raises `ConfigError`.
        coordinates: what the predictor may count time in: some of `"step"`, `"timestep"` and `"sigma"`. Give the
            latter two where only ratios of times matter, as with a polynomial.

    Raises:
        ConfigError: the name is taken or no lower-case identifier, the factory cannot be called, or a coordinate is
            unknown.
    """
    example = "register_predictor(name='chebyshev', factory=lambda config: Predictor('chebyshev', 3, weights))"
    check_registration(name, factory, _registry, example=example)
    chosen = tuple(coordinates)
    if not chosen or not set(chosen) <= set(COORDINATES):
        raise bad_value("coordinates", coordinates, f"some of {', '.join(map(repr, COORDINATES))}")
    _registry[name] = _Registered(factory, chosen)


def make_predictor(config: CalibratorConfig | None, *, encoder: bool = False) -> Predictor:
    """The predictor that a calibrator configuration asks for.

    Args:
        config: the configuration; None: reuse.
        encoder: whether it is for the encoder's hidden states, which `enable_encoder_calibrator` switches on, or for
            the hidden states, which `enable_calibrator` does. Where the switch is off: reuse.

    Raises:
        ConfigError: the calibrator's type or one of its arguments is unknown, a value cannot work, or the predictor is
            not defined in the configuration's coordinate.
    """
    if config is None or not (config.enable_encoder_calibrator if encoder else config.enable_calibrator):
        return reuse
    name = config.calibrator_type
    if name not in _registry:
        raise unknown_key(name, _registry, where="calibrator_type")
    factory, coordinates = _registry[name]
    coordinate = config.coordinate or "step"
    if coordinate not in coordinates:
        expected = f"{' or '.join(map(repr, coordinates))}: the calibrator {name!r} is not defined in others"
        raise bad_value("coordinate", coordinate, expected)
    made = factory(config)
    if not isinstance(made, Predictor):
        raise bad_value(f"calibrator_type={name!r}: what its factory made", made, "a Predictor")
    return made


def _factory(make: Callable[..., Predictor], *keys: str) -> PredictorFactory:
    """A factory that calls `make` with the configuration's arguments, of which it knows `keys`."""

    def factory(config: CalibratorConfig) -> Predictor:
        given = {key: value for key, value in config.to_kwargs().items() if value is not None}
        for key in given:
            if key not in keys:
                raise unknown_key(key, keys, where=f"calibrator_kwargs of {config.calibrator_type}")
        return make(**given)

    return factory


def _taylorseer(n_derivatives: int = 1, damping: float = 1.0) -> Predictor:
    return taylor(n_derivatives, damping)


def _newton(order: int = 2) -> Predictor:
    return taylor(order)


register_predictor(
    name="taylorseer", factory=_factory(_taylorseer, "n_derivatives", "damping"), coordinates=COORDINATES
)
register_predictor(name="newton", factory=_factory(_newton, "order"), coordinates=COORDINATES)
register_predictor(name="hermite", factory=_factory(hermite, "order", "scale"))
register_predictor(name="foca", factory=_factory(foca))
register_predictor(name="dmd", factory=_factory(dmd, "history", "rank", "ridge", "svd_precision"))
