"""``cache_dit.plan``: from a model and some prompts to a plan."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cache_dit.api import cached_transformers
from cache_dit.config.base import bad_value, check_integer
from cache_dit.engine.plans.call import recorded
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.engine.plans.schedule import GapRule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.errors import ConfigError
from cache_dit.planning.candidates import Candidate, Outcome, Race, quality
from cache_dit.planning.checkpoint import Store
from cache_dit.planning.gram import MEMORY_LIMIT, Array, combined
from cache_dit.planning.inputs import Targets, caller, check_start, held_out, items_of, settings_of
from cache_dit.planning.search import Forecast, Objective, best_schedules
from cache_dit.planning.sensitivity import Probed, probe
from cache_dit.planning.trials import Trials

logger = logging.getLogger(__name__)

RULES = (GapRule(), GapRule(1, 0.3), GapRule(1, 0.5), GapRule(1, 0.75), GapRule(1))
"""The rules that are searched where none are given: reuse, and Taylor's line, damped and not."""

SHARES = (0.68, 0.5, 0.43, 0.36, 0.32, 0.285, 0.25, 0.21, 0.18)
"""The shares of full steps that the curve has points at: 19, 14, 12, 10, 9, 8, 7, 6 and 5 of 28."""

MAX_RUNS = 57.0
"""Uncached runs' worth of work for one target; a curve takes `MAX_RUNS_PER_POINT` more for each further point.

What is not a block's work makes about 60 runs' time of it.
"""

MAX_RUNS_PER_POINT = 20.0

_FEW_TRIED = 6
"""Fewer schedules than these, run for real, are hardly a search."""

_MARGIN = 0.3
"""How much above a target a forecast must be for its number of full steps to be tried first, in dB."""


def plan(
    pipe_or_transformer: Any,
    prompts: Sequence[Any] | None = None,
    num_inference_steps: int = 28,
    *,
    run: Callable[..., Any] | None = None,
    target_psnr: float | None = None,
    speedup: float | None = None,
    full_steps: int | None = None,
    points: Sequence[int] | None = None,
    predictors: Sequence[Any] = RULES,
    start: Plan | None = None,
    call: Mapping[str, Any] | None = None,
    budget_s: float | None = None,
    max_runs: float | None = None,
    holdout: float | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = True,
) -> Plan:
    """Find out which steps to compute and how to predict the others, for a quality, a speed-up, or the whole curve.

    One uncached run for each prompt, a few probes, then candidates are tried in real runs (docs/plan.md has the
    method). Half of the prompts are kept apart: the quality that the plan states comes from them.

    Args:
        pipe_or_transformer: a pipeline with one transformer, or the transformer; no cache may be on.
        prompts: at least one, better 16 or more, like those that the plan is for. With ``run`` anything may stand for
            a prompt: each is passed to it.
        num_inference_steps: denoising steps of a run.
        run: makes one run, ``run(prompt)``, or ``run()`` where there are no prompts, and returns the final picture
            or latent as a picture, array, tensor or pipeline output; its noise must be seeded. None: the pipeline is
            called with the prompt and a seed of its own.
        target_psnr: the mean PSNR to reach, in dB, with as few full steps as that takes.
        speedup: the ideal speed-up to reach: block calls without over with the plan.
        full_steps: the number of full steps.
        points: for the curve (no target): its numbers of full steps; None: nine, from two thirds to a sixth of all.
        predictors: the rules to choose from: `GapRule`s, their names, or ``("taylor", order, damping)``.
        start: a plan for as many steps whose schedules are tried too, e.g. what ``Plan.adapt`` estimated.
        call: further arguments of the pipeline's call, e.g. ``{"guidance_scale": 4.5, "height": 512}``. The plan
            records them, and those that are left at their defaults: it is refused where a run's call differs.
        budget_s: seconds that the runs may take, about; the uncached ones and the probes are made in any case.
        max_runs: the same as so many uncached runs; None: 57 for a target, 20 more for each further point.
        holdout: the share of the prompts kept apart, from 0 to 0.9; None: a half, and none below 4 prompts.
        seed: of the noise: the prompt at place i has seed + i.
        checkpoint: a file that keeps what was found, so that the same call goes on after an interruption.
        memory_limit: bytes of one run's features in memory; what is beyond lies in a temporary file.
        progress: show a progress bar.

    Returns:
        A plan with a point for each number of full steps that was tried, and, where a target was given, the one that
        meets it chosen. ``plan.cost`` says what it took.

    Raises:
        ConfigError: there are two targets, no prompts, several transformers, a cache that is on, runs that are not
            repeatable or have another number of steps, or a target that no plan reaches (the message has the best).
    """
    check_integer("num_inference_steps", num_inference_steps, minimum=4)
    targets = Targets(target_psnr, speedup, full_steps).checked(num_inference_steps)
    check_start(start, num_inference_steps)
    rules = tuple(dict.fromkeys(GapRule.of(rule) for rule in predictors))
    items = items_of(prompts, run)
    if cached_transformers(pipe_or_transformer):
        raise ConfigError("a cache is on: call cache_dit.disable_cache first, the planner puts its own on")
    held = held_out(len(items), holdout)
    made = caller(pipe_or_transformer, run, prompts, num_inference_steps, seed, call or {})
    store = Store(checkpoint, settings_of(items, num_inference_steps, rules, call, holdout, seed))
    with _bar(progress) as note, contextlib.closing(store):
        trials = Trials(pipe_or_transformer, made, items, num_inference_steps, store, note, memory_limit, call or {})
        planner = _Planner(trials, targets, rules, held, seed, points, budget_s, max_runs, start)
        found = planner.plan()
    logger.info("cache_dit: planned:\n%s", found)
    return found


