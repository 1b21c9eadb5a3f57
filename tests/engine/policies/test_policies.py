"""When to compute. F is a computed step and C a cached one, as in `summary`."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.config import DBCacheConfig
from cache_dit.config.extra import ExtraCacheConfig
from cache_dit.config.masks import steps_mask
from cache_dit.engine.policies import reasons
from cache_dit.engine.policies import registry as policy_module
from cache_dit.engine.policies.base import Action, Probe, StepPolicy
from cache_dit.engine.policies.dbcache import DBCachePolicy
from cache_dit.engine.policies.reasons import refusal, why_no_hit
from cache_dit.engine.policies.registry import make_policy, register_policy
from cache_dit.errors import ConfigError
from tests.kit.policy_runs import DIFFS, LOW, OPTIONS, POLICIES, asked_for, line, run, step_once, trace

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
        (6, {"max_warmup_steps": 2, "compute_last_step": True, "num_inference_steps": 6}, "FFCCCF"),
        (6, {"max_warmup_steps": 2, "compute_last_step": True}, "FFCCCC"),
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
    assert [record[:4] for record in policy.records] == [
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
            "Fn_compute_blocks=8 and Bn_compute_blocks=0 leave no block to skip; pass smaller ones.",
        ),
        (
            "conditioning",
            "What the pipeline conditions on changed before 3 of 4 steps; if it may change a little at each, pass a "
            "larger conditioning_diff_threshold than 0.25.",
        ),
        ("refreshed", "The cache was refreshed before 3 of 4 steps, and a refreshed cache is empty."),
        ("uncalibrated", "The policy_calibration ended before 3 of 4 steps; make one with as many steps."),
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


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("teacache", "is not above what the smallest diff seen, 0.2, costs after rescaling; pass a larger one."),
        ("magcache", "is used up by the first step that could be cached; pass a larger one."),
        ("easycache", "is not above the smallest diff seen, 0.2; pass a larger one."),
    ],
)
def test_every_policy_explains_that_its_budget_was_too_small(name: str, sentence: str) -> None:
    config = asked_for(name, {"residual_diff_threshold": 1e-3, "max_warmup_steps": 1})
    policy = make_policy(config)
    run(policy, 5, 0.2)
    assert why_no_hit(policy.records, config) == f"residual_diff_threshold=0.001 {sentence}"


def test_the_threshold_that_was_compared_is_the_one_that_is_named() -> None:
    extra = ExtraCacheConfig(l1_hidden_states_diff_threshold=0.1)
    config = DBCacheConfig(max_warmup_steps=1, extra_cache_config=extra)
    policy = make_policy(config)
    run(policy, 4, 0.2)
    sentence = "l1_hidden_states_diff_threshold=0.1 is not above the smallest diff seen, 0.2; pass a larger one."
    assert why_no_hit(policy.records, config) == sentence


@pytest.mark.parametrize("code", reasons._REFUSALS)
def test_what_rules_out_every_hit_is_told_however_seldom_it_was_recorded(code: str) -> None:
    config = DBCacheConfig(max_warmup_steps=1)
    policy = DBCachePolicy(config)
    run(policy, 9, 0.5)
    policy.decide(9)
    policy.commit(9, computed=True, why=code)
    sentence = refusal(code, config)
    assert sentence is not None
    assert "{" not in sentence
    assert why_no_hit(policy.records, config) == sentence


def test_a_reason_that_concerns_single_steps_rules_out_nothing() -> None:
    assert refusal("threshold", DBCacheConfig()) is None


# A refresh in mid-request, and options changed in mid-request


def test_warmup_and_mask_count_from_the_origin() -> None:
    options = {"max_warmup_steps": 2}
    assert run(DBCachePolicy(DBCacheConfig(**options), origin=5), range(5, 10)) == "FFCCC"
    options = {"max_warmup_steps": 8, "steps_computation_mask": SCM}
    assert run(DBCachePolicy(DBCacheConfig(**options), origin=5), range(5, 14)) == "FFCCFCCFF"


def test_whether_a_request_is_too_short_is_judged_on_the_whole_of_it() -> None:
    config = DBCacheConfig(max_warmup_steps=2, num_inference_steps=6)
    assert not DBCachePolicy(config, origin=3).off
    assert DBCachePolicy(config, num_inference_steps=3).off
    assert not DBCachePolicy(config, num_inference_steps=3, origin=1).off


def test_records_from_before_a_refresh_are_kept_and_not_counted() -> None:
    config = DBCacheConfig(max_warmup_steps=1, max_cached_steps=2)
    first = DBCachePolicy(config)
    assert run(first, 4) == "FCCF"
    second = DBCachePolicy(config, records=first.records, origin=4)
    assert run(second, range(4, 8)) == "FCCF" + "FCCF"
    assert second.cached_steps == [1, 2, 5, 6]
    assert len(first.records) == 4


def test_records_since_the_refresh_count_under_changed_options() -> None:
    config = DBCacheConfig(max_warmup_steps=1, max_cached_steps=3)
    first = DBCachePolicy(config, origin=4, records=DBCachePolicy(config).records)
    run(first, range(4, 7))
    changed = DBCacheConfig(max_warmup_steps=1, max_cached_steps=4, max_continuous_cached_steps=3)
    assert run(DBCachePolicy(changed, records=first.records, origin=4), range(7, 12)) == "FCC" + "CFCFF"


@pytest.mark.parametrize("name", POLICIES)
@given(options=OPTIONS, diffs=DIFFS, cut=st.integers(0, 60))
def test_a_policy_made_from_the_records_goes_on_as_the_one_that_made_them(
    name: str, options: dict[str, Any], diffs: list[float], cut: int
) -> None:
    config = asked_for(name, options)
    whole, first = make_policy(config), make_policy(config)
    run(whole, len(diffs), lambda step: diffs[step])
    run(first, range(len(diffs[:cut])), lambda step: diffs[step])
    second = make_policy(config, records=first.records)
    run(second, range(len(diffs[:cut]), len(diffs)), lambda step: diffs[step])
    assert repr(second.records) == repr(whole.records)


@pytest.mark.parametrize("name", ["dbcache", "teacache", "easycache"])
@given(options=OPTIONS, diffs=DIFFS, origin=st.integers(0, 50), before=DIFFS)
def test_after_a_refresh_a_policy_does_what_a_new_one_does(
    name: str, options: dict[str, Any], diffs: list[float], origin: int, before: list[float]
) -> None:
    config = asked_for(name, options)
    new, old = make_policy(config), make_policy(config)
    run(old, len(before[:origin]), lambda step: before[step])
    refreshed = make_policy(config, records=old.records, origin=origin)
    done = run(refreshed, range(origin, origin + len(diffs)), lambda step: diffs[step - origin])
    assert done == line(old.records) + run(new, len(diffs), lambda step: diffs[step])


@pytest.mark.parametrize("name", POLICIES)
@given(options=OPTIONS, diffs=DIFFS, asked=st.lists(st.floats(0, 2), min_size=1, max_size=3))
def test_asking_changes_nothing(name: str, options: dict[str, Any], diffs: list[float], asked: list[float]) -> None:
    config = asked_for(name, options)
    plain, curious = make_policy(config), make_policy(config)
    for step, diff in enumerate(diffs):
        step_once(plain, step, diff)
        if curious.decide(step) is Action.MEASURE:
            for other in asked:
                curious.accept(other)
        step_once(curious, step, diff)
    assert repr(plain.records) == repr(curious.records)


# What is measured


def test_what_is_measured_and_against_which_step() -> None:
    policies = {name: make_policy(asked_for(name, {})) for name in POLICIES}
    assert {name: (policy.probe, policy.against) for name, policy in policies.items()} == {
        "dbcache": (Probe.RESIDUAL, "computed"),
        "teacache": (Probe.MODULATED, "previous"),
        "magcache": (None, "computed"),
        "easycache": (Probe.LATENT, "previous"),
    }


@pytest.mark.parametrize(("threshold", "probe"), [(None, Probe.RESIDUAL), (0.0, Probe.RESIDUAL), (0.2, Probe.STATE)])
def test_a_threshold_for_the_state_compares_the_state(threshold: float | None, probe: Probe) -> None:
    extra = ExtraCacheConfig(l1_hidden_states_diff_threshold=threshold)
    policy = DBCachePolicy(DBCacheConfig(max_warmup_steps=1, extra_cache_config=extra))
    assert policy.probe is probe
    assert run(policy, 4, 0.1) == ("FCCC" if probe is Probe.STATE else "FFFF")


def test_a_state_threshold_caches_where_that_of_the_residual_would_not() -> None:
    extra = ExtraCacheConfig(l1_hidden_states_diff_threshold=0.2)
    policy = DBCachePolicy(DBCacheConfig(max_warmup_steps=1, residual_diff_threshold=0.0, extra_cache_config=extra))
    assert policy.measures
    assert run(policy, 3, 0.1) == "FCC"


# The registry


class EveryThird(StepPolicy):
    """Computes every third step, and measures nothing."""

    probe = None

    def forced(self, step: int) -> str | None:
        return super().forced(step) or ("turn" if step % 3 == 0 else None)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_factories", dict(policy_module._factories))


@pytest.mark.usefixtures("registry")
def test_a_policy_of_ones_own_is_asked_for_by_its_name_and_keeps_the_rules_of_all() -> None:
    register_policy(name="every_third", factory=EveryThird)
    assert trace(9, max_warmup_steps=2, policy="every_third") == "FFCFCCFCC"
    assert trace(9, max_warmup_steps=2, policy="every_third", max_continuous_cached_steps=1) == "FFCFCFFCF"


@pytest.mark.parametrize("name", ["Every", "every third", "", "3rd", 7])
def test_a_policy_needs_a_lower_case_identifier(name: Any) -> None:
    with pytest.raises(ConfigError, match="a lower-case identifier"):
        register_policy(name=name, factory=EveryThird)


def test_a_name_is_given_once_and_to_what_can_be_called() -> None:
    with pytest.raises(ConfigError, match="taken: dbcache, easycache, magcache, plan, teacache"):
        register_policy(name="dbcache", factory=EveryThird)
    with pytest.raises(ConfigError, match=r"something that can be called, e\.g\. register_policy"):
        register_policy(name="nothing", factory=None)  # type: ignore[arg-type]


def test_an_unknown_policy_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'teacache'"):
        make_policy(DBCacheConfig(policy="teacash"))


def test_policies_load_neither_torch_nor_numpy() -> None:
    code = """
