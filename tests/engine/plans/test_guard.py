"""The guard of a plan: what it measures, what it estimates and promises, and when it acts. Without a model."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.engine.plans.guard import (
    CAP,
    Guard,
    GuardCalibration,
    Miss,
    conformal,
    gap_weight,
    weighted_errors,
)
from cache_dit.engine.plans.guard_fit import Observation, fit
from cache_dit.engine.state.measure import Landing, relative_miss
from cache_dit.errors import ConfigError

STEPS = 12
MASK = (1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1)
FULL = [step for step, bit in enumerate(MASK) if bit]
SIGMAS = [1 - step / STEPS for step in range(STEPS)]


def calibration(**changes: Any) -> GuardCalibration:
    """A guard that takes a relative squared miss m at every full step for −10 log₁₀(m) dB, and works for 30 dB."""
    values: dict[str, Any] = {
        "full_steps": len(FULL),
        "scale": (1.0,) * STEPS,
        "pace": tuple(step / (STEPS - 1) for step in range(STEPS)),
        "offset": 0.0,
        "slope": 1.0,
        "target": 30.0,
    }
    return GuardCalibration(**{**values, **changes})


class Number:
    """A number on its way: it may be read only once its step is over."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.landed = False

    def numbers(self) -> list[float]:
        assert self.landed
        return self.values


def run(guard: Guard, miss: Any, branches: tuple[str, ...] = ("cond",)) -> list[int]:
    """What is computed in a run of the plan under a guard; ``miss`` gives a full step's relative squared miss."""
    done: list[int] = []
    for step in range(STEPS):
        verdicts, flying = [], []
        for branch in branches:
            verdicts.append(guard.decide(step, bool(MASK[step])))
            if verdicts[-1] and done and guard.wants(step, done[-1]):
                values = miss(step)
                flying.append(Number(*(values if isinstance(values, tuple) else (values,))))
                guard.note(step, done[-1], branch, flying[-1])
        assert len(set(verdicts)) == 1
        if verdicts[0]:
            done.append(step)
        for number in flying:
            number.landed = True
    return done


# -- the promise

levels = st.sampled_from([0.5, 0.75, 0.8, 0.9, 0.95])
numbers = st.floats(-50, 50)


@given(scores=st.lists(numbers, min_size=2, max_size=60), level=levels)
def test_of_exchangeable_scores_at_least_the_level_is_covered(scores: list[float], level: float) -> None:
    """Whichever of n + 1 scores comes last: averaged over that, the others' quantile covers it often enough."""
    others = [scores[:index] + scores[index + 1 :] for index in range(len(scores))]
    if len(scores) - 1 < level / (1 - level) - 1e-9:
        return
    covered = sum(score <= conformal(rest, level) for score, rest in zip(scores, others, strict=True))
    assert covered / len(scores) >= level - 1e-9


@given(count=st.integers(1, 200), level=levels)
def test_coverage_is_not_bought_with_a_wider_promise_than_needed(count: int, level: float) -> None:
    needed = math.ceil(level / (1 - level) - 1e-9)
    if count < needed:
        with pytest.raises(ConfigError, match=rf"at least {needed} held-out"):
            conformal([0.0] * count, level)
        return
    rank = 1 + sorted(range(count)).index(int(conformal(list(map(float, range(count))), level)))
    assert level <= rank / (count + 1) + 1e-12
    assert (rank - 1) / (count + 1) < level


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, "high"])
def test_a_level_is_a_share(level: Any) -> None:
    with pytest.raises(ConfigError):
        conformal([1.0] * 100, level)


def test_promises_are_those_of_the_held_out_pictures() -> None:
    scores = tuple(map(float, range(-10, 9)))
    made = calibration(scores=scores, psnrs=tuple(30.0 - score for score in scores))
    assert made.below(0.9) == sorted(scores)[17]
    assert made.promise(0.9) == 30 - sorted(scores)[17]
    guard = Guard(made, level=0.9)
    run(guard, lambda step: 0.001)
    assert guard.estimated_psnr is not None
    assert guard.promised_psnr == pytest.approx(guard.estimated_psnr - 7)


# -- the estimate