class _Planner:
    """One planning."""

    def __init__(
        self,
        trials: Trials,
        targets: Targets,
        rules: tuple[GapRule, ...],
        held: int,
        seed: int,
        points: Sequence[int] | None,
        budget_s: float | None,
        max_runs: float | None,
        start: Plan | None = None,
    ) -> None:
        self.trials, self.targets, self.rules, self.seed = trials, targets, rules, seed
        count = len(trials.items)
        self.search, self.held = range(count - held), range(count - held, count)
        self.points, self.start = points, start
        self.budget_s, self.max_runs = budget_s, max_runs
        self.outcomes: dict[int, Outcome] = {}

    def plan(self) -> Plan:
        """Do it all."""
        grams = [self.trials.gram(index) for index in self.search]
        for index in self.held:
            self.trials.reference(index)
        self.trials.check_repeats(0)
        probed = probe(self.trials, grams)
        self.race = self._race(grams, probed)
        number = self.targets.number(self.trials.steps)
        if number is not None:
            self._measure(number, self._left(1))
        elif self.targets.target_psnr is not None:
            self._reach(self.targets.target_psnr)
        else:
            numbers = self._curve()
            for place, one in enumerate(numbers):
                self._measure(one, self._left(len(numbers)) / (len(numbers) - place))
        return self._finished(probed)

    def _race(self, grams: Sequence[Array], probed: Probed) -> Race:
        mixed = [combined(gram, probed.rho) for gram in grams]
        scales = [len(gram) / np.trace(gram) for gram in mixed]
        mean: Array = np.mean([gram * scale for gram, scale in zip(mixed, scales, strict=True)], axis=0)
        self.mixed = [gram * np.mean(scales) for gram in mixed]
        weights = weightings(probed.sensitivity, self.trials.facts["sigmas"])
        first = next(iter(weights))
        variants = [(first, 0.3), (first, 1.0), *((name, 0.3) for name in weights), (first, 3.0)]
        variants += [(name, 1.0) for name in weights]
        objectives = [
            Objective(mean, weights[name], kappa, self.rules, f"{name}, kappa {kappa:g}")
            for name, kappa in dict.fromkeys(variants)
        ]
        return Race(self.trials, objectives, self.rules, self.search, self.held, self.seed)

    def _left(self, points: int) -> float:
        """Uncached runs' worth of work that is left."""
        allowed = MAX_RUNS + MAX_RUNS_PER_POINT * (points - 1) if self.max_runs is None else self.max_runs
        if self.budget_s is not None:
            allowed = min(allowed, self.budget_s / self.trials.unit)
        return allowed - self.trials.work

    def _measure(self, number: int, allowance: float) -> Outcome:
        known = () if self.start is None else self.start.points
        more = [Candidate.of_point(point, "start") for point in known if point.full_steps == number]
        self.outcomes[number] = self.race.run(number, allowance, more)
        return self.outcomes[number]

    def _curve(self) -> list[int]:
        steps = self.trials.steps
        if self.points is None:
            return sorted({max(2, round(share * steps)) for share in SHARES}, reverse=True)
        for one in self.points:
            check_integer("points", one, minimum=2)
            if one > steps:
                raise bad_value("points", one, f"at most num_inference_steps={steps}")
        return sorted(set(self.points), reverse=True)

    def _reach(self, target: float) -> None:
        """Race where the target is expected to be reached, then at one full step more or less, as real runs say."""
        steps = self.trials.steps
        costs = best_schedules(self.race.objectives[0], range(2, steps))
        for share in (2, 3, 5):
            one = max(2, min(steps - 1, round(steps / share)))
            self.race.mean(Candidate(costs[one][0], "scout"), self.search[:2])
        number = self._expected(target + _MARGIN)
        allowance = 0.55 * self._left(1)
        while True:
            reached = self._measure(number, allowance).measured.mean >= target
            step = -1 if reached else 1
            following = number + step
            if following in self.outcomes or not 2 <= following < steps:
                break
            if reached and self._forecast_psnr(following) < target - 1.0:
                break
            number = following
            allowance = 0.6 * max(self._left(1), 0.0)
        best = max(self.outcomes.values(), key=lambda one: one.measured.mean)
        if best.measured.mean < target:
            raise bad_value(
                "target_psnr",
                target,
                f"what a plan of {steps} steps reaches; the best was {best.measured.mean:.1f} dB with "
                f"{max(self.outcomes)} full steps",
            )

    def _expected(self, target: float) -> int:
        """The fewest full steps whose forecast meets a target."""
        numbers = range(2, self.trials.steps)
        return next((one for one in numbers if self._forecast_psnr(one) >= target), self.trials.steps - 1)

    def _forecast_psnr(self, number: int) -> float:
        forecast = self.race.forecast()
        return forecast.at(best_schedules(forecast.objective, [number])[number][0].cost)

    def _finished(self, probed: Probed) -> Plan:
        forecast = self.race.forecast()
        found = {number: self._point(number, outcome) for number, outcome in self.outcomes.items()}
        kept = _pareto(found)
        note = self._note(len(found) - len(kept))
        made = Plan(self._scope(), tuple(kept), cost=self._cost(forecast, probed), note=note)
        number = self.targets.number(self.trials.steps)
        if number is not None:
            return made.select(full_steps=number)
        if self.targets.target_psnr is not None:
            return made.select(target_psnr=self.targets.target_psnr)
        return made

    def _point(self, number: int, outcome: Outcome) -> PlanPoint:
        winner = outcome.winner
        return PlanPoint(
            full_steps=number,
            branches=winner.branches,
            predicted=self._predicted(winner),
            measured=replace(outcome.measured, lpips=self.trials.lpips(winner.branches, self.held or self.search)),
            ideal_speedup=round(self.trials.steps / number, 4),
            measured_speedup=self.trials.speedup(winner.branches),
            note=note_of(outcome),
        )

    def _predicted(self, winner: Candidate) -> Quality:
        """What pictures that were not drawn yet are expected to have: those of the search, or else the forecast."""
        if self.held:
            return quality([self.trials.psnr(winner.branches, item) for item in self.search], self.seed, held_out=False)
        forecast = self.race.forecast()
        expected = quality(forecast.psnr(winner.schedule, self.mixed), self.seed, held_out=False)
        margin = 2 * forecast.spread
        return replace(expected, low=expected.mean - margin, high=expected.mean + margin)

    def _scope(self) -> PlanScope:
        facts = {name: fact for name, fact in self.trials.facts.items() if name != "shares"}
        rules = tuple(rule.name for rule in self.rules)
        call = recorded(self.trials.calls, self.trials.asked)
        return PlanScope(num_inference_steps=self.trials.steps, predictors=rules, call=call, **facts)

    def _cost(self, forecast: Forecast, probed: Probed) -> dict[str, Any]:
        return {
            **self.trials.cost(),
            "objective": forecast.objective.name,
            "forecast_error_db": round(forecast.spread, 2),
            "branch_weights": {name: round(share, 3) for name, share in zip(probed.branches, probed.rho, strict=True)},
            "prompts": {"search": len(self.search), "held_out": len(self.held)},
        }

    def _note(self, dropped: int) -> str:
        notes = []
        if not self.held:
            notes.append(f"{len(self.search)} prompts: none kept apart, so the quality is of prompts the search saw")
        if dropped:
            notes.append(f"{dropped} points left out: fewer full steps gave more")
        return "; ".join(notes)


