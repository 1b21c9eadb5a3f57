"""Counting steps from the names and timesteps of calls."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.engine.sessions.clock import Arrival, StepClock

Call = tuple[Hashable, float | None]


def steps(clock: StepClock, calls: Iterable[Call]) -> list[int]:
    return [enter(clock, branch, timestep) for branch, timestep in calls]


def enter(clock: StepClock, branch: Hashable, timestep: float | None) -> int:
    """The step of a call that is known to belong to the request."""
    arrives = clock.arrival(branch, timestep, None)
    return clock.enter(branch, timestep, begins_step=arrives is not Arrival.BRANCH)


def begins(clock: StepClock, branch: Hashable, timestep: float | None, limit: int | None = None) -> bool:
    return clock.arrival(branch, timestep, limit) is Arrival.REQUEST


@pytest.mark.parametrize("timesteps", [[3, 2, 1, 0], [0, 1, 2, 3], [None] * 4, [5, 5, 5, 5]])
def test_each_call_of_one_branch_is_a_step(timesteps: list[float | None]) -> None:
    assert steps(StepClock(), [("default", timestep) for timestep in timesteps]) == [0, 1, 2, 3]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "branches", [["cond", "uncond"], ["uncond", "cond"], ["a", "b", "c"], ["a", "b", "c", "d", "e"]]
)
def test_the_calls_of_all_branches_at_one_timestep_are_one_step(branches: list[str], known: bool) -> None:
    calls = [(branch, -float(step) if known else None) for step in range(4) for branch in branches]
    assert steps(StepClock(), calls) == [step for step in range(4) for _ in branches]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("order", ["cu", "uc"])
def test_an_unconditional_call_that_is_left_out_shifts_nothing(order: str, known: bool) -> None:
    plan = [order, order, "c", "c", order, "c", order]
    calls = [(branch, -float(step) if known else None) for step, called in enumerate(plan) for branch in called]
    expected = [step for step, called in enumerate(plan) for _ in called]
    assert steps(StepClock(), calls) == expected


@pytest.mark.parametrize("order", ["cu", "uc"])
def test_guidance_that_begins_late_shifts_nothing_where_timesteps_are_known(order: str) -> None:
    plan = ["c", "c", order, order, "c"]
    calls = [(branch, -float(step)) for step, called in enumerate(plan) for branch in called]
    assert steps(StepClock(), calls) == [step for step, called in enumerate(plan) for _ in called]


@given(
    plan=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, unique=True), min_size=1, max_size=12),
    rising=st.booleans(),
)
def test_with_timesteps_any_calls_may_be_left_out(plan: list[list[str]], rising: bool) -> None:
    sign = 1 if rising else -1
    clock = StepClock()
    for step, called in enumerate(plan):
        for branch in called:
            assert not begins(clock, branch, float(sign * step))
            assert enter(clock, branch, float(sign * step)) == step


def test_a_request_ends_exactly_after_its_last_step() -> None:
    clock = StepClock()
    for step in range(3):
        for branch in ("cond", "uncond"):
            assert not begins(clock, branch, None, limit=3)
            assert enter(clock, branch, None) == step
    assert begins(clock, "cond", None, limit=3)


def test_a_timestep_that_jumps_back_begins_a_request() -> None:
    falling, rising = StepClock(), StepClock()
    steps(falling, [("default", 9.0), ("default", 8.0)])
    steps(rising, [("default", 1.0), ("default", 2.0)])
    assert begins(falling, "default", 9.0)
    assert not begins(falling, "default", 7.0)
    assert begins(rising, "default", 1.0)
    assert not begins(rising, "default", 3.0)


def test_a_timestep_that_stays_is_a_step_but_not_at_the_beginning_of_a_run_whose_timesteps_move() -> None:
    clock = StepClock(direction=-1)
    enter(clock, "default", 9.0)
    assert begins(clock, "default", 9.0)  # an aborted run's first step, and the next run's
    enter(clock, "default", 8.0)
    assert not begins(clock, "default", 8.0)  # schedulers of second order call twice
    assert not begins(StepClock(direction=-1), "default", 9.0)
    still = StepClock()
    enter(still, "default", 9.0)
    assert not begins(still, "default", 9.0)


def test_unnamed_calls_take_turns() -> None:
    clock = StepClock()
    names = []
    for _ in range(4):
        names.append(clock.parity_branch(None, cfg_first=False))
        enter(clock, names[-1], None)
    assert names == ["cond", "uncond", "cond", "uncond"]
    assert clock.step == 1
    assert StepClock().parity_branch(None, cfg_first=True) == "uncond"


def test_turns_begin_anew_with_each_timestep() -> None:
    clock = StepClock()
    names = []
    for timestep in (5.0, 5.0, 4.0, 3.0, 3.0):  # the unconditional call of timestep 4 is left out
        names.append(clock.parity_branch(timestep, cfg_first=False))
        enter(clock, names[-1], timestep)
    assert names == ["cond", "uncond", "cond", "cond", "uncond"]
    assert clock.step == 2
