"""Step plans: the published ones bit for bit, and what every preset promises for any number of steps."""

from __future__ import annotations

import copy
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.config.masks import PresetMask, fitted_mask, steps_mask
from cache_dit.errors import ConfigError

PRESETS = ("slow", "medium", "fast", "ultra")

PUBLISHED = {
    4: ("1101", "1101", "1101", "1101"),
    6: ("111001", "111001", "111001", "111001"),
    8: ("11111011", "11110101", "11101001", "11001001"),
    9: ("111110111", "111110101", "111101001", "111001001"),
    10: ("1111011011", "1111011011", "1110100101", "1101001001"),
    15: ("111101101101101", "111101101001001", "111010010010001", "110100100010001"),
    16: ("1111111101110011", "1111110110001001", "1111100000000001", "1100000000000001"),
    20: ("11111111011100111001", "11111101100011000101", "11111101000000000001", "11110000000000000001"),
    28: (
        "1111111101110011100110010001",
        "1111110110001100011000110001",
        "1111110100010000100000100001",
        "1111001000001000000100000001",
    ),
    50: (
        "11111111111111111111110011111000111110001110001101",
        "11111111111111110011100000111000001110000011100001",
        "11111111111001100000110000000110000000001100000001",
        "11111110001100000000011000000000001100000000000001",
    ),
}


def preset(policy: str, total_steps: int) -> list[int]:
    mask = steps_mask(total_steps=total_steps, mask_policy=policy)
    assert mask is not None
    return mask


@pytest.mark.parametrize("total_steps", PUBLISHED)
def test_the_published_plans_come_out_bit_for_bit(total_steps: int) -> None:
    assert tuple("".join(map(str, preset(policy, total_steps))) for policy in PRESETS) == PUBLISHED[total_steps]


@pytest.mark.parametrize("policy", PRESETS)
def test_ten_to_fourteen_steps_are_the_plan_of_fifteen_cut_short(policy: str) -> None:
    for steps in range(10, 15):
        assert preset(policy, steps) == [*preset(policy, 15)[: steps - 1], 1]


def test_presets_have_the_asked_length_and_compute_the_first_and_the_last_step() -> None:
    for steps, policy in product(range(1, 201), PRESETS):
        mask = preset(policy, steps)
        case = f"{policy}, {steps} steps: {mask}"
        assert len(mask) == steps and set(mask) <= {0, 1}, case
        assert mask[0] == mask[-1] == 1, case
        assert (0 in mask) == (steps >= 4), case


def test_a_slower_preset_computes_at_least_as_many_steps() -> None:
    for steps in range(1, 201):
        computed = [sum(preset(policy, steps)) for policy in PRESETS]
        assert computed == sorted(computed, reverse=True), f"{steps} steps"


def test_medium_is_the_default() -> None:
    assert steps_mask(total_steps=28) == preset("medium", 28)


@pytest.mark.parametrize("policy", [None, "none"])
def test_no_policy_is_no_mask(policy: str | None) -> None:
    assert steps_mask(total_steps=28, mask_policy=policy) is None


def test_bins_are_taken_as_given() -> None:
    assert steps_mask([4, 2], [2, 4]) == [1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0]
    assert steps_mask([1], [1, 2, 3]) == [1, 0, 0, 0, 0, 0, 0]
    assert steps_mask([0, 1], [2]) == [0, 0, 1]
    assert steps_mask([2, 2], [2, 2], total_steps=5, mask_policy=None) == [1, 1, 0, 0, 1]


lengths = st.lists(st.integers(0, 9), max_size=6)


@given(compute=lengths, cache=lengths)
def test_bins_become_as_many_ones_and_zeros(compute: list[int], cache: list[int]) -> None:
    if sum(compute) + sum(cache) == 0:
        with pytest.raises(ConfigError, match="at least 1 steps, not 0"):
            steps_mask(compute, cache)
        return
    mask = steps_mask(compute, cache)
    assert mask is not None
    assert (mask.count(1), mask.count(0)) == (sum(compute), sum(cache))


