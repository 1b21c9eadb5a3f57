"""The predictors by name: what a calibrator configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from cache_dit.config.base import bad_value, check_registration, unknown_key
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.engine.predictors.base import Predictor, reuse
from cache_dit.engine.predictors.dmd import dmd
from cache_dit.engine.predictors.foca import foca
from cache_dit.engine.predictors.hermite import hermite
from cache_dit.engine.predictors.polynomial import taylor

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


def _factory(make: Callable[..., Predictor], **names: str) -> PredictorFactory:
    """A factory that calls `make` with the configuration's arguments, which are known by these names of its own."""

    def factory(config: CalibratorConfig) -> Predictor:
        given = {}
        for key, value in config.to_kwargs().items():
            if value is not None:
                if key not in names:
                    raise unknown_key(key, names, where=f"calibrator_kwargs of {config.calibrator_type}")
                given[names[key]] = value
        return make(**given)

    return factory


_DMD = {name: name for name in ("history", "rank", "ridge", "svd_precision")}

register_predictor(
    name="taylorseer",
    factory=_factory(partial(taylor, order=1), n_derivatives="order", damping="damping"),
    coordinates=COORDINATES,
)
register_predictor(name="newton", factory=_factory(partial(taylor, order=2), order="order"), coordinates=COORDINATES)
register_predictor(name="hermite", factory=_factory(hermite, order="order", scale="scale"))
register_predictor(name="foca", factory=_factory(foca))
register_predictor(name="dmd", factory=_factory(dmd, **_DMD))