def test_a_miss_weighs_what_the_cached_steps_before_it_do() -> None:
    scale = [1.0, 2.0, 3.0, 4.0]
    assert gap_weight(scale, 0, 3) == pytest.approx((2 * 1 / 3 + 3 * 2 / 3) ** 2)
    assert gap_weight(scale, 1, 2) == 0
    assert gap_weight(scale, 3, 6) == pytest.approx((4 * 1 / 3 + 4 * 2 / 3) ** 2)  # past its end the last weight holds


def test_the_estimate_falls_by_ten_db_where_all_squared_misses_are_ten_times_as_large() -> None:
    estimates = []
    for miss in (1e-4, 1e-3):
        guard = Guard(calibration(), acts=False)
        run(guard, lambda step, miss=miss: miss)
        estimates.append(guard.estimated_psnr)
    assert estimates[0] == pytest.approx(estimates[1] + 10)


@pytest.mark.parametrize(("error", "expected"), [(0.0, CAP), (math.nan, -math.inf), (math.inf, -math.inf)])
def test_estimates_of_no_error_and_of_no_number(error: float, expected: float) -> None:
    assert calibration().estimate(error) == expected


def test_branches_that_are_not_listened_to_do_not_count() -> None:
    misses = [Miss(3, 0, "cond", (0.1,)), Miss(3, 0, "uncond", (0.9,))]
    only = weighted_errors(misses, (1.0,) * STEPS, ("cond",))
    assert only == weighted_errors(misses[:1], (1.0,) * STEPS)
    assert weighted_errors(misses, (1.0,) * STEPS, ("default",)) == weighted_errors(misses, (1.0,) * STEPS)


# -- acting


def test_a_run_in_its_budget_is_the_plan() -> None:
    guard = Guard(calibration())
    assert run(guard, lambda step: 1e-4) == FULL
    assert not guard.inserted
    assert not guard.dropped


def test_a_run_over_its_budget_computes_on_until_it_is_back() -> None:
    guard = Guard(calibration())
    done = run(guard, lambda step: 0.0008 if step == 3 else 1e-9)
    # 31 dB if nothing is added, and too much for a third of the run; in the budget of 0.001 after four fifths of it
    assert guard.inserted == [4, 5, 7, 8]
    assert done == [0, 3, 4, 5, 6, 7, 8, 9, 11]
    assert guard.estimated_psnr == pytest.approx(-10 * math.log10(0.0008), abs=0.1)


def test_a_run_that_stays_over_its_budget_is_computed_to_the_end() -> None:
    guard = Guard(calibration())
    assert run(guard, lambda step: 0.5) == [0, *range(3, STEPS)]
    assert guard.inserted == [4, 5, 7, 8, 10]


def test_a_miss_that_is_no_number_is_over_every_budget() -> None:
    guard = Guard(calibration())
    assert run(guard, lambda step: math.nan) == [0, *range(3, STEPS)]
    assert guard.estimated_psnr == -math.inf


def test_far_under_its_budget_a_run_drops_optional_steps_but_never_two_between_measurements() -> None:
    guard = Guard(calibration(), optional={6: 9, 9: 11})
    assert run(guard, lambda step: 1e-7) == [0, 3, 9, 11]
    assert guard.dropped == [6]


@given(
    misses=st.lists(st.one_of(st.floats(0, 10), st.just(math.nan)), min_size=STEPS, max_size=STEPS),
    optional=st.sets(st.sampled_from(FULL[1:-1])),
)
def test_whatever_is_measured_first_and_last_are_computed_and_the_account_is_right(
    misses: list[float], optional: set[int]
) -> None:
    guard = Guard(calibration(), optional={step: FULL[FULL.index(step) + 1] for step in optional})
    done = run(guard, lambda step: misses[step], branches=("cond", "uncond"))
    assert done[0] == 0
    assert done[-1] == STEPS - 1
    assert set(done) == (set(FULL) | set(guard.inserted)) - set(guard.dropped)
    assert not set(guard.inserted) & set(FULL)
    assert set(guard.dropped) <= optional


