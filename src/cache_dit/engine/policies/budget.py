"""Policies that add up what each skipped step costs, and compute when the sum reaches its budget."""

from __future__ import annotations

import math
from typing import Any

from cache_dit.engine.policies.base import Probe, StepPolicy, StepRecord
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.errors import ConfigError


class AccumulatingPolicy(StepPolicy):
    """Skips while the costs of the steps since the last computed one add up to less than `residual_diff_threshold`.

    What it adds up returns to 0 at every computed step. Warm-up, mask and limits are those of every policy.
    """

    against = "previous"

    def prepare(self, calibration: Any, *, num_inference_steps: int | None) -> None:
        """Nothing has been spent yet."""
        self._spent = 0.0

    def cost(self, diff: float) -> float:
        """What skipping a step with this diff costs."""
        return diff

    def refusal(self, diff: float) -> str | None:
        """`threshold` where the step would use up the budget."""
        return None if self._spent + self.cost(diff) < self.threshold else "threshold"

    def count(self, record: StepRecord) -> None:
        """Add up what was spent."""
        super().count(record)
        if not self.static:
            self._spent = 0.0 if record.computed else self._spent + self.cost(record.diff or 0.0)


class TeaCachePolicy(AccumulatingPolicy):
    """TeaCache (Liu et al., Timestep Embedding Tells, arXiv 2411.19108): the modulated input tells.

    A step's cost is p(relL1(m_t, m_{t−1})), with m the modulated input of the first block and p the polynomial of the
    calibration, which rescales the change of the input to the change of the output it goes with. Without a calibration
    p is the identity. Published polynomials dip below 0 between the points that they were fitted to; a step never gives
    back what others have spent, so that counts as 0.
    """

    probe = Probe.MODULATED

    def prepare(self, calibration: Any, *, num_inference_steps: int | None) -> None:
        """Read the polynomial from the calibration, if there is one."""
        super().prepare(calibration, num_inference_steps=num_inference_steps)
        self._coefficients: tuple[float, ...] = (1.0, 0.0)
        if calibration is not None:
            known = PolicyCalibration.of(calibration)
            known.check(policy="teacache", num_inference_steps=num_inference_steps)
            self._coefficients = known.values(self.branch)

    def cost(self, diff: float) -> float:
        """p(diff), or 0 where that is less."""
        value = 0.0
        for coefficient in self._coefficients:
            value = value * diff + coefficient
        return max(0.0, value)


class EasyCachePolicy(AccumulatingPolicy):
    """EasyCache (arXiv 2507.02860): the change of the transformer's own input tells, with a rate learned in the run.

    The engine measures a step's diff, k · ‖x_t − x_{t−1}‖₁ / ‖v‖₁, an estimate of the relative change of the output: x
    is the transformer's input, v its last output, and k = ‖v_i − v_j‖₁ / ‖x_i − x_j‖₁ at the last two computed
    step i. The diff is the cost.
    """

    probe = Probe.LATENT


class MagCachePolicy(StepPolicy):
    """MagCache (arXiv 2506.09045): the ratios of the residual's magnitudes, known from one calibration run, tell.

    With γ_t = mean‖r_t‖/‖r_{t−1}‖ and s = Πγ since the last computed step, skipping a step costs |1 − s|; it is skipped
    if the costs since the last computed step add up to no more than `residual_diff_threshold`, and the limits allow it:
    the K of the paper is `max_continuous_cached_steps`, negative for none. Nothing is measured. Steps past the end of
    the calibration are computed.
    """

    probe = None

    def prepare(self, calibration: Any, *, num_inference_steps: int | None) -> None:
        """Read the ratios from the calibration."""
        if calibration is None:
            raise ConfigError(
                "policy='magcache' needs to know the model: expected policy_calibration, a PolicyCalibration or the "
                "path of one; cache_dit.calibrate makes it in one uncached run"
            )
        known = PolicyCalibration.of(calibration)
        known.check(policy="magcache", num_inference_steps=num_inference_steps)
        self._ratios = known.values(self.branch)
        self._spent = 0.0
        self._last_computed = self.origin

    def forced(self, step: int) -> str | None:
        """Why this step is computed: as for every policy, or because skipping it would cost too much."""
        forced = super().forced(step)
        if forced is not None or self.static:
            return forced
        if step >= len(self._ratios):
            return "uncalibrated"
        return "threshold" if self._spent + self._cost(step) > self.threshold else None

    def _cost(self, step: int) -> float:
        return abs(1 - math.prod(self._ratios[self._last_computed + 1 : step + 1]))

    def count(self, record: StepRecord) -> None:
        """Add up what was spent."""
        super().count(record)
        if self.static:
            return
        if record.computed:
            self._spent, self._last_computed = 0.0, record.step
        else:
            self._spent += self._cost(record.step)
