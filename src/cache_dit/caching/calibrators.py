"""The cache's predictors as objects: given the tensors of computed steps, they predict those of skipped ones.

The cache itself asks its predictors directly; these are for loops of your own.
"""

from __future__ import annotations

import abc
from typing import Any

import torch

from cache_dit.config.base import bad_value, check_integer
from cache_dit.config.calibrator import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.engine.predictors.base import Predictor
from cache_dit.engine.predictors.registry import make_predictor
from cache_dit.engine.state.history import History
from cache_dit.engine.state.snapshots import weights
from cache_dit.errors import SessionError

__all__ = [
    "Calibrator",
    "CalibratorBase",
    "CalibratorConfig",
    "DMDCalibrator",
    "DMDCalibratorConfig",
    "FoCaCalibrator",
    "FoCaCalibratorConfig",
    "HermiteCalibrator",
    "HermiteCalibratorConfig",
    "NewtonCalibrator",
    "NewtonCalibratorConfig",
    "PredictorCalibrator",
    "TaylorSeerCalibrator",
    "TaylorSeerCalibratorConfig",
]

STREAM = "default"


class CalibratorBase(abc.ABC):
    """Predicts the tensors of skipped steps from those of computed ones, for any number of named streams."""

    @abc.abstractmethod
    def reset_cache(self) -> None:
        """Forget everything, the step's number too."""

    @abc.abstractmethod
    def approximate(self, name: str = STREAM) -> torch.Tensor:
        """The prediction of a stream for this step.

        Raises:
            SessionError: the stream has no computed step yet.
        """

    @abc.abstractmethod
    def mark_step_begin(self) -> None:
        """Go on to the next step."""

    @abc.abstractmethod
    def update(self, value: torch.Tensor, name: str = STREAM) -> None:
        """Keep what a stream was at this step, which was computed.

        Raises:
            SessionError: the stream was given its value at this step already.
        """


class PredictorCalibrator(CalibratorBase):
    """One of the cache's predictors, with the snapshots that it wants.

    Args:
        predictor: the predictor.
        max_warmup_steps, skip_interval_steps: for ``step``, which computes the first ones, then every such step.

    Raises:
        ConfigError: a number is no integer of at least 0 (of at least 1, for the interval).
    """

    def __init__(self, predictor: Predictor, *, max_warmup_steps: int = 1, skip_interval_steps: int = 1) -> None:
        check_integer("max_warmup_steps", max_warmup_steps, minimum=0)
        check_integer("skip_interval_steps", skip_interval_steps, minimum=1)
        self.predictor = predictor
        self.max_warmup_steps = max_warmup_steps
        self.skip_interval_steps = skip_interval_steps
        self.histories: dict[str, History] = {}
        self.current_step = -1

    def reset_cache(self) -> None:
        """Forget everything, the step's number too."""
        self.histories.clear()
        self.current_step = -1

    def mark_step_begin(self) -> None:
        """Go on to the next step: the first is number 0."""
        self.current_step += 1

    def update(self, value: torch.Tensor, name: str = STREAM) -> None:
        """Keep what a stream was at this step (not a copy of it); another shape than before begins it anew.

        Raises:
            SessionError: the stream was given its value at this step already.
        """
        history = self.histories.setdefault(name, History(self.predictor.history))
        if history.times and history.times[-1] >= self.current_step:
            raise SessionError(
                f"{name!r} was updated at step {self.current_step} already: call mark_step_begin() first"
            )
        history.append(self.current_step, value)

    def approximate(self, name: str = STREAM) -> torch.Tensor:
        """The prediction of a stream for this step, with the shape, dtype and device of what was kept.

        Raises:
            SessionError: the stream has no computed step yet.
        """
        history = self.histories.get(name)
        if not history:
            raise SessionError(f"{name!r} has nothing to predict from: call update(value) at a computed step first")
        return history.predict(weights(self.predictor, history, self.current_step))

    def step(self, value: torch.Tensor, name: str = STREAM) -> torch.Tensor:
        """Go on to the next step: ``value`` itself where it is one to compute, the prediction where it is not."""
        self.mark_step_begin()
        past = self.current_step - self.max_warmup_steps
        if past >= 0 and (past + 1) % self.skip_interval_steps:
            return self.approximate(name)
        self.update(value, name)
        return value


class TaylorSeerCalibrator(PredictorCalibrator):
    """The Taylor polynomial through the last computed steps.

    Args:
        n_derivatives: its order.
        max_warmup_steps, skip_interval_steps: see ``PredictorCalibrator``.
    """

    def __init__(self, n_derivatives: int = 1, max_warmup_steps: int = 1, skip_interval_steps: int = 1) -> None:
        super().__init__(
            make_predictor(TaylorSeerCalibratorConfig(taylorseer_order=n_derivatives)),
            max_warmup_steps=max_warmup_steps,
            skip_interval_steps=skip_interval_steps,
        )


class FoCaCalibrator(PredictorCalibrator):
    """Forecast, then calibrate; see ``FoCaCalibratorConfig``."""

    def __init__(self) -> None:
        super().__init__(make_predictor(FoCaCalibratorConfig()))


class DMDCalibrator(PredictorCalibrator):
    """Dynamic mode decomposition; the arguments are those of ``DMDCalibratorConfig`` without ``dmd_``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(make_predictor(DMDCalibratorConfig(**{f"dmd_{name}": v for name, v in options.items()})))


class HermiteCalibrator(PredictorCalibrator):
    """Scaled Hermite polynomials; the arguments are those of ``HermiteCalibratorConfig``."""

    def __init__(self, order: int = 2, scale: float = 0.5) -> None:
        super().__init__(make_predictor(HermiteCalibratorConfig(hermite_order=order, hermite_scale=scale)))


class NewtonCalibrator(PredictorCalibrator):
    """Newton's form of the polynomial through the last computed steps.

    Args:
        order: its order.
    """

    def __init__(self, order: int = 2) -> None:
        super().__init__(make_predictor(NewtonCalibratorConfig(newton_order=order)))


class Calibrator:
    """``Calibrator(config)`` makes the calibrator that a configuration asks for.

    Args:
        calibrator_config: a ``TaylorSeerCalibratorConfig`` or another; any registered ``calibrator_type`` works. Its
            switches say where the cache uses it, and make no difference here.

    Raises:
        ConfigError: it is no calibrator configuration, or its type or arguments are unknown.
    """

    def __new__(cls, calibrator_config: CalibratorConfig) -> CalibratorBase:  # type: ignore[misc]
        """The calibrator."""
        if not isinstance(calibrator_config, CalibratorConfig):
            raise bad_value("calibrator_config", calibrator_config, "a CalibratorConfig")
        on = type(calibrator_config)(**{**vars(calibrator_config), "enable_calibrator": True})
        return PredictorCalibrator(make_predictor(on))
