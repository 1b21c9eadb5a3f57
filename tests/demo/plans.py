"""Plans made of even masks, without a search."""

from __future__ import annotations

from typing import Any

from cache_dit import Plan, steps_mask
from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.engine.sessions.model_facts import parameter_dtype, scheduler_facts, weights_digest

QUALITY = Quality(40.0, 36.0, 35.0, 39.0, 41.0, 8, held_out=True)


def even_plan(steps: int, *full_steps: int, pipe: Any = None) -> Plan:
    """A plan with a point for each of these numbers of full steps; of a pipeline's model, where one is given."""
    points = tuple(PlanPoint(full, {"*": _even(steps, full)}, None, QUALITY, steps / full) for full in full_steps)
    facts = {}
    if pipe is not None:
        model = pipe.transformer
        facts = {"weights": weights_digest(model), "dtype": parameter_dtype(model), **scheduler_facts(pipe.scheduler)}
        facts["model_class"] = type(model).__name__
    return Plan(PlanScope(num_inference_steps=steps, **facts), points)


def _even(steps: int, full: int) -> BranchSchedule:
    mask = steps_mask(total_steps=steps, mask_policy="even", full_steps=full, warmup=1) or []
    return BranchSchedule(tuple(mask), ("taylor1*0.5",))
