"""The search over schedules: costs, best paths, moves."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_dit.engine.plans.schedule import GapRule
from cache_dit.errors import ConfigError
from cache_dit.planning.search import Objective, Schedule, best_schedules, even, neighbours, plain

REUSE, LINE, DAMPED, BENT = GapRule(), GapRule(1), GapRule(1, 0.4), GapRule(2, 0.7)
RULES = (REUSE, DAMPED, LINE)


def walk(steps: int, seed: int = 0, size: int = 30) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.cumsum(np.cumsum(rng.normal(size=(steps, size)), axis=0) * 0.3 + rng.normal(size=(steps, size)), axis=0)


def objective(steps: int, rules: tuple[GapRule, ...] = RULES, kappa: float = 0.7, seed: int = 0) -> Objective:
    features = walk(steps, seed)
    weights = np.random.default_rng(seed + 1).uniform(0.5, 2, steps)
    return Objective(features @ features.T, weights, kappa, rules)


def by_definition(one: Objective, features: np.ndarray, schedule: Schedule) -> float:
    """The objective from the features themselves and the predictors that the engine uses."""
    energy = np.mean(np.sum(np.diff(features, axis=0) ** 2, axis=1))
    total = 0.0
    full: list[int] = []
    for step, computed in enumerate(schedule.mask):
        if computed:
            full.append(step)
            continue
        rule = schedule.rules[len(full) - 1]
        anchors = full[-(rule.order + 1) :]
        weights = np.array(rule.predictor.coefficients([float(place) for place in anchors], float(step)))
        error = features[step] - weights @ features[anchors]
        older = weights[:-1]
        amplified = older @ older + older.sum() ** 2
        total += one.weights[step] ** 2 * (error @ error + one.kappa * energy * amplified)
    return total


def every_schedule(one: Objective, full_steps: int) -> list[Schedule]:
    found = []
    for inner in itertools.combinations(range(1, one.steps - 1), full_steps - 2):
        full = (0, *inner, one.steps - 1)
        mask = tuple(int(step in full) for step in range(one.steps))
        best = None
        for rules in itertools.product(one.rules, repeat=full_steps - 1):
            schedule = Schedule(mask, (*rules, one.rules[0]))
            cost = one.cost(schedule)
            if best is None or cost < best.cost:
                best = Schedule(mask, schedule.rules, cost)
        assert best is not None
        found.append(best)
    return sorted(found, key=lambda schedule: schedule.cost)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_the_cost_is_that_of_the_definition(seed: int, data: st.DataObject) -> None:
    one = objective(9, (*RULES, BENT), seed=seed)
    inner = data.draw(st.lists(st.booleans(), min_size=7, max_size=7))
    mask = (1, *map(int, inner), 1)
    rules = tuple(data.draw(st.sampled_from(one.rules)) for _ in range(sum(mask)))
    schedule = Schedule(mask, rules)
    assert one.cost(schedule) == pytest.approx(by_definition(one, walk(9, seed), schedule), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(("rules", "full_steps"), [((REUSE, DAMPED), 5), ((REUSE, LINE, BENT), 4)])
def test_the_best_schedules_are_those_of_brute_force_at_12_steps(rules: tuple[GapRule, ...], full_steps: int) -> None:
    one = objective(12, rules)
    expected = every_schedule(one, full_steps)[:6]
    found = best_schedules(one, [full_steps], 6)[full_steps]
    assert [schedule.mask for schedule in found] == [schedule.mask for schedule in expected]
    assert [schedule.cost for schedule in found] == pytest.approx([schedule.cost for schedule in expected], rel=1e-7)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), full_steps=st.integers(2, 14), deep=st.booleans())
def test_the_best_are_sorted_distinct_and_cost_what_they_say(seed: int, full_steps: int, deep: bool) -> None:
    one = objective(14, (*RULES, BENT) if deep else RULES, seed=seed)
    found = best_schedules(one, [full_steps], 7)[full_steps]
    assert found
    assert len({schedule.mask for schedule in found}) == len(found)
    costs = [schedule.cost for schedule in found]
    assert costs == sorted(costs)
    for schedule in found:
        assert schedule.mask[0] == schedule.mask[-1] == 1
        assert sum(schedule.mask) == full_steps == len(schedule.rules)
        assert one.cost(schedule) == pytest.approx(schedule.cost, rel=1e-9, abs=1e-9)


def test_all_numbers_of_full_steps_come_from_one_search() -> None:
    one = objective(10)
    together = best_schedules(one, range(2, 11), 2)
    assert together == {number: best_schedules(one, [number], 2)[number] for number in range(2, 11)}


def test_kappa_charges_weights_on_older_steps() -> None:
    features = np.outer(np.arange(12.0), np.ones(4))  # a straight line: the line's rule makes no error at all
    free, charged = (Objective(features @ features.T, np.ones(12), kappa, (REUSE, LINE)) for kappa in (0.0, 10.0))
    assert LINE in best_schedules(free, [4])[4][0].rules
    assert set(best_schedules(charged, [4])[4][0].rules) == {REUSE}
    schedule = even(12, 4, LINE, warmup=2)
    assert free.cost(schedule) == pytest.approx(0, abs=1e-9)
    # E = 4; steps 2 … 5 from 0, 1: d = -1 … -4; 7, 8 then 9, 10 from gaps of 5: d = -k/5, squares twice
    full = schedule.full
    moved = [
        (step - newest) / (newest - older)
        for older, newest, following in zip(full, full[1:], full[2:], strict=False)
        for step in range(newest + 1, following)
    ]
    assert charged.cost(schedule) == pytest.approx(10 * 4 * sum(2 * one**2 for one in moved))


def test_all_triples_of_50_steps_are_scored_within_a_second() -> None:
    one = objective(50, (*RULES, BENT))
    start = time.process_time()
    assert len(one.gaps) == 49
    assert time.process_time() - start < 1


def test_numbers_that_cannot_be_are_refused() -> None:
    one = objective(6)
    with pytest.raises(ConfigError, match="full_steps=7"):
        best_schedules(one, [7])
    with pytest.raises(ConfigError, match="full_steps=1"):
        best_schedules(one, [1])
    with pytest.raises(ConfigError, match="orders 0 to 2"):
        objective(6, (GapRule(3),))
    with pytest.raises(ConfigError, match="gram"):
        Objective(np.eye(3), np.ones(4), 1.0, RULES)


def test_even_masks_have_the_full_steps_asked_for() -> None:
    for steps, full_steps, warmup in itertools.product((8, 28), (3, 5, 8), (1, 2, 3)):
        schedule = even(steps, full_steps, REUSE, warmup=warmup)
        assert sum(schedule.mask) == full_steps
        assert schedule.mask[-1] == 1
        assert all(schedule.mask[: min(warmup, full_steps - 1)])


def test_moves_keep_the_number_of_full_steps_and_the_ends() -> None:
    base = Schedule((1, 0, 1, 0, 0, 1), (REUSE, LINE, REUSE))
    moves = neighbours(base, RULES)
    assert len(set(moves)) == len(moves)
    assert base not in moves
    for move in moves:
        assert sum(move.mask) == 3 == len(move.rules)
        assert move.mask[0] == move.mask[-1] == 1
    assert Schedule((1, 1, 0, 0, 0, 1), (REUSE, LINE, REUSE)) in moves  # shifted, its rule with it
    assert Schedule(base.mask, (REUSE, DAMPED, REUSE)) in moves


def test_rules_that_make_no_difference_are_the_default() -> None:
    schedule = Schedule((1, 0, 1, 1, 0, 1), (LINE, LINE, LINE, LINE))
    assert plain(schedule, REUSE).rules == (REUSE, REUSE, LINE, REUSE)
