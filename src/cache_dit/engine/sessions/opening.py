"""A cache for a branch of a chain, fitted to what else is on its blocks by now: offloading, parallelism."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.forward.blockwise import BlockwiseCache
from cache_dit.engine.forward.chain import Chain, Layout
from cache_dit.engine.forward.offload import relied_on_when_skipped, shares_groups, widen_back
from cache_dit.engine.forward.samplewise import SamplewiseCache
from cache_dit.engine.forward.shards import settle
from cache_dit.engine.forward.stepwise import StepwiseCache
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.engine.policies.prune import PrunePolicy
from cache_dit.engine.policies.registry import make_policy
from cache_dit.engine.sessions.session import Session


def cache_class(options: ChainOptions) -> Any:
    """The kind of cache that options ask for, by what decides."""
    if isinstance(options.cache, DBPruneConfig):
        return BlockwiseCache
    return SamplewiseCache if options.cache.decision == "sample" else StepwiseCache


def layout_now(chain: Chain, options: ChainOptions, *, last: bool) -> tuple[Layout, str | None]:
    """Which blocks can be skipped as things are, and why none can, or None."""
    cache = options.cache
    layout, refused = settle(chain, chain.layout(cache.Fn_compute_blocks, cache.Bn_compute_blocks))
    layout = widen_back(chain, layout)
    if relied_on_when_skipped(chain, layout, last=last):
        refused = refused or "prefetched"
    if isinstance(cache, DBPruneConfig) and shares_groups(chain):
        refused = refused or "offload_groups"
    return layout, refused


def policy_maker(
    options: ChainOptions,
    session: Session,
    branch: Hashable,
    *,
    model_class: str,
    scheduler: Any,
    run: Callable[[Plan], PlanScope],
) -> Callable[..., Any]:
    """What makes the policy of a branch of a chain.

    Args:
        options: the chain's.
        session: the request's.
        branch: the branch.
        model_class: the transformer's class name.
        scheduler: the request's scheduler, where it is known.
        run: what the request is like; asked for where there is a plan.

    Raises:
        ConfigError: if a calibration or a plan was made with something else.
    """
    cache, steps = options.cache, session.num_inference_steps
    if isinstance(cache, DBPruneConfig):
        return functools.partial(PrunePolicy, cache, num_inference_steps=steps, origin=session.refreshed)
    if cache.plan is not None:
        cache.plan.check(run(cache.plan))
        return functools.partial(make_policy, cache, num_inference_steps=steps, branch=branch, origin=session.refreshed)
    calibration = cache.policy_calibration
    if calibration is not None:
        name = None if scheduler is None else type(scheduler).__name__
        calibration = PolicyCalibration.of(calibration)
        calibration.check(model_class=model_class, num_inference_steps=steps, scheduler=name)
    return functools.partial(
        make_policy,
        cache,
        num_inference_steps=steps,
        calibration=calibration,
        branch=branch,
        origin=session.refreshed,
    )
