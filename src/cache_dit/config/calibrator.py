"""How a cached step is predicted: the configuration of calibrators, the field's word for predictors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from cache_dit.config.base import (
    SparseConfig,
    check_choice,
    check_dict,
    check_flag,
    check_integer,
    check_number,
    check_text,
)


def _order_tag(short: str, long: str, order: int | None, details: bool) -> str:
    if not order:
        return "NONE"
    return f"{long}_O({order})" if details else f"{short}O{order}"


@dataclass(repr=False)
class CalibratorConfig(SparseConfig):
    """How cached steps are predicted from the computed ones. By default they reuse the last computed one.

    Args:
        enable_calibrator: whether the hidden states are predicted.
        enable_encoder_calibrator: whether the encoder's hidden states are.
        calibrator_type: the predictor's name in the registry, e.g. `"taylorseer"`.
        calibrator_cache_type: what is kept and predicted: `"residual"`, what the skipped blocks add to their input, or
            `"hidden_states"`, what they return.
        calibrator_kwargs: further arguments of the predictor, e.g. `{"n_derivatives": 2}`.
        coordinate: where the computed steps lie for the predictor: at their `"step"` number, or at the scheduler's
            `"timestep"` or `"sigma"`.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = False
    enable_encoder_calibrator: bool = False
    calibrator_type: str = "taylorseer"
    calibrator_cache_type: str = "residual"
    calibrator_kwargs: dict[str, Any] = field(default_factory=dict)
    coordinate: str = field(default="step", kw_only=True)

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        "enable_calibrator": check_flag,
        "enable_encoder_calibrator": check_flag,
        "calibrator_type": partial(check_text, expected="a predictor's name, e.g. 'taylorseer'"),
        "calibrator_cache_type": partial(check_choice, choices=("residual", "hidden_states")),
        "calibrator_kwargs": partial(check_dict, expected="a dict, e.g. {'n_derivatives': 2}"),
        "coordinate": partial(check_choice, choices=("step", "timestep", "sigma")),
    }
    _kept_by_empty: ClassVar[tuple[str, ...]] = ("calibrator_type",)

    def to_kwargs(self) -> dict[str, Any]:
        """The predictor's arguments: a copy of `calibrator_kwargs`, with what the subclass's own fields say."""
        return dict(self.calibrator_kwargs)

    def strify(self, details: bool = False) -> str:
        """A short tag for file names; `details` asks for a longer one for people."""
        return "CalibratorBase"


@dataclass(repr=False)
class TaylorSeerCalibratorConfig(CalibratorConfig):
    """Cached steps are extrapolated by the Taylor polynomial through the last computed ones.

    After TaylorSeer (arXiv 2503.06923), with derivatives that are exact for uneven distances between the computed
    steps too.

    Args: those of `CalibratorConfig`, with both switches on, and
        taylorseer_order: the polynomial's order, at least 0 (0: reuse). Order n keeps n + 1 computed steps in memory.
        damping: how much of the polynomial is taken, from 0 (none of it: reuse) to 1. Long gaps between computed steps
            and strong guidance want less.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    taylorseer_order: int = 1
    damping: float = field(default=1.0, kw_only=True)

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        **CalibratorConfig._checks,
        "taylorseer_order": partial(check_integer, minimum=0),
        "damping": partial(check_number, minimum=0, maximum=1),
    }

    def to_kwargs(self) -> dict[str, Any]:
        """The predictor's arguments: `calibrator_kwargs`, the order as `n_derivatives`, and a damping below 1."""
        damped = {} if self.damping in (None, 1) else {"damping": self.damping}
        return {**super().to_kwargs(), "n_derivatives": self.taylorseer_order, **damped}

    def strify(self, details: bool = False) -> str:
        """`T1O{order}`, with `details` `TaylorSeer_O({order})`, and the damping below 1; `NONE` for order 0."""
        damped = f"D{self.damping:g}" if self.taylorseer_order and self.damping not in (None, 1) else ""
        return _order_tag("T1", "TaylorSeer", self.taylorseer_order, details) + damped


