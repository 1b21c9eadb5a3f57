"""How much a step differs from another: the number that decides, and the options of its measurement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import CalibratorConfig, DBCacheConfig
from cache_dit.config import ExtraCacheConfig
from cache_dit.engine.state.measure import (
    EasyCacheProbe,
    PendingDiffs,
    exceeds,
    first_tensor,
    read_numbers,
    read_relative_l1,
    relative_l1,
    relative_l1_means,
)
from tests.engine.policies.test_policies_in_engine import FLUX, STEPS, WAN, counted_reads, given_at, run
from tests.kit.tiny_models import tiny
from tests.kit.toys import line, normal

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_diffs_that_travel_together_are_those_of_each_and_not_finite_where_a_snapshot_is_not(bad: float) -> None:
    pairs = {place: (torch.tensor([1.0, -3.0]), torch.tensor([1.0 + place, -3.0])) for place in (2, 5, 7)}
    measured = {place: relative_l1_means(*pair) for place, pair in pairs.items()}
    measured[8] = relative_l1_means(torch.zeros(2), torch.ones(2))  # nothing to divide by
    health = {5: [torch.tensor(1.0), torch.tensor(bad, dtype=torch.float64)], 7: [torch.tensor(2.0)]}
    step, diffs = PendingDiffs(3, measured, health=health).arrived()
    assert step == 3 and list(diffs) == [2, 5, 7, 8]
    assert (diffs[2], diffs[7]) == (relative_l1(*pairs[2]), relative_l1(*pairs[7])) == (0.5, 1.75)
    assert math.isnan(diffs[5]) and math.isinf(diffs[8])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_relative_difference(dtype: torch.dtype) -> None:
    previous, current = torch.tensor([1.0, -3.0], dtype=dtype), torch.tensor([2.0, -3.0], dtype=dtype)
    assert relative_l1(previous, current) == 0.25
    assert relative_l1(current, previous) == pytest.approx(0.2)


def test_the_relative_difference_of_large_halves_does_not_overflow() -> None:
    large = torch.full((4096,), 60000.0, dtype=torch.float16)
    assert relative_l1(large, -large) == 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_gives_a_difference_that_is_not(bad: float) -> None:
    broken = torch.tensor([1.0, bad])
    assert not math.isfinite(relative_l1(torch.ones(2), broken))
    assert not math.isfinite(relative_l1(broken, broken))
    assert not math.isfinite(relative_l1(torch.zeros(2), torch.zeros(2)))


def test_a_difference_is_not_measured_below_single_precision() -> None:
    previous = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert relative_l1(previous, previous + 1e-12) == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(1, 2), torch.ones(2, device="meta"), None])
def test_what_cannot_be_compared_gives_none(other: torch.Tensor | None) -> None:
    assert relative_l1(torch.ones(2), other) is None
    assert relative_l1(other, torch.ones(2)) is None


@pytest.fixture(params=["alone", "in a group"])
def group(request: pytest.FixtureRequest) -> Iterator[Any]:
    """None, or a group of this process."""
    if request.param == "alone":
        yield None
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sick_snapshot_gives_a_difference_that_is_not_finite(group: Any, bad: float) -> None:
    previous, current = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -3.0])
    assert relative_l1(previous, current, group) == 0.25
    assert relative_l1(previous, current, group, health=[torch.tensor(7.0)]) == 0.25
    assert not math.isfinite(relative_l1(previous, current, group, health=[torch.tensor(bad)]))


def test_what_cannot_be_compared_gives_none_whatever_its_health(group: Any) -> None:
    assert relative_l1(None, torch.ones(2), group, health=()) is None
    assert relative_l1(torch.ones(3), torch.ones(2), group, health=[torch.tensor(math.nan)]) is None


# Which tokens count


def tokens(before: Tensor, now: Tensor, threshold: float) -> float:
    """The diff over important tokens, word for word as the reference has it."""
    d = (before - now).abs().double().mean(-1) / before.abs().double().mean(-1)
    chosen = d > threshold if threshold > 0 else torch.ones_like(d, dtype=torch.bool)
    if not bool(chosen.any()):
        chosen = torch.ones_like(chosen)
    before, now = before[chosen].double(), now[chosen].double()
    return float((before - now).abs().mean() / before.abs().mean())


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.9, 5.0])
@pytest.mark.parametrize("shape", [(1, 12, 8), (3, 12, 8), (12, 8), (2, 3, 4, 8)])
def test_only_tokens_that_differ_by_more_than_the_threshold_count(threshold: float, shape: tuple[int, ...]) -> None:
    before = normal(*shape, seed=1)
    now = before + normal(*shape, seed=2) * torch.linspace(0, 1, shape[-2])[:, None]
    reading = read_relative_l1(before, now, important=threshold)
    assert reading is not None
    assert reading.diffs == pytest.approx([tokens(before, now, threshold)], rel=1e-5)


def test_where_no_token_is_above_the_threshold_all_count() -> None:
    before = torch.ones(1, 4, 8)
    now = before.clone()
    now[0, 0] += 0.5
    assert read_relative_l1(before, now, important=0.4).diffs == [0.5]
    assert read_relative_l1(before, now, important=0.5).diffs == [0.125]


def test_each_sample_looks_at_its_own_tokens() -> None:
    before, now = torch.ones(2, 4, 8), torch.ones(2, 4, 8)
    now[0, 0] += 0.5
    now[1] += 0.25
    together = read_relative_l1(before, now, samples=2, important=0.4)
    alone = [read_relative_l1(before[i : i + 1], now[i : i + 1], important=0.4).diffs[0] for i in range(2)]
    assert together.diffs == alone == [0.5, 0.25]


def test_a_token_that_is_no_number_makes_the_difference_none() -> None:
    before, now = torch.ones(1, 4, 8), torch.ones(1, 4, 8)
    now[0, 2, 3] = math.nan
    assert math.isnan(read_relative_l1(before, now, important=0.4).diffs[0])


# One read for several numbers


def test_what_is_asked_for_beside_comes_with_the_same_read(monkeypatch: pytest.MonkeyPatch, group: Any) -> None:
    before, now = torch.ones(2, 4), torch.tensor([[1.0] * 4, [2.0] * 4])
    with counted_reads(monkeypatch) as reads:
        reading = read_relative_l1(
            before, now, group, samples=2, health=[torch.ones(2)], beside=(torch.tensor(3.0), torch.tensor([0.5]))
        )
        assert read_numbers([torch.tensor(1.5), torch.tensor([2.5])], group) == [1.5, 2.5]
    assert (reading.diffs, reading.beside) == ([0, 1], [3, 0.5])
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("distance", "threshold", "expected"),
    [(0.1, 0.2, False), (0.2, 0.2, False), (0.3, 0.2, True), (0.0, 0.0, False), (9.0, math.inf, False)],
)
def test_a_distance_exceeds_what_it_is_above(distance: float, threshold: float, expected: bool) -> None:
    assert exceeds(distance, threshold) is expected
    assert exceeds(math.nan, threshold)
    assert not exceeds(distance, None)


def test_the_first_tensor_of_an_output() -> None:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    one, other = torch.ones(1), torch.ones(2)
    for output in (one, (one, other), [(one,), other], {"a": one}, Transformer2DModelOutput(sample=one)):
        assert first_tensor(output) is one
    assert first_tensor((None, "text", other)) is other
    assert first_tensor(None) is first_tensor([]) is None


# EasyCache's measure


def test_a_steps_share_is_the_rate_of_the_last_two_computed_ones_times_its_own_change() -> None:
    seen = EasyCacheProbe()
    x = [torch.full((4,), value) for value in (1.0, 1.5, 1.7, 2.5)]
    v = [torch.full((4,), value) for value in (2.0, 3.0, 0.0, 4.0)]
    seen.note(x[0], v[0], computed=True)
    assert seen.increment(x[1]) is None  # one computed step is no rate
    seen.note(x[1], v[1], computed=True)
    rate = (3.0 - 2.0) / (1.5 - 1.0)
    assert float(seen.increment(x[2])) == pytest.approx(rate * (1.7 - 1.5) / 3.0)
    seen.note(x[2], v[2], computed=False)  # a skipped step's output is no output
    assert float(seen.increment(x[3])) == pytest.approx(rate * (2.5 - 1.7) / 3.0)
    seen.note(x[3], v[3], computed=True)
    assert float(seen.increment(x[2])) == pytest.approx((4.0 - 3.0) / (2.5 - 1.5) * (2.5 - 1.7) / 4.0)


def test_what_a_scheduler_writes_into_its_latent_is_seen() -> None:
    seen, latent = EasyCacheProbe(), torch.ones(4)
    for value in (1.0, 2.0):
        seen.note(latent.fill_(value), latent * 3, computed=True)
    latent += 1
    assert float(seen.increment(latent)) == pytest.approx(3 * 1 / 6)


@pytest.mark.parametrize("other", [torch.ones(5), None, torch.ones(4, device="meta")])
def test_a_latent_of_another_form_has_no_share(other: Any) -> None:
    seen = EasyCacheProbe()
    for value in (1.0, 2.0):
        seen.note(torch.full((4,), value), torch.full((4,), value), computed=True)
    assert seen.nbytes == 2 * 16
    assert seen.increment(other) is None
    seen.clear()
    assert seen.nbytes == 0


# The options of the measurement, on a model


def asked(threshold: float, *, steps: int = STEPS, **extra: Any) -> DBCacheConfig:
    return DBCacheConfig(
        Fn_compute_blocks=2,
        max_warmup_steps=2,
        residual_diff_threshold=threshold,
        num_inference_steps=steps,
        extra_cache_config=ExtraCacheConfig(**extra),
    )


def first_blocks(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What Wan's first two blocks are given and return, at each step of an uncached run."""
    blocks: Any = model.blocks
    entered, left = [], []
    hooks = [
        blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0].clone())),
        blocks[1].register_forward_hook(lambda module, args, output: left.append(output.clone())),
    ]
    run(model)
    for hook in hooks:
        hook.remove()
    return list(zip(entered, left, strict=True))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"l1_hidden_states_diff_threshold": 0.1},
        {"downsample_factor": 3},
        {"important_condition_threshold": 0.12},
        {"important_condition_threshold": 0.12, "downsample_factor": 4},
        {"l1_hidden_states_diff_threshold": 0.1, "downsample_factor": 2},
    ],
)
def test_a_diff_is_what_the_reference_says(extra: dict[str, Any]) -> None:
    model = tiny(WAN)
    state = "l1_hidden_states_diff_threshold" in extra
    probes = [left if state else left - entered for entered, left in first_blocks(model)]
    probes = [probe[..., :: extra.get("downsample_factor", 1)] for probe in probes]
    threshold = 0.1 if state else 0.12
    plan, diffs, last = "", {}, 0
    for step, probe in enumerate(probes):
        diff = tokens(probes[last], probe, extra.get("important_condition_threshold", 0.0))
        if step >= 2:
            diffs[str(step)] = diff
        hit = step >= 2 and diff < threshold
        plan, last = plan + ("C" if hit else "F"), last if hit else step
    cache_dit.enable_cache(model, asked(5.0 if state else threshold, **extra))
    run(model)
    stats = cache_dit.summary(model, logging=False)[0]
    assert line(model) == plan
    assert stats.residual_diffs == pytest.approx(diffs, rel=1e-5)
    assert {"F", "C"} == set(plan[2:])


