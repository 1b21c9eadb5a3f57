"""The guard of a plan in the engine: what it measures on a model, what it changes, what it costs and what is told."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.engine.plans.guard import Guard, GuardCalibration, guard_for, optional_steps
from cache_dit.engine.plans.plan import BranchSchedule, Conditions, GapRule, Plan, PlanPoint
from cache_dit.engine.policies.plan import PlanPolicy
from cache_dit.engine.subclass import state_of
from cache_dit.errors import ConfigError
from cache_dit.planning.guard_run import Runner, calibrate_guard
from tests.engine.policies.test_policies_in_engine import counted_reads
from tests.kit.toys import Toy, denoise, frozen_run, line, loop, normal, same, stream_inputs

STEPS = 12
MASK, FASTER = "110010010101", "110000010001"
RULE = GapRule(1, 0.5)


def plan(mask: str = MASK, *more: str, **options: Any) -> Plan:
    """A plan of these masks, the first one chosen."""
    points = tuple(
        PlanPoint(each.count("1"), {"*": BranchSchedule(tuple(map(int, each)), (RULE,))}) for each in (mask, *more)
    )
    return Plan(Conditions(num_inference_steps=STEPS), points, chosen=mask.count("1"), **options)


def calibration(**changes: Any) -> GuardCalibration:
    """A guard that acts on nothing it measures on these toys."""
    values: dict[str, Any] = {
        "full_steps": MASK.count("1"),
        "scale": (1.0,) * STEPS,
        "pace": tuple(step / (STEPS - 1) for step in range(STEPS)),
        "offset": 0.0,
        "slope": 1.0,
        "target": -50.0,
        "margin": 0.0,
        "scores": tuple(map(float, range(20))),
        "psnrs": (30.0,) * 20,
    }
    return GuardCalibration(**{**values, **changes})


def guarded(toy: Toy, *more: str, **changes: Any) -> Plan:
    """A toy with the plan and its guard on."""
    made = plan(MASK, *more, guard=calibration(**changes)).with_guard(0.9)
    cache_dit.enable_cache(toy.adapter(), DBCacheConfig(plan=made))
    return made


def guard_of(toy: Toy) -> Guard:
    """The guard of the latest request."""
    session = state_of(toy).latest
    assert session.guard is not None
    return session.guard


def test_the_miss_of_a_full_step_is_that_of_the_prediction_it_would_have_had() -> None:
    toy = Toy("0")
    with torch.no_grad():
        steps = [normal(2, 6, 8, seed=step) for step in range(STEPS)]
        encoder = normal(2, 3, 8, seed=99)
        truth = []
        for hidden in steps:
            entered = toy.enter(hidden)
            state, text = entered, encoder
            for block in toy.all_blocks:
                state, text = toy.step(block, state, text)
            truth.append((state - entered).double())
        guarded(toy)
        for hidden in steps:
            toy(hidden, encoder)
    guard = guard_of(toy)
    guard.settle()
    full = [step for step, bit in enumerate(MASK) if bit == "1"]
    assert [(miss.last, miss.step) for miss in guard.misses] == [(1, 4), (4, 7), (7, 9), (9, 11)]
    for miss in guard.misses:
        known = [float(step) for step in full if step <= miss.last][-2:]
        weights = RULE.predictor.coefficients(known, float(miss.step))
        guess = sum(weight * truth[int(step)] for weight, step in zip(weights, known, strict=True))
        error = ((truth[miss.step] - guess) ** 2).sum((1, 2)) / (truth[miss.step] ** 2).sum((1, 2))
        assert miss.errors == pytest.approx(error.tolist(), rel=1e-4)


def test_a_guard_that_does_not_act_changes_nothing_bit_for_bit() -> None:
    toy = Toy("0")
    cache_dit.enable_cache(toy.adapter(), DBCacheConfig(plan=plan()))
    alone = denoise(toy, loop(STEPS))
    assert line(toy) == MASK.replace("1", "F").replace("0", "C")
    guarded(toy)
    assert same(denoise(toy, loop(STEPS)), alone)
    assert line(toy) == MASK.replace("1", "F").replace("0", "C")


def test_over_its_budget_the_rest_is_computed_and_the_summary_says_so() -> None:
    toy = Toy("0")
    guarded(toy, target=99.0)
    denoise(toy, loop(STEPS))
    assert line(toy) == "FFCCFFFFFFFF"
    stats = cache_dit.summary(toy, logging=False)[0]
    assert stats.inserted_steps == [5, 6, 8, 10]
    assert stats.dropped_steps == []
    assert stats.guard_level == 0.9
    assert stats.estimated_psnr is not None
    assert stats.promised_psnr == pytest.approx(stats.estimated_psnr - 18)  # the 19th of 20 scores


def test_far_under_its_budget_a_step_that_the_faster_plan_does_without_is_dropped() -> None:
    toy = Toy("0")
    made = guarded(toy, FASTER)
    assert optional_steps(made) == {4: 7, 9: 11}
    denoise(toy, loop(STEPS))
    assert cache_dit.summary(toy, logging=False)[0].dropped_steps == [9]  # nothing is known yet at step 4
    assert line(toy) == "FFCCFCCFCCCF"


def test_the_faster_plans_first_and_last_steps_are_not_optional() -> None:
    assert optional_steps(plan("100010000001", "100000000000")) == {4: 11}
    assert optional_steps(plan("100010000001")) == {}


@pytest.mark.parametrize("measured", [False, True])
def test_an_unguarded_plan_reads_nothing_and_a_guarded_one_once_for_each_measured_step(
    monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    toy = Toy("0")
    if measured:
        guarded(toy)
    else:
        cache_dit.enable_cache(toy.adapter(), DBCacheConfig(plan=plan()))
    with torch.no_grad():
        toy(*stream_inputs(), torch.tensor(1.0))  # whether blocks write into their input is found once
    cache_dit.refresh_context(toy)
    with counted_reads(monkeypatch) as reads:
        denoise(toy, [None] * STEPS)
        told = cache_dit.summary(toy, logging=False)[0].guard_reads
        # full steps 4, 7, 9 and 11 follow cached ones
        assert len(reads) == told == (4 if measured else 0)


def test_the_worst_sample_of_a_batch_decides() -> None:
    toy = Toy("0")
    inputs = [normal(2, 6, 8, seed=step) for step in range(STEPS)]
    for hidden in inputs:
        hidden[0] = inputs[0][0]  # the first sample never changes: it is predicted without error
    guarded(toy)
    with torch.no_grad():
        for hidden in inputs:
            toy(hidden, normal(2, 3, 8, seed=99))
    guard = guard_of(toy)
    guard.settle()
    easy, hard = guard.errors
    assert easy < 1e-10 < hard
    assert guard.calibration is not None
    assert guard.estimated_psnr == guard.calibration.estimate(hard)


def test_where_nothing_changes_nothing_is_missed() -> None:
    toy = Toy("0")
    guarded(toy)
    frozen_run(toy, stream_inputs(), STEPS)
    guard_of(toy).settle()
    assert max(guard_of(toy).errors) < 1e-10


@pytest.mark.parametrize(
    ("made", "level"), [(None, 0.9), (calibration(full_steps=3), 0.9), (calibration(scores=(), psnrs=()), 0.9)]
)
def test_a_plan_whose_guard_cannot_keep_its_word_is_refused(made: GuardCalibration | None, level: float) -> None:
    with pytest.raises(ConfigError, match=r"guard|too few"):
        guard_for(plan(guard=made).with_guard(level))


def weights_of(guard: Guard | None, times: list[float], target: float) -> list[float]:
    policy = PlanPolicy(DBCacheConfig(plan=plan()), num_inference_steps=STEPS, guard=guard)
    return policy.predictor.coefficients(times, target)


def test_after_an_inserted_step_no_line_is_drawn_further_than_planned() -> None:
    planned = weights_of(Guard(), [1.0, 4.0], 6.0)  # of the mask 110010010101
    assert planned == weights_of(None, [1.0, 4.0], 6.0) == pytest.approx([-1 / 3, 4 / 3])
    after = weights_of(Guard(), [4.0, 5.0], 6.0)
    assert weights_of(None, [4.0, 5.0], 6.0) == pytest.approx([-0.5, 1.5])
    assert after == pytest.approx([-1 / 3, 4 / 3]) and sum(after) == pytest.approx(1)


def test_where_a_step_was_dropped_the_rule_is_the_plans() -> None:
    assert (
        weights_of(Guard(), [1.0, 7.0], 8.0) == weights_of(None, [1.0, 7.0], 8.0) == pytest.approx([-1 / 12, 13 / 12])
    )


def test_a_plan_without_a_guard_asks_for_none() -> None:
    assert guard_for(plan()) is None


# -- calibrating


class Pipe:
    """A toy's loop as something that draws pictures: one for each number."""

    def __init__(self) -> None:
        self.transformer = Toy("0")

    def draw(self, prompt: Any, number: int) -> Any:
        last = denoise(self.transformer, [*loop(STEPS)], seed=100 + number)[-1]
        return np.clip(last.numpy() / 8 + 0.5, 0, 1)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    from cache_dit.planning import guard_run

    made = Pipe()
    enable, disable, found = cache_dit.enable_cache, cache_dit.disable_cache, guard_run.cached_transformers
    monkeypatch.setattr(guard_run, "enable_cache", lambda pipe, config: enable(pipe.transformer.adapter(), config))
    monkeypatch.setattr(guard_run, "disable_cache", lambda pipe: disable(pipe.transformer))
    monkeypatch.setattr(guard_run, "cached_transformers", lambda pipe: found(pipe.transformer))
    return made