@dataclass(repr=False)
class FoCaCalibratorConfig(CalibratorConfig):
    """Cached steps are forecast from the last computed ones and then corrected (FoCa, arXiv 2508.16211).

    Args: those of `CalibratorConfig`, with both switches on.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    calibrator_type: str = "foca"

    def strify(self, details: bool = False) -> str:
        """`FoCa`."""
        return "FoCa"


@dataclass(repr=False)
class DMDCalibratorConfig(CalibratorConfig):
    """Cached steps are extrapolated by dynamic mode decomposition of the last computed ones.

    It needs at least 4 evenly spaced computed steps; before that, the Taylor polynomial of order 1 is used.

    Args: those of `CalibratorConfig`, with both switches on, and
        dmd_history: the most computed steps kept in memory, at least 4.
        dmd_rank: the number of modes; 0: as many as have a relative singular value above 1e-4.
        dmd_ridge: what is added to the singular values where they are divided by, at least 0.
        dmd_svd_precision: `"low"`, `"medium"` or `"high"`.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    calibrator_type: str = "dmd"
    dmd_history: int = 6
    dmd_rank: int = 0
    dmd_ridge: float = 1e-8
    dmd_svd_precision: str = "medium"

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        **CalibratorConfig._checks,
        "dmd_history": partial(check_integer, minimum=4),
        "dmd_rank": partial(check_integer, minimum=0),
        "dmd_ridge": partial(check_number, minimum=0),
        "dmd_svd_precision": partial(check_choice, choices=("low", "medium", "high")),
    }

    def to_kwargs(self) -> dict[str, Any]:
        """The predictor's arguments: `calibrator_kwargs`, and `history`, `rank`, `ridge`, `svd_precision`."""
        own = {name: getattr(self, f"dmd_{name}") for name in ("history", "rank", "ridge", "svd_precision")}
        return {**super().to_kwargs(), **own}

    def strify(self, details: bool = False) -> str:
        """`DMDH{history}`, with `details` `DMD_H({history})`; then `l` or `h` for low or high precision."""
        precision = {"low": "l", "high": "h"}.get(self.dmd_svd_precision, "")
        return (f"DMD_H({self.dmd_history})" if details else f"DMDH{self.dmd_history}") + precision


@dataclass(repr=False)
class HermiteCalibratorConfig(CalibratorConfig):
    """Cached steps are extrapolated by scaled Hermite polynomials, a damped Taylor (HiCache, arXiv 2508.16984).

    Args: those of `CalibratorConfig`, with both switches on, and
        hermite_order: the order, at least 0 (0: reuse). Order n keeps n + 1 computed steps in memory.
        hermite_scale: the polynomials' scale σ, more than 0; smaller damps more.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    calibrator_type: str = "hermite"
    hermite_order: int = 2
    hermite_scale: float = 0.5

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        **CalibratorConfig._checks,
        "hermite_order": partial(check_integer, minimum=0),
        "hermite_scale": partial(check_number, above=0),
    }

    def to_kwargs(self) -> dict[str, Any]:
        """The predictor's arguments: `calibrator_kwargs`, and the order and the scale."""
        return {**super().to_kwargs(), "order": self.hermite_order, "scale": self.hermite_scale}

    def strify(self, details: bool = False) -> str:
        """`HermiteO{order}`, with `details` `Hermite_O({order})`; `NONE` for order 0."""
        return _order_tag("Hermite", "Hermite", self.hermite_order, details)


@dataclass(repr=False)
class NewtonCalibratorConfig(CalibratorConfig):
    """Cached steps are extrapolated by Newton's form of the polynomial through the last computed ones.

    Args: those of `CalibratorConfig`, with both switches on, and
        newton_order: the polynomial's order, at least 0 (0: reuse). Order n keeps n + 1 computed steps in memory.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    enable_calibrator: bool = True
    enable_encoder_calibrator: bool = True
    calibrator_type: str = "newton"
    newton_order: int = 2

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        **CalibratorConfig._checks,
        "newton_order": partial(check_integer, minimum=0),
    }

    def to_kwargs(self) -> dict[str, Any]:
        """The predictor's arguments: `calibrator_kwargs`, and the order."""
        return {**super().to_kwargs(), "order": self.newton_order}

    def strify(self, details: bool = False) -> str:
        """`NewtonO{order}`, with `details` `Newton_O({order})`; `NONE` for order 0."""
        return _order_tag("Newton", "Newton", self.newton_order, details)
