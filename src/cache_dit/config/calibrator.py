"""How a cached step is predicted: the configuration of calibrators, the field's word for predictors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from cache_dit.config.base import SparseConfig, bad_value, check_choice, check_flag, check_integer


def _check_type(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise bad_value(name, value, "a predictor's name, e.g. 'taylorseer'")


def _check_kwargs(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise bad_value(name, value, "a dict, e.g. {'n_derivatives': 2}")


@dataclass
class CalibratorConfig(SparseConfig):
    """How cached steps are predicted from the computed ones. By default they reuse the last computed one.

    Args:
        enable_calibrator: whether the hidden states are predicted.
        enable_encoder_calibrator: whether the encoder's hidden states are.
        calibrator_type: the predictor's name in the registry, e.g. `"taylorseer"`.
        calibrator_cache_type: what is kept and predicted: `"residual"`, what the skipped blocks add to their input, or
            `"hidden_states"`, what they return.
        calibrator_kwargs: further arguments of the predictor, e.g. `{"n_derivatives": 2}`.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = False
    enable_encoder_calibrator: bool = False
    calibrator_type: str = "taylorseer"
    calibrator_cache_type: str = "residual"
    calibrator_kwargs: dict[str, Any] = field(default_factory=dict)

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        "enable_calibrator": check_flag,
        "enable_encoder_calibrator": check_flag,
        "calibrator_type": _check_type,
        "calibrator_cache_type": partial(check_choice, choices=("residual", "hidden_states")),
        "calibrator_kwargs": _check_kwargs,
    }
    _kept_by_empty: ClassVar[tuple[str, ...]] = ("calibrator_type",)

    def to_kwargs(self) -> dict[str, Any]:
        """The predictor's arguments: a copy of `calibrator_kwargs`, with what the subclass's own fields say."""
        return dict(self.calibrator_kwargs)

    def strify(self, details: bool = False) -> str:
        """A short tag for file names; `details` asks for a longer one for people."""
        return "CalibratorBase"


@dataclass
class TaylorSeerCalibratorConfig(CalibratorConfig):
    """Cached steps are extrapolated by the Taylor polynomial through the last computed ones.

    After TaylorSeer (arXiv 2503.06923), with derivatives that are exact for uneven distances between the computed
    steps too.

    Args:
        enable_calibrator: whether the hidden states are predicted.
        enable_encoder_calibrator: whether the encoder's hidden states are.
        calibrator_type: `"taylorseer"`.
        calibrator_cache_type: what is predicted: `"residual"` or `"hidden_states"`; see `CalibratorConfig`.
        calibrator_kwargs: further arguments of the predictor.
        taylorseer_order: the polynomial's order, at least 0 (0: reuse). Order n keeps n + 1 computed steps in memory.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    taylorseer_order: int = 1

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        **CalibratorConfig._checks,
        "taylorseer_order": partial(check_integer, minimum=0),
    }

    def to_kwargs(self) -> dict[str, Any]:
        """The predictor's arguments: `calibrator_kwargs`, and the order as `n_derivatives`."""
        return {**super().to_kwargs(), "n_derivatives": self.taylorseer_order}

    def strify(self, details: bool = False) -> str:
        """`T1O{order}`, with `details` `TaylorSeer_O({order})`; `NONE` for order 0."""
        if not self.taylorseer_order:
            return "NONE"
        return f"TaylorSeer_O({self.taylorseer_order})" if details else f"T1O{self.taylorseer_order}"