import importlib.util, pathlib, sys, types
root = pathlib.Path(importlib.util.find_spec("cache_dit").origin).parent
package = sys.modules["cache_dit"] = types.ModuleType("cache_dit")  # in place of the package, which loads torch
package.__path__ = [str(root)]
import cache_dit.engine.policies.registry, cache_dit.engine.policies.prune
assert not {"torch", "numpy", "diffusers"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# What holds for any options and any diffs


@pytest.mark.parametrize("name", POLICIES)
@given(options=OPTIONS, diffs=DIFFS)
def test_no_limit_is_ever_exceeded_and_no_forced_step_cached(
    name: str, options: dict[str, Any], diffs: list[float]
) -> None:
    config = asked_for(name, options)
    policy = make_policy(config)
    run(policy, len(diffs), lambda step: diffs[step])
    runs = [list(group) for computed, group in groupby(policy.records, lambda r: r.computed) if not computed]
    limit = config.max_accumulated_residual_diff_threshold
    mask = config.steps_computation_mask
    warmup = config.max_warmup_steps if mask is None else min(config.max_warmup_steps, [*mask, 0].index(0))
    assert 0 not in policy.cached_steps
    assert not set(range(0, warmup, config.warmup_interval)) & set(policy.cached_steps)
    assert config.max_cached_steps < 0 or len(policy.cached_steps) <= config.max_cached_steps
    assert config.max_continuous_cached_steps < 0 or all(len(r) <= config.max_continuous_cached_steps for r in runs)
    assert limit is None or all(sum(record.diff or 0.0 for record in r) <= limit for r in runs)
    assert mask is None or all(mask[step : step + 1] == [0] for step in policy.cached_steps)
    assert config.residual_diff_threshold > 0 or not policy.cached_steps
    cached_diffs = [record.diff for record in policy.records if not record.computed and record.diff is not None]
    assert all(math.isfinite(diff) for diff in cached_diffs)
    if name == "dbcache" and config.residual_diff_threshold < 1:
        assert all(diff < config.residual_diff_threshold for diff in cached_diffs)


@pytest.mark.parametrize("name", POLICIES)
@given(mask=st.lists(st.integers(0, 1), min_size=1, max_size=60), steps=st.integers(1, 80), options=OPTIONS)
def test_a_static_mask_alone_decides(name: str, mask: list[int], steps: int, options: dict[str, Any]) -> None:
    options = {**options, "max_warmup_steps": 0, "steps_computation_mask": mask, "steps_computation_policy": "static"}
    policy = make_policy(DBCacheConfig(policy=name, **options))  # no calibration: nothing is looked up
    planned = ([1, *mask[1:]] + [1] * steps)[:steps]
    assert run(policy, steps, math.nan) == "".join("CF"[bit] for bit in planned)
    assert policy.probe is None
    assert not policy.measures


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


def test_a_factory_must_make_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policy_module._factories, "junk", lambda config, **arguments: 1)
    with pytest.raises(ConfigError, match="'junk': what its factory made=1 is not valid: expected a StepPolicy"):
        make_policy(DBCacheConfig(policy="junk"))
