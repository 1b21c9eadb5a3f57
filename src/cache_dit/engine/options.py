"""What the user asked for one chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.extra import ExtraCacheConfig
from cache_dit.config.modifier import calibrator_over, overlay
from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.policies.base import Probe, StepPolicy
from cache_dit.engine.policies.registry import make_policy
from cache_dit.engine.predictors.base import Predictor
from cache_dit.engine.predictors.registry import make_predictor

#: Asked for at every step, so made once.
_DEFAULT_EXTRA = ExtraCacheConfig()


@dataclass(frozen=True)
class ChainOptions:
    """What the user asked for one chain."""

    cache: BasicCacheConfig
    calibrator: CalibratorConfig | None = None

    @cached_property
    def coordinate(self) -> str:
        """What predictions go by: the numbers of steps, timesteps or noise levels."""
        return "step" if self.calibrator is None else self.calibrator.coordinate

    @cached_property
    def shares_diffs(self) -> bool:
        """Whether the diffs that the first branch of a step measures decide for the others too."""
        return not self.cache.cfg_diff_compute_separate

    @cached_property
    def keeps_state(self) -> tuple[bool, bool]:
        """For H and E whether the state after the middle blocks is predicted, not the residual over them.

        A stream whose calibrator is off reuses its residual.
        """
        calibrator = self.calibrator
        if calibrator is None or calibrator.calibrator_cache_type != "hidden_states":
            return False, False
        return bool(calibrator.enable_calibrator), bool(calibrator.enable_encoder_calibrator)

    @cached_property
    def extra(self) -> ExtraCacheConfig:
        """The options of the measurement."""
        return self.cache.extra_cache_config or _DEFAULT_EXTRA

    def plans_as(self, other: ChainOptions) -> bool:
        """Whether both have the same plan."""
        return bool(self.cache.plan == other.cache.plan)

    def predicts_as(self, other: ChainOptions) -> bool:
        """Whether what was kept by other options serves these too."""
        kept = (self.calibrator, self.cache.cache_device, self.cache.cache_dtype)
        same = kept == (other.calibrator, other.cache.cache_device, other.cache.cache_dtype)
        return same and self.plans_as(other)

    def under(self, changes: Mapping[str, Any], calibrator: CalibratorConfig | None) -> ChainOptions:
        """These options with changed ones laid over them.

        Raises:
            ConfigError: if they cannot work together.
        """
        before = None if changes.get("plan") is not None else self.calibrator  # a plan says how steps are predicted
        return ChainOptions(overlay(self.cache, changes, complete=True), calibrator_over(before, calibrator))

    @cached_property
    def observes(self) -> bool:
        """Whether decisions look at the modulated input."""
        return self.policy is not None and self.policy.probe is Probe.MODULATED

    @cached_property
    def policy(self) -> StepPolicy | None:
        """A policy that decides nothing, but tells what is measured; None where blocks are decided, not steps.

        Raises:
            ConfigError: no policy has that name, or an option or the calibration cannot work.
        """
        return None if isinstance(self.cache, DBPruneConfig) else make_policy(self.cache)

    def predictors(self) -> tuple[Predictor, Predictor]:
        """The predictors of H and of E: one and the same where the options are."""
        hidden = make_predictor(self.calibrator)
        calibrator = self.calibrator
        if calibrator is None or calibrator.enable_calibrator == calibrator.enable_encoder_calibrator:
            return hidden, hidden
        return hidden, make_predictor(calibrator, encoder=True)
