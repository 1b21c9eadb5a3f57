"""How to fill a skipped step: weights for the last computed ones. Numbers in, numbers out.

Every linear predictor is a weighted sum of the last m computed values, F̂(t) = Σ_j c_j F(t_j), and only the weights c
differ. They are m floats made on the host; `history` keeps the values and evaluates the sum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from cache_dit.config.base import bad_value, check_integer, unknown_key
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Predictor:
    """A rule that predicts a value from earlier ones.

    Args:
        name: the rule's name, for people.
        history: how many of the last computed values it wants, at least 1. It makes do with fewer.
        coefficients: called with the times of the values at hand, ascending and at least one, and the time to
            predict; returns one weight for each. Times are in steps of the request. Raises `ConfigError` for times
            that do not ascend.
    """

    name: str
    history: int
    coefficients: Callable[[Sequence[float], float], list[float]]


def taylor(order: int) -> Predictor:
    """The Taylor polynomial through the last order + 1 computed values; of lower order while there are fewer.

    Its weights are those of Lagrange's form, c_j = Π_{i≠j} (t - t_i) / (t_j - t_i), so it is exact on polynomials of
    this degree at any spacing of the steps. At even spacing and order 1 it is TaylorSeer's F + ΔF/N · k (arXiv
    2503.06923).

    Args:
        order: the polynomial's degree, at least 0 (0: reuse of the last value).

    Raises:
        ConfigError: `order` is no integer of at least 0.
    """
    check_integer("order", order, minimum=0)
    return Predictor(f"taylor{order}", order + 1, partial(_lagrange, order))


def _lagrange(order: int, times: Sequence[float], target: float) -> list[float]:
    if not times or any(earlier >= later for earlier, later in pairwise(times)):
        raise ConfigError(f"times={list(times)!r} are not valid: expected at least one, each later than the one before")
    nodes = times[-(order + 1) :]
    weights = [0.0] * (len(times) - len(nodes))
    for node in nodes:
        weight = 1.0
        for other in nodes:
            if other != node:
                weight *= (target - other) / (node - other)
        weights.append(weight)
    return weights


reuse = Predictor("reuse", 1, partial(_lagrange, 0))
"""The last computed value, as it is."""

PredictorFactory = Callable[[CalibratorConfig], Predictor]

_factories: dict[str, PredictorFactory] = {}


def register_predictor(*, name: str, factory: PredictorFactory) -> None:
    """Make a predictor available as `calibrator_type=name`.

    Args:
        name: a lower-case identifier that is not taken yet, e.g. `"hermite"`.
        factory: called with the calibrator configuration (its `to_kwargs()` are the predictor's arguments); returns the
            predictor, or raises `ConfigError`.

    Raises:
        ConfigError: the name is taken or no lower-case identifier, or the factory cannot be called.
    """
    example = "e.g. register_predictor(name='hermite', factory=lambda config: Predictor('hermite', 3, weights))"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise bad_value("name", name, f"a lower-case identifier, {example}")
    if name in _factories:
        raise bad_value(
            "name", name, f"a name that is not taken yet (taken: {', '.join(sorted(_factories))}), {example}"
        )
    if not callable(factory):
        raise bad_value("factory", factory, f"a function of the calibrator configuration, {example}")
    _factories[name] = factory


def make_predictor(config: CalibratorConfig | None, *, encoder: bool = False) -> Predictor:
    """The predictor that a calibrator configuration asks for.

    Args:
        config: the configuration; None: reuse.
        encoder: whether it is for the encoder's hidden states, which `enable_encoder_calibrator` switches on, or for
            the hidden states, which `enable_calibrator` does. Where the switch is off: reuse.

    Raises:
        ConfigError: the calibrator's type or one of its arguments is unknown, or a value cannot work.
    """
    if config is None or not (config.enable_encoder_calibrator if encoder else config.enable_calibrator):
        return reuse
    if config.calibrator_type not in _factories:
        raise unknown_key(config.calibrator_type, _factories, where="calibrator_type")
    return _factories[config.calibrator_type](config)


def _taylorseer(config: CalibratorConfig) -> Predictor:
    options = config.to_kwargs()
    order = options.pop("n_derivatives", 1)
    for key in options:
        raise unknown_key(key, ["n_derivatives"], where="calibrator_kwargs of taylorseer")
    return taylor(order)


register_predictor(name="taylorseer", factory=_taylorseer)
