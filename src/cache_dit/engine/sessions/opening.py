"""A cache for a branch of a chain, fitted to what else is on its blocks by now: offloading, parallelism."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch

from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.masks import fitted_mask
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
from cache_dit.engine.sessions.model_facts import latent_facts, schedule_facts, scheduler_facts, transformer_facts
from cache_dit.engine.sessions.request import Request
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


def scope_of(module: torch.nn.Module | None, scheduler: Any, plan: Plan) -> PlanScope:
    """What a plan can know of any run of a transformer: the model, and the scheduler where there is one."""
    facts = {} if scheduler is None else scheduler_facts(scheduler)
    return PlanScope(model_class=type(module).__name__, **transformer_facts(plan, module), **facts)


def fitted(config: BasicCacheConfig, steps: int | None) -> BasicCacheConfig:
    """The options for a run of so many steps, None: nobody knows; a mask that begins anew has a length of its own."""
    mask = config.steps_computation_mask
    if mask is None or steps in (None, len(mask)) or config.force_refresh_step_hint is not None:
        return config
    made = copy.copy(config)
    made.steps_computation_mask = fitted_mask(mask, steps)
    return made


def policy_maker(
    options: ChainOptions,
    session: Session,
    request: Request,
    branch: Hashable,
    module: torch.nn.Module | None,
    *,
    chain: Chain,
    latent: Any = None,
) -> Callable[..., Any]:
    """What makes the policy of a branch of a chain.

    Args:
        options: the chain's.
        session, request: the request's.
        branch: the branch.
        module: the transformer.
        chain: the chain.
        latent: its first input, where it is known.

    Raises:
        ConfigError: if a calibration or a plan was made with something else.
    """
    cache, steps, scheduler = fitted(options.cache, session.length), session.num_inference_steps, request.scheduler
    if isinstance(cache, DBPruneConfig):
        return functools.partial(PrunePolicy, cache, num_inference_steps=steps, origin=session.refreshed)
    calibration = cache.policy_calibration
    if cache.plan is not None:
        check_plan(cache.plan, _scope_of_run(cache.plan, options, session, request, module, latent), session, chain)
    elif calibration is not None:
        name = None if scheduler is None else type(scheduler).__name__
        calibration = PolicyCalibration.of(calibration)
        calibration.check(model_class=type(module).__name__, num_inference_steps=steps, scheduler=name)
    return functools.partial(
        make_policy,
        cache,
        num_inference_steps=steps,
        calibration=calibration,
        branch=branch,
        origin=session.refreshed,
    )


def check_plan(plan: Plan, run: PlanScope, session: Session, chain: Chain) -> None:
    """Raise ``ConfigError`` where a plan does not hold for a run; say what differs where that is allowed."""
    new = [one for one in plan.check(run) if one not in session.differences]
    session.differences += new
    if new:
        names = ", ".join(one.partition("=")[0] for one in new)
        message = f"cache_dit: the plan %s runs with another {names} than it was made with: %s"
        chain.say_once(message, plan.tag, "; ".join(new))


def _scope_of_run(
    plan: Plan,
    options: ChainOptions,
    session: Session,
    request: Request,
    module: torch.nn.Module | None,
    latent: Any,
) -> PlanScope:
    """What a plan can know of this run."""
    steps = request.steps(options.cache.num_inference_steps)
    facts: dict[str, Any] = {"num_inference_steps": steps, "call": request.arguments, **latent_facts(latent)}
    if request.scheduler is not None and session.clock.step == 0:  # later it does not tell where it began
        facts |= schedule_facts(plan, request.scheduler, steps)
    weighs = plan.scope.weights is not None
    if weighs not in session.known:
        session.known[weighs] = scope_of(module, request.scheduler, plan)
    known: PlanScope = session.known[weighs]
    return replace(known, **facts)
