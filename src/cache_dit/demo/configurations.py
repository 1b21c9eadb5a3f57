"""The configurations that the demo compares: one table."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

from cache_dit.config.cache import DBCacheConfig
from cache_dit.config.calibrator import CalibratorConfig, TaylorSeerCalibratorConfig
from cache_dit.config.masks import steps_mask
from cache_dit.demo.plans import demo_plan, steps_planned
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.sessions.model_facts import scheduler_facts, transformer_facts
from cache_dit.errors import ConfigError, MissingModelError

logger = logging.getLogger(__name__)

#: The plan that those for other numbers of steps are adapted from.
_PLANNED_STEPS = 28
#: The ideal speed-ups that a plan is chosen for.
_SPEEDUPS = (2.0, 4.0)


@dataclass(frozen=True)
class Configuration:
    """One column of the demo.

    Args:
        name: short, for tables and files.
        explanation: one or two sentences for people.
        cache: when to compute; a plan also says how skipped steps are predicted; None: no cache at all.
        calibrator: how skipped steps are predicted; None: as the plan says, else by reuse of the last computed step.
    """

    name: str
    explanation: str
    cache: DBCacheConfig | Plan | None = None
    calibrator: CalibratorConfig | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON; of a plan its chosen point alone, as `Plan.of` reads it."""
        calibrator = None if self.calibrator is None else asdict(self.calibrator)
        return {"name": self.name, "explanation": self.explanation, "cache": self._cache(), "calibrator": calibrator}

    def _cache(self) -> dict[str, Any] | None:
        if self.cache is None:
            return None
        if isinstance(self.cache, Plan):
            return {"plan": replace(self.cache, points=(self.cache.point,)).as_dict()}
        return {**asdict(self.cache), "cache_type": str(self.cache.cache_type)}


UNCACHED = Configuration("no cache", "Every step runs every block: the picture that the others are compared with.")


def plan_for(pipe: Any, steps: int) -> Plan | None:
    """The demo model's plan for pictures of so many steps, shipped or adapted, with no point chosen.

    Args:
        pipe: the pipeline that is to draw them.
        steps: denoising steps of a picture.

    Returns:
        The plan, or None, with a line of log, where the pipeline's model is another one, or no plan can be had.
    """
    try:
        plan = demo_plan(steps) if steps in steps_planned() else demo_plan(_PLANNED_STEPS).adapt(steps)
        model = {"model_class": type(pipe.transformer).__name__, **transformer_facts(plan, pipe.transformer)}
        plan.check(**model, **scheduler_facts(pipe.scheduler))
    except (ConfigError, MissingModelError) as error:
        logger.warning("cache_dit: the columns with plans are left out: %s", error)
        return None
    return plan


def configurations(steps: int, plan: Plan | None = None) -> tuple[Configuration, ...]:
    """What the demo compares for pictures of so many steps, the uncached one first.

    Args:
        steps: denoising steps of a picture.
        plan: the model's plan for them, see `plan_for`; None: no columns with plans.
    """
    return UNCACHED, *([] if plan is None else _planned(plan)), *_masked(steps), *_measured(steps)


def _planned(plan: Plan) -> list[Configuration]:
    """A column for each of the speed-ups that a point of the plan reaches, each point once."""
    columns: dict[int | None, Configuration] = {}
    for speedup in _SPEEDUPS:
        try:
            chosen = plan.select(speedup=speedup)
        except ConfigError:  # so few steps that no point is as fast
            continue
        columns[chosen.chosen] = Configuration(f"plan {speedup:g}×", _told(chosen), chosen)
    return list(columns.values())


def _told(plan: Plan) -> str:
    """What is to be said of a plan's chosen point."""
    point = plan.point
    sentences = [
        f"{point.full_steps} of {point.steps} steps; which ones, and how the others are predicted, was found for this "
        "model by real runs, and nothing is measured while a picture is drawn"
    ]
    sentences.append(f"Quality: {point.told}")
    sentences += [note[0].upper() + note[1:] for note in (plan.note, point.note) if note]
    return "".join(f"{sentence}. " for sentence in sentences).rstrip()


def _masked(steps: int) -> list[Configuration]:
    """Masks made without a look at the model: a skipped step runs no block."""

    def static(mask: list[int] | None) -> DBCacheConfig:
        return DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static")

    even = steps_mask(total_steps=steps, mask_policy="even", full_steps=max(1, steps // 4), warmup=1)
    return [
        Configuration(
            "even mask",
            f"{sum(even or [])} of {steps} steps, the same for any model: evenly spaced from the first to the last; "
            "the others are predicted by Taylor's polynomial of order 1, damped by half.",
            static(even),
            TaylorSeerCalibratorConfig(damping=0.5),
        ),
        Configuration(
            "preset mask",
            'The preset "fast" says which steps to compute, most of them early; Taylor\'s polynomial predicts the '
            "others.",
            static(steps_mask(total_steps=steps, mask_policy="fast")),
            TaylorSeerCalibratorConfig(),
        ),
    ]


def _measured(steps: int) -> list[Configuration]:
    """Thresholds: the first block always runs, and its change decides."""

    def threshold(value: float, warmup: int) -> DBCacheConfig:
        return DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=value,
            max_warmup_steps=max(1, warmup),
        )

    return [
        Configuration(
            "threshold",
            "A step is skipped when the first block changed by less than 10 % since the last computed step; Taylor's "
            "polynomial predicts what the skipped blocks would have added.",
            threshold(0.1, round(steps / 7)),
            TaylorSeerCalibratorConfig(),
        ),
        Configuration(
            "threshold, fast",
            "The same with 40 %, and half as many steps that are computed first: so fast that pictures change visibly.",
            threshold(0.4, round(steps / 14)),
            TaylorSeerCalibratorConfig(),
        ),
    ]