def test_a_calibrated_guard_promises_what_its_held_out_pictures_keep(pipe: Pipe) -> None:
    seen: list[tuple[int, int]] = []
    made = calibrate_guard(
        pipe, plan(), range(18), draw=pipe.draw, progress=lambda done, runs: seen.append((done, runs))
    )
    assert seen == [(run, 36) for run in range(1, 37)]
    learned = made.guard
    assert learned is not None
    assert learned.full_steps == MASK.count("1")
    assert len(learned.scores) == len(learned.psnrs) == 9
    assert learned.promise() == min(learned.psnrs)  # 9 are just enough for 0.9
    assert not cache_dit.api.cached_transformers(pipe.transformer)
    runner = Runner(pipe, made, pipe.draw)
    for number in range(1, 18, 2):
        again = runner.guarded(number, number, learned)
        assert again.psnr >= again.estimated - learned.below() - 1e-9
        assert again.psnr in learned.psnrs


def test_a_calibrated_guard_runs(pipe: Pipe) -> None:
    made = calibrate_guard(pipe, plan(), range(18), draw=pipe.draw).with_guard(0.9)
    cache_dit.enable_cache(pipe.transformer.adapter(), DBCacheConfig(plan=made))
    pipe.draw(None, 50)
    stats = cache_dit.summary(pipe.transformer, logging=False)[0]
    assert stats.estimated_psnr is not None
    assert math.isfinite(stats.estimated_psnr)


