"""Running a plan: the policy that follows it, and the predictor whose rule it chooses. Numbers, no tensors."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from cache_dit.config.cache import BasicCacheConfig
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.report import PlanOutcome
from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.engine.plans.scope import UNNAMED, branch_name
from cache_dit.engine.policies.base import Action, StepPolicy, StepRecord
from cache_dit.engine.predictors.base import Predictor
from cache_dit.errors import ConfigError


class PlanPolicy(StepPolicy):
    """Follows a plan: the mask of the branch decides, and nothing is measured.

    Steps past the end of the mask are computed.

    Args:
        config, num_inference_steps, calibration, records, origin, branch: as for `StepPolicy`; the options have the
            plan, with a point chosen.

    Raises:
        ConfigError: there is no plan, none of its points is chosen, or it does not know the branch.
    """

    probe = None

    def __init__(
        self,
        config: BasicCacheConfig,
        *,
        num_inference_steps: int | None = None,
        calibration: Any = None,
        records: Iterable[StepRecord] = (),
        origin: int = 0,
        branch: Hashable = None,
    ) -> None:
        if config.plan is None:
            raise ConfigError("policy='plan' needs a plan: pass DBCacheConfig(plan=…), a Plan or the path of one")
        self.plan = Plan.of(config.plan)
        self.point = self.plan.point
        super().__init__(config, num_inference_steps=num_inference_steps, records=records, origin=origin, branch=branch)
        if branch is not None and not self._knows(branch):
            raise unknown_branch(self.plan, branch)

    def _knows(self, branch: Hashable) -> bool:
        return self.plan.knows(branch) or (branch == UNNAMED and self._first is not None)

    @property
    def _first(self) -> BranchSchedule | None:
        """The schedule of the branch that unnamed calls that take turns begin with, where the plan has guidance."""
        first, known = "uncond" if self.config.cfg_compute_first else "cond", self.plan.scope.branches
        return self.point.schedule(first) if known is None or first in known else None

    @cached_property
    def schedule(self) -> BranchSchedule:
        """The schedule of the branch. One that gets its name later is the first, and has the first one's already."""
        found = self.point.schedule(self.branch) or self._first
        return found or next(iter(self.point.branches.values()))

    @property
    def predictor(self) -> Predictor:
        """What predicts the cached steps: the rule of each is the one that the plan has for it.

        Times are the numbers of steps, so the weights are made for the steps that were in fact computed.
        """
        return Predictor("plan", 1 + max(one.order for one in self.point.branches.values()), self._weights)

    def _weights(self, times: Sequence[float], target: float) -> list[float]:
        return self.schedule.rule(int(target)).predictor.coefficients(times, target)

    @property
    def caches(self) -> bool:
        """Whether a step can ever be skipped."""
        return 0 in self.schedule.mask

    def decide(self, step: int) -> Action:
        """What the plan says."""
        computes, self._why = self._planned(step), "plan"
        if not self._computed:
            computes, self._why = True, "first"
        return Action.COMPUTE if computes else Action.SKIP

    def _planned(self, step: int) -> bool:
        mask = self.schedule.mask
        return step >= len(mask) or bool(mask[step])

    @property
    def unplanned(self) -> dict[int, str]:
        """The steps that were not done as planned, with the reason code of each."""
        return {one.step: one.why for one in self.records if one.computed is not self._planned(one.step)}


def unknown_branch(plan: Plan, branch: Hashable) -> ConfigError:
    """The error for a branch of guidance that the plan was not made with."""
    known = plan.scope.branches or tuple(plan.points[0].branches)
    return ConfigError(
        f"the plan {plan.tag} was made with the guidance branches {', '.join(map(repr, known))}, and knows none "
        f"called {branch!r}: plan anew with this guidance, or run what it was made for"
    )


def outcome(
    cache: BasicCacheConfig,
    caches: Mapping[str, Any],
    *,
    call: Mapping[str, Any] | None = None,
    differences: Sequence[str] = (),
) -> PlanOutcome:
    """What a request made of its plan.

    Args:
        cache: its options, which have the plan.
        caches: its caches by the labels of their branches.
        call: the arguments of the pipeline's call that lie on the host, where they are known.
        differences: what differed from the call that the plan was made with.
    """
    plan: Plan = cache.plan
    point = plan.point
    return PlanOutcome(
        plan.tag,
        None if differences else point.quality,
        point.ideal_speedup,
        {label: _unplanned(cache) for label, cache in caches.items()},
        note="; ".join(filter(None, (plan.note, point.note))),
        told=f"unknown: made with {'; '.join(differences)}" if differences else point.told,
        differences=tuple(differences),
        unchecked=plan.scope.unchecked(call),
    )


def departure(caches: Mapping[Any, Any]) -> str | None:
    """What to say of a request that did not follow its plan; None: it did."""
    for (branch, _, _), cache in list(caches.items()):  # at once: other threads may add to them
        if steps := _unplanned(cache):
            done = ", ".join(f"{step} ({why})" for step, why in steps.items())
            return f"the plan was not followed: {branch_name(branch)} computed step {done}"
    return None


def _unplanned(cache: Any) -> dict[int, str]:
    policies = [policy for policy in cache.policies().values() if isinstance(policy, PlanPolicy)]
    return {step: why for policy in policies for step, why in policy.unplanned.items()}
