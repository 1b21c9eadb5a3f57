"""When to compute. F is a computed step and C a cached one, as in `summary`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.caching.masks import steps_mask
from cache_dit.caching.policy import Action, DBCachePolicy, why_no_hit
from cache_dit.config import DBCacheConfig

LOW = 0.01  # a diff below the default threshold of 0.08

Diff = float | Callable[[int], float]


def step_once(policy: DBCachePolicy, step: int, diff: float) -> None:
    """One step, as the engine takes it."""
    action = policy.decide(step)
    cached = action is Action.SKIP or (action is Action.MEASURE and policy.accept(diff))
    policy.commit(step, computed=not cached)


def run(policy: DBCachePolicy, steps: int | Iterable[int], diff: Diff = LOW) -> str:
    """Run these steps, each with this diff or the one that the function gives for it, and tell what was done."""
    for step in range(steps) if isinstance(steps, int) else steps:
        step_once(policy, step, diff(step) if callable(diff) else diff)
    return "".join("F" if record.computed else "C" for record in policy.records)


def trace(steps: int, diff: Diff = LOW, *, num_inference_steps: int | None = None, **options: Any) -> str:
    return run(DBCachePolicy(DBCacheConfig(**options), num_inference_steps=num_inference_steps), steps, diff)


# The published traces, and those that the options' meaning demands


@pytest.mark.parametrize(
    ("steps", "options", "expected"),
    [
        (6, {"max_warmup_steps": 2}, "FFCCCC"),
        (6, {"max_warmup_steps": 2, "num_inference_steps": 6}, "FFCCCC"),
        (12, {"max_warmup_steps": 8, "warmup_interval": 2}, "FCFCFCFCCCCC"),
        (8, {"max_warmup_steps": 2, "max_cached_steps": 3}, "FFCCCFFF"),
        (5, {"max_warmup_steps": 0}, "FCCCC"),
        (9, {"max_warmup_steps": 1, "max_continuous_cached_steps": 1}, "FCFCFCFCF"),
        (9, {"max_warmup_steps": 1, "max_continuous_cached_steps": 3}, "FCCCFCCCF"),
        (4, {"max_warmup_steps": 0, "max_continuous_cached_steps": 0}, "FFFF"),
        (4, {"max_warmup_steps": 0, "max_cached_steps": 0}, "FFFF"),
        (4, {"max_warmup_steps": 0, "residual_diff_threshold": 0}, "FFFF"),
    ],
)
def test_traces(steps: int, options: dict[str, Any], expected: str) -> None:
    assert trace(steps, **options) == expected


SCM = [1, 1, 0, 0, 1, 0, 0, 1]


def test_a_static_mask_is_followed_without_a_measurement() -> None:
    config = DBCacheConfig(
        steps_computation_mask=SCM, steps_computation_policy="static", residual_diff_threshold=1e-9, max_cached_steps=1
    )
    policy = DBCachePolicy(config)
    assert run(policy, 8, math.nan) == "FFCCFCCF"
    assert policy.diffs == {}
    assert not policy.measures


def test_a_dynamic_mask_allows_and_the_threshold_decides() -> None:
    assert trace(8, steps_computation_mask=SCM, residual_diff_threshold=1e-9) == "FFFFFFFF"
    assert trace(8, steps_computation_mask=SCM) == "FFCCFCCF"
    assert trace(8, lambda step: 0.5 if step == 5 else LOW, steps_computation_mask=SCM) == "FFCCFFCF"


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_steps_past_the_end_of_a_mask_are_computed(policy: str) -> None:
    assert trace(6, steps_computation_mask=[1, 0, 0], steps_computation_policy=policy) == "FCCFFF"


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_mask_that_begins_with_zero_computes_that_step_anyway(policy: str) -> None:
    assert trace(4, steps_computation_mask=[0, 0, 1, 0], steps_computation_policy=policy) == "FCFC"


def test_a_mask_shortens_the_warmup_to_its_leading_ones() -> None:
    assert trace(6, max_warmup_steps=8, steps_computation_mask=[1, 1, 0, 0, 0, 1]) == "FFCCCF"
    assert trace(6, max_warmup_steps=1, steps_computation_mask=[1, 1, 0, 0, 0, 1]) == "FFCCCF"


def test_the_first_step_that_a_branch_sees_is_computed_whatever_its_number() -> None:
    assert run(DBCachePolicy(DBCacheConfig(max_warmup_steps=2)), range(5, 9)) == "FCCC"


def test_a_request_shorter_than_its_warmup_and_two_steps_runs_without_the_cache() -> None:
    assert trace(5, num_inference_steps=5, max_warmup_steps=4, warmup_interval=2) == "FFFFF"
    assert trace(6, num_inference_steps=6, max_warmup_steps=4, warmup_interval=2) == "FCFCCC"
    config = DBCacheConfig(max_warmup_steps=4, num_inference_steps=5)
    assert run(DBCachePolicy(config), 6) == "FFFFFF"
    assert run(DBCachePolicy(config, num_inference_steps=6), 6) == "FFFFCC"


def test_a_static_plan_is_followed_however_short_the_request() -> None:
    options = {"steps_computation_mask": [1, 1, 0, 1], "num_inference_steps": 3}
    assert trace(3, steps_computation_policy="static", **options) == "FFC"
    assert trace(3, steps_computation_policy="dynamic", **options) == "FFF"


def test_a_high_diff_returns_the_count_of_cached_steps_in_a_row_to_zero() -> None:
    spike = {3: 0.5}
    assert trace(9, lambda step: spike.get(step, LOW), max_warmup_steps=1, max_continuous_cached_steps=3) == "FCCFCCCFC"


def test_the_accumulated_diff_is_never_above_its_limit_and_returns_to_zero_at_a_computed_step() -> None:
    options = {"max_warmup_steps": 1, "max_accumulated_residual_diff_threshold": 0.125}
    assert trace(10, 0.0625, **options) == "FCCFCCFCCF"
    assert trace(4, 0.0625, max_warmup_steps=1, max_accumulated_residual_diff_threshold=0) == "FCCC"


def test_a_step_at_the_threshold_is_computed() -> None:
    assert trace(3, 0.08, max_warmup_steps=1) == "FFF"
    assert trace(3, math.nextafter(0.08, 0), max_warmup_steps=1) == "FCC"


def test_a_threshold_of_one_skips_without_measuring() -> None:
    policy = DBCachePolicy(DBCacheConfig(max_warmup_steps=1, residual_diff_threshold=1.0))
    assert run(policy, 4, math.nan) == "FCCC"
    assert policy.diffs == {}
    assert not policy.measures


def test_a_threshold_of_one_with_an_accumulated_limit_measures_for_the_limit() -> None:
    config = DBCacheConfig(max_warmup_steps=1, residual_diff_threshold=1.0, max_accumulated_residual_diff_threshold=3.0)
    policy = DBCachePolicy(config)
    assert policy.measures
    assert run(policy, 6, 1.5) == "FCCFCC"


@pytest.mark.parametrize("diff", [math.nan, math.inf])
def test_a_diff_that_is_not_finite_is_a_miss_and_the_run_goes_on(diff: float) -> None:
    policy = DBCachePolicy(DBCacheConfig(max_warmup_steps=1, max_accumulated_residual_diff_threshold=1.0))
    assert run(policy, 5, lambda step: diff if step == 2 else LOW) == "FCFCC"
    assert policy.records[2].why == "nonfinite"
    assert policy.diffs == {1: LOW, 3: LOW, 4: LOW}


# What the engine reports


def test_records_say_what_was_done_and_why() -> None:
    policy = DBCachePolicy(DBCacheConfig(max_warmup_steps=2, max_continuous_cached_steps=1))
    run(policy, 5, lambda step: 0.5 if step == 4 else LOW)
    assert [tuple(record) for record in policy.records] == [
        (0, True, None, "first"),
        (1, True, None, "warmup"),
        (2, False, LOW, "hit"),
        (3, True, None, "max_continuous"),
        (4, True, 0.5, "threshold"),
    ]
    assert (policy.computed_steps, policy.cached_steps) == ([0, 1, 3, 4], [2])
    assert policy.diffs == {2: LOW, 4: 0.5}


def test_a_skip_that_the_engine_turned_into_a_compute_counts_as_one() -> None:
    policy = DBCachePolicy(DBCacheConfig(max_warmup_steps=1, max_continuous_cached_steps=2))
    run(policy, 2)
    policy.decide(2)
    policy.commit(2, computed=True, why="shape")
    assert policy.records[-1].why == "shape"
    assert run(policy, range(3, 6)) == "FCFCCF"


def test_a_decision_that_was_never_carried_out_leaves_nothing_behind() -> None:
    policy = DBCachePolicy(DBCacheConfig(max_warmup_steps=0))
    run(policy, 1)
    policy.decide(1)
    policy.accept(LOW)
    policy.decide(1)
    policy.commit(1, computed=True, why="shape")
    assert policy.records[-1].diff is None


@pytest.mark.parametrize(
    ("options", "measures"),
    [
        ({}, True),
        ({"residual_diff_threshold": 0.0}, False),
        ({"max_cached_steps": 0}, False),
        ({"max_continuous_cached_steps": 0}, False),
        ({"steps_computation_mask": [1, 1, 1]}, False),
        ({"steps_computation_mask": [1, 0, 1]}, True),
        ({"num_inference_steps": 9}, False),
        ({"num_inference_steps": 10}, True),
    ],
)
def test_measures_tells_whether_a_measurement_can_ever_be_asked_for(options: dict[str, Any], measures: bool) -> None:
    policy = DBCachePolicy(DBCacheConfig(**options))
    assert policy.measures == measures
    actions = []
    for step in range(12):
        actions.append(policy.decide(step))
        policy.commit(step, computed=True)
    assert (Action.MEASURE in actions) == measures


# Why nothing was cached


@pytest.mark.parametrize(
    ("steps", "diff", "options", "sentence"),
    [
        (12, 0.2, {}, "residual_diff_threshold=0.08 is not above the smallest diff seen, 0.2; pass a larger one."),
        (12, LOW, {"residual_diff_threshold": -1}, "residual_diff_threshold=-1 caches nothing; pass a value above 0."),
        (6, LOW, {}, "The warm-up (8 steps) leaves none of the 6 steps to cache; pass a smaller max_warmup_steps."),
        (
            6,
            LOW,
            {"num_inference_steps": 6},
            "The request is shorter than its warm-up of 8 steps plus 2; pass a smaller max_warmup_steps.",
        ),
        (12, math.nan, {}, "The diff was NaN or infinite in 4 of 12 steps."),
        (
            12,
            LOW,
            {"steps_computation_mask": [1] * 12},
            "steps_computation_mask says 1, or has ended, at 4 of 12 steps; pass one with zeros.",
        ),
        (12, LOW, {"max_cached_steps": 0}, "max_cached_steps=0 allows no cached step."),
        (12, LOW, {"max_continuous_cached_steps": 0}, "max_continuous_cached_steps=0 allows no cached step."),
        (
            12,
            LOW,
            {"max_accumulated_residual_diff_threshold": 0.005},
            "The smallest diff seen, 0.01, is above max_accumulated_residual_diff_threshold=0.005.",
        ),
    ],
)
def test_a_run_without_a_hit_explains_itself(steps: int, diff: float, options: dict[str, Any], sentence: str) -> None:
    config = DBCacheConfig(**options)
    policy = DBCachePolicy(config)
    run(policy, steps, diff)
    assert policy.cached_steps == []
    assert why_no_hit(policy.records, config) == sentence


@pytest.mark.parametrize(
    ("why", "sentence"),
    [
        ("shape", "The shape, dtype or device of the hidden states changed before 3 of 4 steps."),
        (
            "no_middle",
            "Fn_compute_blocks=8 and Bn_compute_blocks=0 leave no block between them to skip; pass smaller ones.",
        ),
        ("moon", "3 of 4 steps were computed for the reason 'moon'."),
    ],
)
def test_the_engines_own_reasons_are_told_too(why: str, sentence: str) -> None:
    config = DBCacheConfig(max_warmup_steps=1)
    policy = DBCachePolicy(config)
    run(policy, 1)
    for step in range(1, 4):
        policy.decide(step)
        policy.commit(step, computed=True, why=why)
    assert why_no_hit(policy.records, config) == sentence


def test_a_run_with_a_hit_and_one_without_steps_have_nothing_to_explain() -> None:
    config = DBCacheConfig(max_warmup_steps=1)
    policy = DBCachePolicy(config)
    assert why_no_hit(policy.records, config) is None
    run(policy, 3)
    assert why_no_hit(policy.records, config) is None


# What holds for any options and any diffs

DIFFS = st.lists(st.floats(0, 0.3) | st.sampled_from([math.nan, math.inf, 0.0]), max_size=60)
OPTIONS = st.fixed_dictionaries(
    {
        "max_warmup_steps": st.integers(0, 10),
        "warmup_interval": st.integers(1, 4),
        "residual_diff_threshold": st.sampled_from([-1, 0, 0.05, 0.1, 0.25, 1.0, 2.0]),
        "max_accumulated_residual_diff_threshold": st.none() | st.floats(0.01, 1),
        "max_cached_steps": st.integers(-1, 12),
        "max_continuous_cached_steps": st.integers(-1, 5),
        "steps_computation_mask": st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=60),
    }
)


@given(options=OPTIONS, diffs=DIFFS)
def test_no_limit_is_ever_exceeded_and_no_forced_step_cached(options: dict[str, Any], diffs: list[float]) -> None:
    config = DBCacheConfig(**options)
    policy = DBCachePolicy(config)
    run(policy, len(diffs), lambda step: diffs[step])
    runs = [list(group) for computed, group in groupby(policy.records, lambda r: r.computed) if not computed]
    limit = config.max_accumulated_residual_diff_threshold
    mask = config.steps_computation_mask
    warmup = config.max_warmup_steps if mask is None else min(config.max_warmup_steps, [*mask, 0].index(0))
    assert 0 not in policy.cached_steps
    assert not set(range(0, warmup, config.warmup_interval)) & set(policy.cached_steps)
    assert config.max_cached_steps < 0 or len(policy.cached_steps) <= config.max_cached_steps
    assert config.max_continuous_cached_steps < 0 or all(len(r) <= config.max_continuous_cached_steps for r in runs)
    assert limit is None or all(sum(record.diff for record in r) <= limit for r in runs)
    assert mask is None or all(mask[step : step + 1] == [0] for step in policy.cached_steps)
    assert config.residual_diff_threshold > 0 or not policy.cached_steps
    cached_diffs = [record.diff for record in policy.records if not record.computed and record.diff is not None]
    assert all(math.isfinite(diff) for diff in cached_diffs)
    assert config.residual_diff_threshold >= 1 or all(diff < config.residual_diff_threshold for diff in cached_diffs)


@given(mask=st.lists(st.integers(0, 1), min_size=1, max_size=60), steps=st.integers(1, 80), options=OPTIONS)
def test_a_static_mask_alone_decides(mask: list[int], steps: int, options: dict[str, Any]) -> None:
    options = {**options, "max_warmup_steps": 0, "steps_computation_mask": mask, "steps_computation_policy": "static"}
    planned = ([1, *mask[1:]] + [1] * steps)[:steps]
    assert trace(steps, math.nan, **options) == "".join("CF"[bit] for bit in planned)


@pytest.mark.parametrize("policy", ["slow", "medium", "fast", "ultra"])
@given(steps=st.integers(4, 100))
def test_presets_compute_the_first_and_the_last_step(policy: str, steps: int) -> None:
    mask = steps_mask(total_steps=steps, mask_policy=policy)
    done = trace(steps, 0.0, max_warmup_steps=0, steps_computation_mask=mask)
    assert done[0] == done[-1] == "F"
    assert "C" in done


@given(options=OPTIONS, first=DIFFS, second=DIFFS, order=st.randoms(use_true_random=False))
def test_interleaved_branches_decide_as_each_does_alone(
    options: dict[str, Any], first: list[float], second: list[float], order: random.Random
) -> None:
    config = DBCacheConfig(**options)
    alone, together = ([DBCachePolicy(config), DBCachePolicy(config)] for _ in range(2))
    for policy, diffs in zip(alone, (first, second), strict=True):
        run(policy, len(diffs), lambda step, diffs=diffs: diffs[step])
    calls = [0] * len(first) + [1] * len(second)
    order.shuffle(calls)
    for branch in calls:
        policy = together[branch]
        step = len(policy.records)
        step_once(policy, step, (first, second)[branch][step])
    for one, other in zip(alone, together, strict=True):
        assert repr(one.records) == repr(other.records)  # by repr, so that NaN equals NaN


def test_a_million_random_steps_keep_their_limits() -> None:
    config = DBCacheConfig(
        max_warmup_steps=4, max_continuous_cached_steps=3, max_accumulated_residual_diff_threshold=0.125
    )
    policy = DBCachePolicy(config)
    diffs = random.Random(0)
    assert "CCCC" not in run(policy, 1_000_000, lambda step: diffs.random() / 10)
    assert 0.5 < len(policy.cached_steps) / 1_000_000 < 0.75
