"""DBPrune: which blocks of a step run. In a line of blocks 1 is one that ran, 0 one that was skipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.policies.base import Action
from cache_dit.engine.policies.prune import PrunePolicy
from tests.kit.policy_runs import LOW, OPTIONS, line

BLOCKS = 6
Diff = float | Callable[[int, int], float]


def config(**options: Any) -> DBPruneConfig:
    return DBPruneConfig(**{"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "max_warmup_steps": 1, **options})


def step_once(policy: PrunePolicy, step: int, diff: Diff = LOW, blocks: int = BLOCKS) -> str:
    """One step, as the engine takes it."""
    free = [block for block in range(blocks) if block not in policy.excluded(blocks)]
    measured = {block: diff(step, block) if callable(diff) else diff for block in free}
    action = policy.decide(step)
    pruned: set[int] | frozenset[int] = set()
    if action is Action.SKIP:
        pruned = set(free)
    elif action is Action.MEASURE and policy.config.prune_decision == "previous":
        pruned = policy.decide_blocks(step)
    elif action is Action.MEASURE:
        pruned = {block for block in free if policy.accept_block(block, measured[block])}
    policy.commit(step, pruned=len(pruned), blocks=blocks)
    policy.note_diffs(step, measured)
    return "".join("0" if block in pruned else "1" for block in range(blocks))


def run(policy: PrunePolicy, steps: int | range, diff: Diff = LOW, blocks: int = BLOCKS) -> list[str]:
    return [step_once(policy, step, diff, blocks) for step in (range(steps) if isinstance(steps, int) else steps)]


# Which blocks


def test_the_trace_of_the_reference() -> None:
    policy = PrunePolicy(config(max_warmup_steps=2, non_prune_block_ids=[3]))
    assert run(policy, 6) == ["111111", "111111", "100101", "100101", "100101", "100101"]
    assert (sum(policy.pruned_blocks), sum(policy.actual_blocks)) == (12, 36)
    assert policy.pruned_ratio == 12 / 36
    assert policy.pruned_steps == [2, 3, 4, 5]
    assert policy.pruned_blocks == [0, 0, 3, 3, 3, 3]


def test_each_block_is_decided_by_its_own_diff() -> None:
    policy = PrunePolicy(config())
    assert run(policy, 3, lambda step, block: 0.2 if block == step + 1 else LOW) == ["111111", "101001", "100101"]
    assert policy.block_diffs == {1: [LOW, 0.2, LOW, LOW], 2: [LOW, LOW, 0.2, LOW]}


@pytest.mark.parametrize(
    ("options", "blocks", "expected"),
    [
        ({}, 6, {0, 5}),
        ({"Fn_compute_blocks": 2, "Bn_compute_blocks": 3}, 6, {0, 1, 3, 4, 5}),
        ({"Fn_compute_blocks": 8, "Bn_compute_blocks": 8}, 6, {0, 1, 2, 3, 4, 5}),
        ({"non_prune_block_ids": [2, 6, 60]}, 6, {0, 2, 5}),
        ({"non_prune_block_ids": [2, 6, 60]}, 9, {0, 2, 6, 8}),
        ({"Bn_compute_blocks": 0}, 1, {0}),
    ],
)
def test_the_first_and_last_blocks_and_the_named_ones_always_run(
    options: dict[str, Any], blocks: int, expected: set[int]
) -> None:
    assert PrunePolicy(config(**options)).excluded(blocks) == expected


def test_policies_of_chains_with_equally_many_blocks_exclude_their_own() -> None:
    one, other = PrunePolicy(config(Fn_compute_blocks=3)), PrunePolicy(config(non_prune_block_ids=[4]))
    assert (one.excluded(6), other.excluded(6)) == ({0, 1, 2, 5}, {0, 4, 5})


# Steps


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_cached_steps": 2}, "FCCFFF"),
        ({"max_continuous_cached_steps": 1}, "FCFCFC"),
        ({"max_continuous_cached_steps": 2}, "FCCFCC"),
        ({"max_warmup_steps": 4, "warmup_interval": 2}, "FCFCCC"),
        ({"steps_computation_mask": [1, 0, 1, 0, 0, 1]}, "FCFCCF"),
        ({"num_inference_steps": 2}, "FFFFFF"),
        ({"residual_diff_threshold": 0.0}, "FFFFFF"),
        ({"max_accumulated_residual_diff_threshold": 2 * LOW}, "FCCFCC"),
    ],
)
def test_a_step_counts_once_however_many_of_its_blocks_were_skipped(options: dict[str, Any], expected: str) -> None:
    policy = PrunePolicy(config(**options))
    blocks = run(policy, 6)
    assert line(policy.records) == expected
    assert blocks == ["100001" if step == "C" else "111111" for step in expected]


def test_a_static_mask_skips_all_blocks_that_may_be_without_a_measurement() -> None:
    mask = {"steps_computation_mask": [1, 0, 0, 1], "steps_computation_policy": "static"}
    policy = PrunePolicy(config(**mask, non_prune_block_ids=[2], max_cached_steps=1))
    assert run(policy, 5, math.nan) == ["111111", "101001", "101001", "111111", "111111"]
    assert not policy.measures
    assert policy.block_diffs == {}
    assert [record.why for record in policy.records] == ["first", "mask", "mask", "mask", "mask"]


def test_a_threshold_of_one_skips_without_measuring() -> None:
    policy = PrunePolicy(config(residual_diff_threshold=1.0))
    assert run(policy, 2, math.nan) == ["111111", "100001"]
    assert not policy.measures


def test_records_say_what_was_done_and_why() -> None:
    diffs = {1: [0.2, 0.3, 0.1, 0.4], 2: [0.01, 0.03, 0.2, 0.02], 3: [math.nan, math.inf, math.nan, 0.2]}
    policy = PrunePolicy(config())
    run(policy, 4, lambda step, block: diffs[step][block - 1] if step in diffs else 0.0)
    assert [record[:6] for record in policy.records[:3]] == [
        (0, True, None, "first", 0, 6),
        (1, True, 0.1, "threshold", 0, 6),  # the smallest: how far it was from a hit
        (2, False, 0.03, "hit", 3, 6),  # the largest that was skipped
    ]
    assert policy.records[3].why == "nonfinite"
    assert policy.diffs == {1: 0.1, 2: 0.03, 3: 0.2}
    assert (policy.computed_steps, policy.cached_steps) == ([0, 1, 3], [2])


def test_what_the_engine_did_otherwise_is_what_counts() -> None:
    policy = PrunePolicy(config(max_continuous_cached_steps=2))
    run(policy, 2)
    policy.decide(2)
    policy.accept_block(1, LOW)
    policy.commit(2, pruned=0, blocks=BLOCKS, why="shape")
    assert policy.records[-1].why == "shape"
    run(policy, range(3, 6))
    assert line(policy.records) == "FCFCCF"


def test_a_step_whose_blocks_could_not_be_measured_says_so() -> None:
    policy = PrunePolicy(config())
    run(policy, 1)
    policy.decide(1)
    policy.commit(1, pruned=0, blocks=BLOCKS)
    assert policy.records[-1].why == "not_measured"


# The dynamic threshold


def dynamic(**options: Any) -> DBPruneConfig:
    given = {"enable_dynamic_prune_threshold": True, "residual_diff_threshold": 0.125, "Bn_compute_blocks": 0}
    return config(**{**given, "dynamic_prune_threshold_relax_ratio": 1.5, **options})


def decisions(policy: PrunePolicy, diffs: list[float]) -> str:
    return run(policy, 2, lambda step, block: diffs[block - 1], len(diffs) + 1)[1][1:]


def test_the_threshold_rises_with_the_first_diffs_of_the_step_up_to_its_cap() -> None:
    # 1.5 times the mean of those before: 0.1875 for the second block, 0.22875 for the third.
    assert decisions(PrunePolicy(dynamic()), [0.125, 0.18, 0.23]) == "101"
    assert decisions(PrunePolicy(dynamic()), [0.125, 0.18, 0.22]) == "100"
    assert decisions(PrunePolicy(dynamic(enable_dynamic_prune_threshold=False)), [0.125, 0.18, 0.22]) == "111"
    # 1.5 · 0.25 is beyond the cap of 2 · 0.125, and the threshold stays what it is.
    assert decisions(PrunePolicy(dynamic()), [0.25, 0.12, 0.13]) == "101"
    assert decisions(PrunePolicy(dynamic(max_dynamic_prune_threshold=0.4)), [0.25, 0.3, 0.12]) == "100"
    assert decisions(PrunePolicy(dynamic(max_dynamic_prune_threshold=0.375)), [0.25, 0.3, 0.12]) == "110"


def test_a_step_of_small_diffs_does_not_lower_the_threshold() -> None:
    assert decisions(PrunePolicy(dynamic()), [0.01, 0.12]) == "00"


def test_only_the_first_five_diffs_above_zero_count() -> None:
    start = [0.0, 0.125, 0.125, 0.125, 0.125, 0.125]
    assert decisions(PrunePolicy(dynamic()), [*start, 0.01, 0.01, 0.18]).endswith("000")
    assert decisions(PrunePolicy(dynamic()), [*start[:-2], 0.01, 0.01, 0.14]).endswith("001")


def test_a_diff_that_is_not_finite_is_a_miss_and_does_not_reach_the_threshold() -> None:
    assert decisions(PrunePolicy(dynamic()), [math.nan, math.inf, 0.125, 0.18]) == "1110"


def test_the_threshold_starts_anew_in_each_step() -> None:
    policy = PrunePolicy(dynamic())
    diffs = {1: [0.125, 0.18], 2: [0.16, 0.2]}
    blocks = run(policy, 3, lambda step, block: diffs[step][block - 1] if step else 0.0, 3)
    assert blocks == ["111", "110", "110"]


def test_a_dynamic_threshold_above_one_is_a_threshold() -> None:
    policy = PrunePolicy(dynamic(max_dynamic_prune_threshold=5.0))
    assert decisions(policy, [1.0, 1.4, 1.9]) == "101"


# Decided by the step before


def test_blocks_are_decided_by_the_diffs_of_the_step_before() -> None:
    policy = PrunePolicy(config(prune_decision="previous"))
    blocks = run(policy, 4, lambda step, block: 0.2 if block == step + 1 else LOW)
    assert blocks == ["111111", "110001", "101001", "100101"]


def test_without_diffs_of_the_step_before_every_block_runs() -> None:
    policy = PrunePolicy(config(prune_decision="previous"))
    run(policy, 1)
    policy.decide(1)
    assert policy.decide_blocks(1)
    policy.commit(1, pruned=4, blocks=BLOCKS)  # and nothing is noted for this step
    policy.decide(2)
    assert policy.previous_diffs == {}
    assert policy.decide_blocks(2) == frozenset()


def test_diffs_may_be_noted_before_the_step_is_committed_and_in_any_order() -> None:
    policy = PrunePolicy(config(prune_decision="previous"))
    policy.decide(0)
    policy.note_diffs(0, {4: 0.2, 2: LOW})
    policy.commit(0, pruned=0, blocks=BLOCKS)
    assert list(policy.previous_diffs) == [2, 4]
    policy.decide(1)
    assert policy.decide_blocks(1) == {2}


# What holds for any options and any diffs

ONE = st.floats(0, 0.3) | st.sampled_from([math.nan, math.inf, 0.0])
ROWS = st.lists(st.tuples(ONE, ONE, ONE, ONE), max_size=40)  # a diff for each of the four blocks between the ends


@given(options=OPTIONS, rows=ROWS, previous=st.booleans())
def test_no_limit_is_ever_exceeded(options: dict[str, Any], rows: list[tuple[float, ...]], previous: bool) -> None:
    asked = config(**{**options, "prune_decision": "previous" if previous else "block"})
    policy = PrunePolicy(asked)
    steps = len(rows)
    blocks = run(policy, steps, lambda step, block: rows[step][block - 1])
    runs = [list(group) for computed, group in groupby(policy.records, lambda r: r.computed) if not computed]
    limit = options["max_accumulated_residual_diff_threshold"]
    mask = options["steps_computation_mask"]
    assert 0 not in policy.cached_steps
    assert all(step[0] == step[-1] == "1" for step in blocks)
    assert asked.max_cached_steps < 0 or len(policy.cached_steps) <= asked.max_cached_steps
    assert asked.max_continuous_cached_steps < 0 or all(len(r) <= asked.max_continuous_cached_steps for r in runs)
    assert limit is None or all(sum(record.diff or 0.0 for record in r) <= limit for r in runs)
    assert mask is None or all(mask[step : step + 1] == [0] for step in policy.cached_steps)
    assert policy.pruned_blocks == [step.count("0") for step in blocks]


@given(options=OPTIONS, rows=ROWS, cut=st.integers(0, 60))
def test_a_policy_made_from_the_records_goes_on_as_the_one_that_made_them(
    options: dict[str, Any], rows: list[tuple[float, ...]], cut: int
) -> None:
    asked, steps = config(**options), len(rows)
    cut = min(cut, steps)
    whole, first = PrunePolicy(asked), PrunePolicy(asked)
    run(whole, steps, lambda step, block: rows[step][block - 1])
    run(first, cut, lambda step, block: rows[step][block - 1])
    second = PrunePolicy(asked, records=first.records)
    run(second, range(cut, steps), lambda step, block: rows[step][block - 1])
    assert repr(second.records) == repr(whole.records)
    assert second.pruned_ratio == whole.pruned_ratio


def test_after_a_refresh_the_warmup_begins_anew_and_the_figures_go_on() -> None:
    asked = config(max_warmup_steps=2, max_cached_steps=2)
    first = PrunePolicy(asked)
    run(first, 6)
    second = PrunePolicy(asked, records=first.records, origin=6)
    run(second, range(6, 12))
    assert line(second.records) == "FFCCFF" + "FFCCFF"
    assert sum(second.pruned_blocks) == 16