@given(few=st.floats(1e-9, 1), more=st.floats(1, 100))
def test_a_harder_picture_is_never_computed_less(few: float, more: float) -> None:
    easy, hard = (Guard(calibration(), optional={6: 9, 9: 11}) for _ in range(2))
    assert len(run(hard, lambda step: few * more)) >= len(run(easy, lambda step: few))


def test_the_worst_sample_decides_for_a_batch() -> None:
    alone, batch = Guard(calibration()), Guard(calibration())
    done = run(alone, lambda step: 0.01)
    assert run(batch, lambda step: (1e-9, 0.01, 1e-9)) == done
    assert batch.estimated_psnr == alone.estimated_psnr
    assert done != FULL


@pytest.mark.parametrize("made", [None, calibration(slope=0.0, offset=10.0)])
def test_a_guard_that_knows_nothing_only_watches(made: GuardCalibration | None) -> None:
    guard = Guard(made, optional=dict(pairwise(FULL[1:])))
    assert run(guard, lambda step: 0.5) == FULL
    guard.settle()
    assert [miss.step for miss in guard.misses] == FULL[1:]


def test_the_host_reads_each_measured_branch_once_and_a_step_late() -> None:
    guard = Guard(calibration(), acts=False)
    run(guard, lambda step: 1e-4, branches=("cond", "uncond"))  # a number that is read too early fails
    guard.settle()
    assert guard.reads == 2 * (len(FULL) - 1)


def test_where_no_step_was_cached_nothing_is_measured() -> None:
    assert not Guard().wants(4, 3)
    assert not Guard().wants(0, None)
    assert Guard().wants(5, 3)


# -- fitting


def observed(rng: random.Random, hardness: float, noise: float, branches: tuple[str, ...] = ("cond",)) -> Observation:
    """A picture whose PSNR falls with its misses, with noise; another branch misses at random."""
    misses, last = [], 0
    for step in FULL[1:]:
        for index, branch in enumerate(branches):
            size = hardness if index == 0 else rng.uniform(-5, 5)
            misses.append(Miss(step, last, branch, (10 ** (size - 3 + rng.gauss(0, 0.05)),)))
        last = step
    return Observation(tuple(misses), 30 - 8 * hardness + rng.gauss(0, noise))


def test_a_fit_finds_the_branch_and_the_slope_that_tell() -> None:
    rng = random.Random(1)
    pictures = [observed(rng, rng.uniform(-1, 1), 0.1, ("cond", "uncond")) for _ in range(20)]
    made = fit(pictures, full_steps=5, sigmas=SIGMAS)
    assert made.branches == ("cond",)
    assert made.slope == pytest.approx(0.8, abs=0.05)
    assert made.pace[0] == 0
    assert made.pace[-1] == 1
    assert made.target == pytest.approx(sorted(one.psnr for one in pictures)[4], abs=2)


def test_where_larger_misses_go_with_better_pictures_the_guard_only_watches() -> None:
    rng = random.Random(2)
    pictures = [observed(rng, hardness / 10, 0) for hardness in range(10)]
    turned = [replace(one, psnr=60 - one.psnr) for one in pictures]
    assert fit(turned, full_steps=5, sigmas=SIGMAS).slope == 0


def test_known_sensitivities_are_used_where_they_tell_most() -> None:
    rng = random.Random(3)
    sensitivities = [5.0 if step in (7, 8) else 0.01 for step in range(STEPS)]
    pictures = []
    for _ in range(16):
        one = observed(rng, 0, 0)
        misses = tuple(replace(miss, errors=(10 ** rng.uniform(-5, -1),)) for miss in one.misses)
        pictures.append(Observation(misses, -10 * math.log10(max(weighted_errors(misses, sensitivities)))))
    made = fit(pictures, full_steps=5, sigmas=SIGMAS, sensitivities=sensitivities)
    assert made.scale == tuple(sensitivities)
    assert (made.slope, made.offset) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


def test_the_margin_lets_the_guard_notice_the_pictures_below_the_target() -> None:
    rng = random.Random(4)
    pictures = [observed(rng, rng.uniform(-1, 1), 3) for _ in range(40)]
    made = fit(pictures, full_steps=5, sigmas=SIGMAS, target=28.0, level=0.9)
    unnoticed = [
        one
        for one in pictures
        if one.psnr < 28
        and made.estimate(weighted_errors(one.misses, made.scale, made.branches)[0]) >= 28 + made.margin
    ]
    assert len(unnoticed) <= 4


