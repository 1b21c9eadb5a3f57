"""The points of a plan for another number of steps, without a run: full steps at the same noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from cache_dit.config.base import bad_value, check_integer
from cache_dit.engine.plans.point import PlanPoint
from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.errors import ConfigError


def adapted(
    points: Sequence[PlanPoint], scope: PlanScope, num_inference_steps: int, sigmas: Sequence[float] | None
) -> tuple[list[PlanPoint], PlanScope, str]:
    """The points that fit, what they hold for, and a note on what they are worth; see `Plan.adapt`."""
    check_integer("num_inference_steps", num_inference_steps, minimum=1)
    before, masks = scope.num_inference_steps, points[0].steps
    if masks != before:
        raise ConfigError(
            f"the plan's masks have {masks} entries for {before} steps, as its scheduler calls the model more "
            "often: it cannot be adapted, plan anew"
        )
    old = _levels(scope.sigmas, masks, "the plan's sigmas")
    new = _resampled(old, num_inference_steps) if sigmas is None else _levels(sigmas, num_inference_steps, "sigmas")
    places = _nearest(old, new)
    moved = [_adapted_point(point, places, num_inference_steps) for point in points]
    kept = [point for point in moved if point is not None]
    if not kept:
        fewest = points[-1].full_steps
        raise bad_value("num_inference_steps", num_inference_steps, f"at least {fewest}, the plan's fewest full steps")
    note = f"an estimate: adapted from {before} to {num_inference_steps} steps"
    if scope.sigmas is None:
        note += " by their numbers, as the plan does not know its noise levels"
    known = None if sigmas is None else tuple(new)
    return kept, replace(scope, num_inference_steps=num_inference_steps, sigmas=known), note


def _levels(sigmas: Sequence[float] | None, steps: int, name: str) -> list[float]:
    """Descending noise levels, one per step; None: evenly spaced ones. A last one of 0 beyond the steps is left out."""
    if sigmas is None:
        return [1 - step / steps for step in range(steps)]
    found = [float(sigma) for sigma in sigmas]
    if len(found) == steps + 1 and found[-1] == 0:
        found.pop()
    if len(found) != steps or any(not one > other for one, other in pairwise(found)):
        raise bad_value(name, list(sigmas), f"{steps} noise levels, each below the one before")
    return found


def _resampled(levels: Sequence[float], steps: int) -> list[float]:
    """The levels of a run of other steps over the same range: linear between those at hand, which end at 0."""
    ends = [*levels, 0.0]
    found = []
    for step in range(steps):
        place = step * len(levels) / steps
        index = min(int(place), len(levels) - 1)
        found.append(ends[index] + (place - index) * (ends[index + 1] - ends[index]))
    return found


def _nearest(old: Sequence[float], new: Sequence[float]) -> list[int]:
    """For each old step the new one whose noise level is nearest."""
    return [min(range(len(new)), key=lambda step: (abs(new[step] - level), step)) for level in old]


def _adapted_point(point: PlanPoint, places: Sequence[int], steps: int) -> PlanPoint | None:
    """A point with its full steps at these places; None where they do not fit."""
    if any(sum(schedule.mask) > steps for schedule in point.branches.values()):
        return None
    branches = {name: _moved(schedule, places, steps) for name, schedule in point.branches.items()}
    speedup = point.ideal_speedup * steps / point.steps
    return PlanPoint(point.full_steps, branches, ideal_speedup=speedup, adapted_from=point.adapted_from or point.steps)


def _moved(schedule: BranchSchedule, places: Sequence[int], steps: int) -> BranchSchedule:
    """A schedule with as many full steps, each near its place, none at the same step as another."""
    full = schedule.full
    wanted = [places[step] for step in full]
    wanted[0] = 0
    if len(wanted) > 1 and full[-1] == len(schedule.mask) - 1:
        wanted[-1] = steps - 1  # what is computed last stays last
    for index in range(1, len(wanted)):
        wanted[index] = max(wanted[index], wanted[index - 1] + 1)
    for index in reversed(range(len(wanted))):
        wanted[index] = min(wanted[index], steps - len(wanted) + index)
    computed = set(wanted)
    return BranchSchedule(tuple(int(step in computed) for step in range(steps)), schedule.rules)
