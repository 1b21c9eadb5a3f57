"""Which numbers of full steps are raced for a target, with a model whose PSNR is a formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.errors import ConfigError
from cache_dit.planning.candidates import Candidate, Race
from cache_dit.planning.inputs import Targets
from cache_dit.planning.planner import _Planner, note_of
from cache_dit.planning.search import Objective, Schedule
from cache_dit.planning.trials import key_of, work_of

STEPS, RULES = 12, (GapRule(), GapRule(1, 0.5))


class Formula:
    """Stands in for `Trials`: the PSNR of a schedule is its objective's, shifted from prompt to prompt."""

    def __init__(self) -> None:
        features = np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 20)), axis=0)
        self.objective = Objective(features @ features.T, np.ones(STEPS), 1.0, RULES)
        self.items = list(range(8))
        self.steps = STEPS
        self.branches = ["None"]
        self.work = 0.0
        self.unit = 1.0
        self.seen: set[tuple[int, str]] = set()

    def psnr(self, branches: Any, item: int) -> float:
        if (item, key_of(branches)) not in self.seen:
            self.seen.add((item, key_of(branches)))
            self.work += work_of(branches, STEPS)
        schedule = Schedule(branches["*"].mask, branches["*"].rules)
        return float(60 - 10 * np.log10(self.objective.cost(schedule) + 1e-9) + item)


def planner(**target: float) -> _Planner:
    runs: Any = Formula()
    made = _Planner(runs, Targets(**target), RULES, 4, 0, None, None, None)
    made.race = Race(runs, [runs.objective], RULES, made.search, made.held)
    return made


@pytest.mark.parametrize("target", [44.0, 48.0, 52.0])
def test_the_fewest_full_steps_that_reach_a_quality_are_found(target: float) -> None:
    made = planner(target_psnr=target)
    made._reach(target)
    reached = {number: outcome.measured.mean >= target for number, outcome in made.outcomes.items()}
    fewest = min(number for number, good in reached.items() if good)
    assert not any(good for number, good in reached.items() if number < fewest)
    assert fewest == 2 or fewest - 1 in reached or made._forecast_psnr(fewest - 1) < target - 1


def test_a_quality_that_no_plan_reaches_is_refused_with_the_best() -> None:
    made = planner(target_psnr=99.0)
    with pytest.raises(ConfigError, match=r"target_psnr=99.*the best was \d+\.\d dB with 11 full steps"):
        made._reach(99.0)


def test_a_race_keeps_to_its_allowance_and_never_ends_below_its_first_proposal() -> None:
    made = planner(full_steps=5)
    runs: Any = made.trials
    first = made.race.proposals(5)[0]
    outcome = made._measure(5, 25.0)
    assert runs.work < 28
    everything = [*made.search, *made.held]
    assert made.race.mean(outcome.winner, everything) >= made.race.mean(first, everything)
    assert outcome.measured.held_out and outcome.measured.pictures == 4


def test_the_schedules_of_an_adapted_plan_are_tried_too() -> None:
    made = planner(full_steps=5)
    point = PlanPoint(5, {"*": BranchSchedule("111100000001", RULES[:1])})
    made.start = Plan(PlanScope(num_inference_steps=STEPS), (point,))
    key = Candidate.of_point(point, "start").key
    assert key not in [one.key for one in made.race.proposals(5)]
    made._measure(5, 25.0)
    assert key in made.race.known


def test_where_little_work_is_allowed_the_plan_says_so() -> None:
    made = planner(full_steps=5)
    assert "fewer than 6 schedules were tried" in note_of(made._measure(5, 0.0))
    made = planner(full_steps=5)
    assert "fewer than" not in note_of(made._measure(5, 60.0))


def test_the_curve_has_nine_points_from_two_thirds_to_a_sixth() -> None:
    made = planner()
    made.trials.steps = 28
    assert made._curve() == [19, 14, 12, 10, 9, 8, 7, 6, 5]
    made.points = [40]
    with pytest.raises(ConfigError, match="points=40"):
        made._curve()