@given(data=st.data(), steps=st.integers(1, 60), warmup=st.integers(1, 8), last=st.booleans())
def test_an_even_mask_computes_as_asked_and_its_gaps_differ_by_one_at_most(
    data: st.DataObject, steps: int, warmup: int, last: bool
) -> None:
    full = data.draw(st.integers(1, steps))
    mask = steps_mask(total_steps=steps, mask_policy="even", full_steps=full, warmup=warmup, last=last)
    assert mask is not None
    assert (len(mask), sum(mask)) == (steps, full)
    assert mask[0] == 1
    assert mask[-1] == 1 or full == 1 or not last
    led = min(warmup, max(full - 1, 1) if last else full)
    assert mask[:led] == [1] * led
    computed = [step for step, bit in enumerate([*mask, *[1] * (not last)]) if bit][led - 1 :]
    gaps = {later - earlier for earlier, later in pairwise(computed)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_an_even_mask_may_leave_the_last_step_to_a_gap() -> None:
    mask = steps_mask(total_steps=10, mask_policy="even", full_steps=3, warmup=1, last=False)
    assert mask == [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    bent = steps_mask(total_steps=28, mask_policy="even", full_steps=5, warmup=1, bend=1.3, last=False)
    assert "".join(map(str, bent or [])) == "1001000001000010000001000000"


@given(data=st.data(), steps=st.integers(2, 60), warmup=st.integers(1, 8), bend=st.floats(1, 3))
def test_the_gaps_of_a_bent_mask_grow(data: st.DataObject, steps: int, warmup: int, bend: float) -> None:
    full = data.draw(st.integers(2, steps))
    mask = steps_mask(total_steps=steps, mask_policy="even", full_steps=full, warmup=warmup, bend=bend)
    assert mask is not None
    assert (len(mask), sum(mask), mask[0], mask[-1]) == (steps, full, 1, 1)
    computed = [step for step, bit in enumerate(mask) if bit][min(warmup, full - 1) - 1 :]
    gaps = [later - earlier for earlier, later in pairwise(computed)]
    assert all(later >= earlier - 1 for earlier, later in pairwise(gaps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps=0 is not valid: expected an integer >= 1"),
        ({"total_steps": 28.0}, "total_steps=28.0 is not valid: expected an integer >= 1"),
        ({}, "mask_policy='medium' needs total_steps"),
        ({"total_steps": 28, "mask_policy": "medum"}, "unknown key 'medum'; did you mean 'medium'?"),
        ({"total_steps": 2, "mask_policy": "x"}, "unknown key 'x'; known are even, fast, medium, none, slow, ultra"),
        ({"total_steps": 2, "mask_policy": 3}, "unknown key '3'; known are even, fast, medium, none, slow, ultra"),
        ({"total_steps": 9, "mask_policy": "even"}, "mask_policy='even' needs full_steps"),
        ({"total_steps": 9, "mask_policy": "even", "full_steps": 10}, "full_steps=10 is not valid: expected at most"),
        ({"total_steps": 9, "mask_policy": "even", "full_steps": 0}, "full_steps=0 is not valid"),
        ({"total_steps": 9, "mask_policy": "even", "full_steps": 4, "bend": 0.5}, "bend=0.5 is not valid"),
        ({"total_steps": 9, "full_steps": 4}, "full_steps=4 is for an even mask"),
        ({"compute_bins": 4, "cache_bins": [1]}, "compute_bins=4 is not valid: expected a list of lengths"),
        ({"compute_bins": [4], "total_steps": 8}, "only one of compute_bins and cache_bins was given"),
        ({"compute_bins": [4], "cache_bins": [-1]}, "an entry of cache_bins=-1 is not valid"),
        ({"compute_bins": [4], "cache_bins": [2], "total_steps": 8}, "at least 8 steps, not 6"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        steps_mask(**arguments)  # type: ignore[arg-type]
    assert message in str(raised.value)


@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=40), st.integers(1, 40))
def test_a_mask_of_ones_own_is_cut_and_ends_with_a_computed_step(mask: list[int], steps: int) -> None:
    fitted = fitted_mask(mask, steps)
    assert fitted == (mask if len(mask) <= steps else [*mask[: steps - 1], 1])


@given(st.sampled_from(PRESETS), st.integers(1, 60), st.integers(1, 60))
def test_a_presets_mask_is_made_anew_also_as_a_copy(preset: str, steps: int, others: int) -> None:
    mask = copy.deepcopy(PresetMask(preset, steps))
    assert mask == steps_mask(total_steps=steps, mask_policy=preset)
    assert fitted_mask(mask, others) == steps_mask(total_steps=others, mask_policy=preset)