def test_a_calibration_weighs_steps_by_what_the_plan_knows_of_them(pipe: Pipe) -> None:
    known = tuple(1.0 + step for step in range(STEPS))
    made = calibrate_guard(pipe, replace(plan(), sensitivities=known), range(18), draw=pipe.draw)
    assert made.guard is not None and made.guard.scale == known
    unknown = calibrate_guard(pipe, plan(), range(18), draw=pipe.draw)
    assert unknown.guard is not None and unknown.guard.scale != known


@pytest.mark.parametrize(("count", "level"), [(16, 0.9), (6, 0.5), (36, 0.95)])
def test_too_few_prompts_are_refused_before_anything_is_drawn(pipe: Pipe, count: int, level: float) -> None:
    def draw(prompt: Any, number: int) -> Any:
        raise AssertionError

    with pytest.raises(ConfigError, match=r"too few|prompts"):
        calibrate_guard(pipe, plan(), range(count), level=level, draw=draw)


def test_a_pipeline_is_called_with_the_arguments_that_the_plan_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def pipeline(prompt: Any, **options: Any) -> Any:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("cache_dit.planning.guard_run.disable_cache", lambda pipe: None)
    with pytest.raises(KeyboardInterrupt):
        calibrate_guard(pipeline, plan(), range(18), call={"guidance_scale": 4.5}, seed=3)
    assert seen[0]["guidance_scale"] == 4.5 and seen[0]["num_inference_steps"] == STEPS
    assert seen[0]["generator"].initial_seed() == 3
    with pytest.raises(ConfigError, match=r"call=.*None beside draw"):
        calibrate_guard(pipeline, plan(), range(18), draw=lambda prompt, number: None, call={"height": 8})


def test_a_plan_is_saved_with_its_guard(tmp_path: Any) -> None:
    made = replace(plan(), guard=calibration()).with_guard(0.9)
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
