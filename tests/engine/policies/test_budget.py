"""TeaCache, EasyCache and MagCache: what a skipped step costs, and the budget for it."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.config import DBCacheConfig
from cache_dit.engine.policies.budget import MagCachePolicy
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.engine.policies.registry import make_policy
from cache_dit.errors import ConfigError
from tests.kit.policy_runs import Diff, magnitudes, polynomial, run, trace


def tea(steps: int, diff: Diff, *coefficients: float, budget: float = 0.125, **options: Any) -> str:
    calibration = polynomial(*coefficients) if coefficients else None
    options = {"max_warmup_steps": 1, "residual_diff_threshold": budget, **options}
    return trace(steps, diff, policy="teacache", policy_calibration=calibration, **options)


def easy(steps: int, diff: Diff, *, budget: float = 0.125, **options: Any) -> str:
    options = {"max_warmup_steps": 1, "residual_diff_threshold": budget, **options}
    return trace(steps, diff, policy="easycache", **options)


def mag(ratios: list[float], *, budget: float, steps: int | None = None, **options: Any) -> str:
    options = {"max_warmup_steps": 1, "residual_diff_threshold": budget, **options}
    return trace(steps or len(ratios), math.nan, policy="magcache", policy_calibration=magnitudes(ratios), **options)


# TeaCache and EasyCache


@pytest.mark.parametrize("policy", [tea, easy])
def test_steps_are_skipped_while_the_sum_is_below_the_budget_and_it_starts_anew_at_a_computed_one(policy: Any) -> None:
    assert policy(8, 0.05) == "FCCFCCFC"
    assert policy(8, 0.0625) == "FCFCFCFC"  # 0.0625 + 0.0625 is the budget, not below it
    assert policy(6, lambda step: 0.2 if step == 2 else 0.05) == "FCFCCF"


@pytest.mark.parametrize("policy", [tea, easy])
def test_a_sum_is_broken_by_whatever_computes_a_step(policy: Any) -> None:
    assert policy(8, 0.05, steps_computation_mask=[1, 0, 1, 0, 0, 0, 0, 0]) == "FCFCCFCC"
    assert policy(8, 0.05, max_continuous_cached_steps=1) == "FCFCFCFC"
    assert policy(7, 0.05, max_warmup_steps=5, warmup_interval=2) == "FCFCFCC"


@pytest.mark.parametrize("policy", [tea, easy])
def test_a_budget_of_one_and_more_is_a_budget(policy: Any) -> None:
    assert policy(6, 0.75, budget=2.0) == "FCCFCC"


@pytest.mark.parametrize("policy", [tea, easy])
@pytest.mark.parametrize("diff", [math.nan, math.inf])
def test_a_diff_that_is_not_finite_is_computed_and_leaves_no_trace_in_the_sum(policy: Any, diff: float) -> None:
    assert policy(6, lambda step: diff if step == 2 else 0.05) == "FCFCCF"


def test_the_polynomial_takes_the_highest_power_first() -> None:
    assert tea(4, 0.5, 1.0, 0.0, -0.125, budget=0.25) == "FCFC"  # 0.25 − 0.125
    assert tea(4, 0.5, 1.0, 0.0, budget=0.25) == "FFFF"


def test_a_cost_below_zero_counts_as_none_and_gives_nothing_back() -> None:
    low = {1: 0.2, 2: 0.0, 3: 0.0, 4: 0.2}  # costs of 0.1, −0.1, −0.1, 0.1
    assert tea(5, lambda step: low.get(step, 0.0), 1.0, -0.1, budget=0.15) == "FCCCF"


def test_a_polynomial_that_overflows_computes() -> None:
    assert tea(3, 1e200, 1.0, 0.0, 0.0) == "FFF"
    assert tea(3, 1e200, -1e300, 1.0, 0.0) == "FCC"  # far below 0
    assert tea(3, 1e300, 1e300, -1e300, -math.pi) == "FFF"


@given(
    diffs=st.lists(st.floats(0, 0.5), max_size=40),
    coefficients=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    budget=st.floats(0.01, 1),
)
def test_the_costs_of_steps_skipped_in_a_row_never_reach_the_budget(
    diffs: list[float], coefficients: list[float], budget: float
) -> None:
    def cost(diff: float) -> float:
        return max(0.0, math.fsum(c * diff**power for power, c in enumerate(reversed(coefficients))))

    done = tea(len(diffs), lambda step: diffs[step], *coefficients, budget=budget)
    for cached, places in groupby(range(len(diffs)), lambda step: done[step] == "C"):
        spent = [cost(diffs[step]) for step in places]
        if cached:
            assert sum(spent) < budget + 1e-9
            after = done.find("F", done.index("C"))
            assert after >= 0 or done.endswith("C")
    for step in range(1, len(diffs)):
        if done[step] == "F":  # and none is computed without need
            start = done.rindex("F", 0, step) + 1
            assert sum(cost(diffs[place]) for place in range(start, step + 1)) >= budget - 1e-9


def test_a_calibration_of_another_policy_or_another_number_of_steps_is_refused() -> None:
    options = {"policy": "teacache", "policy_calibration": magnitudes([1.0] * 4)}
    with pytest.raises(ConfigError, match="policy='magcache', not 'teacache'"):
        make_policy(DBCacheConfig(**options))
    fitted = PolicyCalibration("teacache", "Toy", 28, None, {"default": [1.0, 0.0]})
    with pytest.raises(ConfigError, match="num_inference_steps=28, not 50"):
        make_policy(DBCacheConfig(policy="teacache", policy_calibration=fitted, num_inference_steps=50))
    make_policy(DBCacheConfig(policy="teacache", policy_calibration=fitted), num_inference_steps=28)


# MagCache


def test_the_error_of_the_magnitude_adds_up_to_no_more_than_the_budget() -> None:
    half = [1.0, *[0.5] * 7]  # the costs since a computed step are 0.5, 0.75, 0.875, …
    assert mag(half, budget=0.5) == "FCFCFCFC"
    assert mag(half, budget=1.25) == "FCCFCCFC"
    assert mag(half, budget=math.nextafter(1.25, 0)) == "FCFCFCFC"
    assert mag(half, budget=2.125) == "FCCCFCCC"


def test_ratios_that_cancel_cost_nothing_together() -> None:
    assert mag([1.0, 0.5, 2.0, 0.5, 2.0, 0.5], budget=1.0) == "FCCCCF"


def test_a_budget_that_is_never_spent_is_bounded_by_the_limits() -> None:
    steady = [1.0] * 8
    assert mag(steady, budget=0.01) == "FCCCCCCC"
    assert mag(steady, budget=0.01, max_continuous_cached_steps=2) == "FCCFCCFC"
    assert mag(steady, budget=0.0) == "FFFFFFFF"
    assert mag(steady, budget=0.01, max_warmup_steps=4) == "FFFFCCCC"


def test_steps_past_the_end_of_the_calibration_are_computed() -> None:
    assert mag([1.0] * 4, budget=0.1, steps=7) == "FCCCFFF"


def test_nothing_is_measured() -> None:
    policy = make_policy(
        DBCacheConfig(max_warmup_steps=1, policy="magcache", policy_calibration=magnitudes([1.0, 0.98, 0.97, 0.9]))
    )
    assert policy.caches
    assert not policy.measures
    assert run(policy, 4, math.nan) == "FCCF"
    assert [record.diff for record in policy.records] == [None] * 4
    assert [record.why for record in policy.records] == ["first", "hit", "hit", "threshold"]


def test_steps_that_a_branch_was_not_called_in_change_the_magnitude_all_the_same() -> None:
    options = {"max_warmup_steps": 1, "residual_diff_threshold": 0.7}
    calibration = magnitudes([1.0, 0.5, 0.5, 1.0])
    policy = make_policy(DBCacheConfig(policy="magcache", policy_calibration=calibration, **options))
    assert run(policy, [0, 2]) == "FF"  # 1 − 0.5 · 0.5 = 0.75
    assert run(policy, [3]) == "FFC"


def test_after_a_refresh_the_ratios_are_still_those_of_the_steps_themselves() -> None:
    ratios = [1.0] * 4 + [0.5] * 4
    config = DBCacheConfig(
        max_warmup_steps=1, residual_diff_threshold=0.5, policy="magcache", policy_calibration=magnitudes(ratios)
    )
    first = make_policy(config)
    assert run(first, 3) == "FCC"
    assert run(make_policy(config, records=first.records, origin=3), range(3, 8)) == "FCC" + "FCFCF"


@given(
    ratios=st.lists(st.floats(0.5, 2), min_size=1, max_size=50),
    budget=st.floats(0.01, 1),
    limit=st.integers(-1, 5),
    warmup=st.integers(1, 5),
)
def test_the_decisions_are_those_of_the_paper(ratios: list[float], budget: float, limit: int, warmup: int) -> None:
    expected, product, error, row = "", 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1 - product)
        row += 1
        skip = step >= warmup and error <= budget and not 0 <= limit < row
        if abs(error - budget) < 1e-9:
            return  # a matter of rounding
        expected += "C" if skip else "F"
        if not skip:
            product, error, row = 1.0, 0.0, 0
    options = {"max_continuous_cached_steps": limit, "max_warmup_steps": warmup}
    assert mag(ratios, budget=budget, **options) == expected


def test_each_branch_has_its_own_ratios() -> None:
    branches = {"cond": [1.0, 0.9, 0.9], "uncond": [1.0, 1.0, 1.0]}
    calibration = magnitudes([1.0] * 3, branches=branches)
    config = DBCacheConfig(
        max_warmup_steps=1, residual_diff_threshold=0.05, policy="magcache", policy_calibration=calibration
    )
    assert run(make_policy(config, branch="cond"), 3) == "FFF"
    assert run(make_policy(config, branch="uncond"), 3) == "FCC"


def test_a_missing_calibration_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="expected policy_calibration, a PolicyCalibration or the path of one"):
        make_policy(DBCacheConfig(policy="magcache"))


def test_a_calibration_may_be_given_as_a_path_or_to_the_policy_itself(tmp_path: Path) -> None:
    magnitudes([1.0] * 6).save(tmp_path / "toy.json")
    path = str(tmp_path / "toy.json")
    assert trace(6, max_warmup_steps=1, policy="magcache", policy_calibration=path) == "FCCCCC"
    config = DBCacheConfig(max_warmup_steps=1, policy="magcache", policy_calibration="missing.json")
    assert run(MagCachePolicy(config, calibration=magnitudes([1.0] * 6)), 6) == "FCCCCC"


def test_a_request_of_another_number_of_steps_than_the_calibration_is_refused() -> None:
    config = DBCacheConfig(policy="magcache", policy_calibration=magnitudes([1.0] * 28))
    make_policy(config, num_inference_steps=28)
    with pytest.raises(ConfigError, match="num_inference_steps=28, not 50"):
        make_policy(config, num_inference_steps=50)
