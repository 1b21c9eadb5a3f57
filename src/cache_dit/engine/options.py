"""What the user asked for one chain, checked against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from cache_dit.config.base import bad_value
from cache_dit.config.cache import BasicCacheConfig, CacheType
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.extra import ExtraCacheConfig
from cache_dit.config.modifier import calibrator_over, overlay
from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.forward.chain import Chain
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.engine.policies.base import Probe, StepPolicy
from cache_dit.engine.policies.budget import AccumulatingPolicy
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.engine.policies.registry import make_policy
from cache_dit.engine.predictors.base import Predictor
from cache_dit.engine.predictors.registry import make_predictor
from cache_dit.engine.state.history import History
from cache_dit.errors import ConfigError

#: Asked for at every step, so made once.
_DEFAULT_EXTRA = ExtraCacheConfig()


@dataclass(frozen=True)
class ChainOptions:
    """What the user asked for one chain."""

    cache: BasicCacheConfig
    calibrator: CalibratorConfig | None = None

    @property
    def keeps_state(self) -> tuple[bool, bool]:
        """For H and E whether the state after the middle blocks is predicted, not the residual over them.

        A stream whose calibrator is off reuses its residual.
        """
        calibrator = self.calibrator
        if calibrator is None or calibrator.calibrator_cache_type != "hidden_states":
            return False, False
        return bool(calibrator.enable_calibrator), bool(calibrator.enable_encoder_calibrator)

    @property
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

    def history(self, predictor: Predictor, *, watch: bool = False) -> History:
        """An empty history for a predictor."""
        return History(predictor.history, device=self.cache.cache_device, dtype=self.cache.cache_dtype, watch=watch)


def _check_device(name: str | None) -> None:
    """Raise ``ConfigError`` unless snapshots can be kept on this device here; nothing is started on it."""
    if name is None:
        return
    expected = "a device that keeps values and is there, e.g. 'cpu' or 'cuda:0'"
    try:
        device = torch.device(name)
        count = 0 if device.type == "meta" else torch.get_device_module(device).device_count()
    except (RuntimeError, AttributeError) as error:  # no such kind of device, or one that torch cannot count
        raise bad_value("cache_device", name, expected) from error
    if (device.index or 0) >= count:
        raise bad_value("cache_device", name, f"{expected}; there are {count} of {device.type!r}")


def _check_plan(options: ChainOptions, run: Callable[[Plan], PlanScope]) -> None:
    """Raise ``ConfigError`` where a plan has no chosen point, or holds for something else."""
    cache = options.cache
    cache.plan = Plan.of(cache.plan)  # read once, and now
    _ = cache.plan.point
    if options.calibrator is not None:
        raise ConfigError(
            f"calibrator_config and plan exclude each other, the plan {cache.plan.tag} says how steps are "
            "predicted: leave out calibrator_config"
        )
    asked = cache.num_inference_steps
    cache.plan.check(run(cache.plan), **({} if asked is None else {"num_inference_steps": asked}))


def checked(
    options: ChainOptions, chain: Chain, model_class: str | None = None, run: Callable[[Plan], PlanScope] | None = None
) -> ChainOptions:
    """The options of a chain, once it is clear that they can work on it.

    Args:
        options: the options.
        chain: the chain.
        model_class: the transformer's class name.
        run: what is known already of the runs to come; asked for where there is a plan.

    Raises:
        ConfigError: if it is no cache at all, Fn or Bn exceed the number of blocks, a name is unknown, there is no
            such device, a calibration or a plan is missing or was made for something else, or a decision by sample
            cannot be made.
    """
    options.predictors()
    cache = options.cache
    if cache.cache_type is CacheType.NONE:
        raise ConfigError(
            f"cache_type=NONE is no cache for {chain.name}: call disable_cache on the model, or, where only this chain "
            "of several shall not be cached, pass residual_diff_threshold=0 for it"
        )
    _check_device(cache.cache_device)
    if cache.plan is not None:
        _check_plan(options, run or (lambda plan: PlanScope(model_class=model_class)))
    if cache.policy_calibration is not None:
        cache.policy_calibration = PolicyCalibration.of(cache.policy_calibration)  # read once, and now
        cache.policy_calibration.check(model_class=model_class)
    policy = options.policy
    if cache.policy_calibration is not None and cache.policy in ("dbcache", "easycache"):
        chain.say_once("cache_dit: policy_calibration has no effect: it is for policy='teacache' or 'magcache'")
    chain.layout(cache.Fn_compute_blocks, cache.Bn_compute_blocks)
    if cache.decision == "mean":
        return options
    joins = cache.decision != "sample"
    for unfit, why in (
        (chain.rounds > 1, f"{chain.name} rearranges the samples"),
        (policy is None, "DBPrune decides for a whole batch"),
        (policy is not None and type(policy).probe is Probe.LATENT, f"policy={cache.policy!r} measures a whole batch"),
        (joins and isinstance(policy, AccumulatingPolicy), f"policy={cache.policy!r} adds up what it is given"),
    ):
        if unfit:
            raise ConfigError(f"decision={cache.decision!r} needs a diff for each sample, and {why}: pass 'mean'")
    return options