def test_over_many_calibrations_the_promise_holds_for_at_least_the_level() -> None:
    rng, level, held = random.Random(5), 0.8, 0
    rounds, each = 60, 20
    for _ in range(rounds):
        pictures = [observed(rng, rng.uniform(-1, 1), 4) for _ in range(10 + 9 + each)]
        made = fit(pictures[:10], full_steps=5, sigmas=SIGMAS, level=level)

        def score(one: Observation, made: GuardCalibration = made) -> float:
            return made.estimate(weighted_errors(one.misses, made.scale, made.branches)[0]) - one.psnr

        bound = conformal([score(one) for one in pictures[10:19]], level)
        held += sum(score(one) <= bound for one in pictures[19:])
    assert level - 0.02 <= held / (rounds * each) <= level + 0.06


@pytest.mark.parametrize("pictures", [0, 3])
def test_too_few_pictures_to_fit_are_refused(pictures: int) -> None:
    rng = random.Random(6)
    with pytest.raises(ConfigError, match="at least 4 pictures"):
        fit([observed(rng, 0, 1) for _ in range(pictures)], full_steps=5, sigmas=SIGMAS)


def test_misses_that_are_no_numbers_and_sensitivities_that_do_not_fit_are_refused() -> None:
    rng = random.Random(7)
    pictures = [observed(rng, 0, 1) for _ in range(8)]
    with pytest.raises(ConfigError, match="sensitivities"):
        fit(pictures, full_steps=5, sigmas=SIGMAS, sensitivities=[1.0] * (STEPS - 1))
    broken = replace(pictures[3], misses=(*pictures[3].misses[1:], Miss(3, 0, "cond", (math.nan,))))
    with pytest.raises(ConfigError, match="no number"):
        fit([*pictures, broken], full_steps=5, sigmas=SIGMAS)


# -- the calibration as data


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", ()),
        ("scale", (-1.0,) * STEPS),
        ("pace", (0.5, 0.2) * (STEPS // 2)),
        ("pace", (0.1,)),
        ("slope", -1),
        ("level", 1.0),
        ("full_steps", 0),
        ("scores", (1.0,)),
        ("target", math.nan),
    ],
)
def test_a_field_that_cannot_work_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        calibration(**{name: value})


def test_adapted_to_other_steps_a_whole_run_weighs_the_same() -> None:
    made = calibration(scale=tuple(SIGMAS))
    fine = made.adapted(SIGMAS, [1 - step / 24 for step in range(24)])
    assert len(fine.scale) == len(fine.pace) == 24
    assert sum(fine.scale) == pytest.approx(sum(made.scale), rel=0.05)
    assert fine.scale[::2] == pytest.approx([weight / 2 for weight in made.scale])
    assert made.adapted(SIGMAS, SIGMAS) == made


# -- measuring


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_miss_is_relative_squared_and_of_each_sample(dtype: torch.dtype) -> None:
    truth = torch.randn(3, 50, 8, dtype=torch.float64).to(dtype)
    missed = (torch.randn(3, 50, 8) * torch.tensor([0.1, 1.0, 0.01])[:, None, None]).to(dtype)
    expected = (missed.double() ** 2).sum((1, 2)) / (truth.double() ** 2).sum((1, 2))
    torch.testing.assert_close(relative_miss(missed, truth, samples=3), expected, rtol=1e-5, atol=0)
    whole = (missed.double() ** 2).sum() / (truth.double() ** 2).sum()
    torch.testing.assert_close(relative_miss(missed, truth), whole.reshape(1), rtol=1e-5, atol=0)


def test_large_halves_do_not_overflow() -> None:
    large = torch.full((4096,), 60000.0, dtype=torch.float16)
    assert relative_miss(large, large).tolist() == [1.0]


def test_what_has_landed_is_what_was_sent() -> None:
    assert Landing(torch.tensor([1.5, -2.0])).numbers() == [1.5, -2.0]
