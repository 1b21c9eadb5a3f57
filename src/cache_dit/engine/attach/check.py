"""Whether what a user asked for a chain can work on it, found before anything is put on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cache_dit.config.base import bad_value
from cache_dit.config.cache import CacheType
from cache_dit.engine.forward.chain import Chain
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.engine.policies.base import Probe
from cache_dit.engine.policies.budget import AccumulatingPolicy
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.errors import ConfigError


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