def note_of(outcome: Outcome) -> str:
    """What to know of one point."""
    few = f"fewer than {_FEW_TRIED} schedules were tried" if outcome.tried < _FEW_TRIED else ""
    tied = "too few prompts to tell the best two schedules apart" if outcome.tied else ""
    return "; ".join(filter(None, (few, tied)))


def weightings(sensitivity: Sequence[float], sigmas: Sequence[float] | None) -> dict[str, Array]:
    """What an error at each step may count, by name, each with mean 1.

    Args:
        sensitivity: of `sensitivity.probe`.
        sigmas: noise levels, one per step; the one after the last is 0. None: unknown.

    Returns:
        The change of the noise level over the step, the sensitivity, and the geometric mean of both; the sensitivity
        alone where the levels are not known.
    """
    measured = np.asarray(sensitivity, dtype=np.float64)
    measured = measured / measured.mean()
    if sigmas is None or len(sigmas) != len(measured):
        return {"sensitivity": measured}
    moved = np.abs(np.diff(np.asarray(sigmas, dtype=np.float64), append=0.0))
    if not moved.all():
        return {"sensitivity": measured}
    moved = moved / moved.mean()
    both = np.sqrt(moved * measured)
    return {"noise level": moved, "both": both / both.mean(), "sensitivity": measured}


def _pareto(found: Mapping[int, PlanPoint]) -> list[PlanPoint]:
    """The points that no one with fewer full steps equals."""
    kept: list[PlanPoint] = []
    for number in sorted(found):
        quality_of = _mean(found[number].measured)
        if not kept or quality_of > _mean(kept[-1].measured):
            kept.append(found[number])
    return kept


def _mean(one: Quality | None) -> float:
    return float("-inf") if one is None else one.mean


@contextlib.contextmanager
def _bar(progress: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar that counts runs; how many there will be is known only as they are made."""
    if not progress:
        yield lambda what: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as bar:
        task = bar.add_task("planning")
        count = 0

        def note(what: str) -> None:
            nonlocal count
            count += 1
            bar.update(task, description=f"planning: run {count}, {what}")

        yield note