def test_what_is_kept_to_compare_with_is_downsampled() -> None:
    model, peaks = tiny(WAN), []
    probe = first_blocks(model)[0][0]
    for factor in (1, 4):
        cache_dit.enable_cache(model, asked(0.12, downsample_factor=factor))
        run(model)
        peaks.append(cache_dit.summary(model, logging=False)[0].peak_bytes)
    assert peaks[0] - peaks[1] == probe.nbytes * 3 // 4
    assert peaks[1] == probe.nbytes // 4 + probe.nbytes  # and the residual of the middle blocks


@pytest.mark.parametrize("value", [None, 0.0, -1.0])
def test_without_a_positive_threshold_of_its_own_the_state_is_not_compared(value: float | None) -> None:
    plans = []
    for extra in ({"l1_hidden_states_diff_threshold": value}, {}):
        model = tiny(WAN)
        cache_dit.enable_cache(model, asked(0.12, **extra))
        run(model)
        plans.append((line(model), cache_dit.summary(model, logging=False)[0].residual_diffs))
    assert plans[0] == plans[1]


def test_a_tensor_may_be_the_threshold_of_the_state() -> None:
    plans = set()
    for value in (0.1, torch.tensor(0.1)):
        model = tiny(WAN)
        cache_dit.enable_cache(model, asked(5.0, l1_hidden_states_diff_threshold=value))
        run(model)
        plans.add(line(model))
    assert len(plans) == 1


@pytest.mark.parametrize("calibrator", [None, CalibratorConfig(True, True, calibrator_cache_type="hidden_states")])
def test_options_of_the_measurement_may_change_within_a_request(calibrator: Any) -> None:
    model = tiny(FLUX)
    cache_dit.enable_cache(model, asked(0.9), calibrator)
    handle = cache_dit.session("request")
    with handle, torch.no_grad():
        for step in range(8):
            if step == 4:
                handle.update(extra_cache_config=ExtraCacheConfig(downsample_factor=4))
            model(**given_at(FLUX, step), return_dict=False)
    assert line(model)[:4] == "FFCC"
    assert line(model)[5:] == "CCC"


def test_a_latent_of_discrete_tokens_is_measured_like_any_other() -> None:
    transformation = EasyCacheProbe()
    for latent, output in ((torch.tensor([1, 2]), torch.ones(2)), (torch.tensor([1, 4]), torch.full((2,), 3.0))):
        transformation.note(latent, output, computed=True)
    increment = transformation.increment(torch.tensor([2, 4]))
    assert increment is not None
    assert float(increment) == pytest.approx(2.0 / 1.0 * 0.5 / 3.0)
