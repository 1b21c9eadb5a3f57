"""diffusers' caches do on the demo pipeline what their settings say, and leave nothing behind."""

from typing import Any

import numpy as np
import pytest
import torch

from bench.quality import batched_guidance
from bench.quality.diffusers_caches import DIFFUSERS_CACHES, DiffusersCache, taylor_schedules
from bench.quality.masks import CANDIDATES
from bench.quality.method import Context, Drawing, Picture

STEPS = 8  # as few as show each of them skipping
PICTURE = Picture("noto emoji of cat face", 5)
#: A setting of each that skips much, and the share of the work that it executes in 8 steps: computed by hand where a
#: whole step is skipped.
FAST: dict[str, tuple[dict[str, Any], float | None]] = {
    "diffusers FirstBlockCache": ({"threshold": 100.0}, 1 / 8 + 7 / 8 / 12),
    "diffusers MagCache": ({"threshold": 10.0, "max_skip_steps": 1, "retention_ratio": 0.25}, 5 / 8),
    "diffusers TaylorSeer": ({"cache_interval": 3, "disable_cache_before_step": 2, "max_order": 1}, 4 / 8),
    "diffusers SeaCache": ({"threshold": 100.0, "residual_order": 0, "max_consecutive_cached": 0}, 2 / 8),
    "diffusers FasterCache": ({"skip_range": 2, "branch_skip_range": 8, "from_timestep": 1001}, None),
    "diffusers PyramidAttentionBroadcast": ({"skip_range": 2, "timesteps": [-1, 1001]}, None),
}


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(STEPS)


@pytest.fixture(scope="module")
def uncached(context: Context) -> Drawing:
    return context.draw(PICTURE, STEPS, counted=True)


def psnr(one: Any, other: Any) -> float:
    return float(-10 * np.log10(np.mean((one.astype(np.float64) - other) ** 2)))


def leftovers(module: torch.nn.Module) -> list[str]:
    """What hooks and instance methods there are on a module and all below it."""
    return [
        f"{name}.{attribute}"
        for name, part in module.named_modules()
        for attribute in ("forward", "cache_context", "_diffusers_hook")
        if attribute in vars(part) and (attribute != "_diffusers_hook" or part._diffusers_hook.hooks)
    ]


@pytest.mark.parametrize("method", DIFFUSERS_CACHES, ids=lambda method: method.name)
def test_it_skips_what_its_setting_says_draws_the_same_twice_and_comes_off(
    method: DiffusersCache, context: Context, uncached: Drawing
) -> None:
    setting, share = FAST[method.name]
    with method.drawer(context) as drawer:
        first, second = drawer.draw(setting, PICTURE), drawer.draw(setting, PICTURE)
        after = drawer.draw(None, PICTURE)
    assert first.work is not None and uncached.work is not None
    assert first.work < 0.85 * uncached.work
    if share is not None:
        assert first.work == pytest.approx(share * uncached.work, rel=0.01)  # blocks of two kinds differ by that
    assert psnr(first.pixels, uncached.pixels) < 100
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(after.pixels, uncached.pixels)
    assert not leftovers(context.pipe.transformer)
    assert not context.pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("method", DIFFUSERS_CACHES, ids=lambda method: method.name)
def test_candidates_are_different_no_more_than_others_have_and_reach_from_careful_to_fast(
    method: DiffusersCache,
) -> None:
    settings = method.settings(28)
    assert 12 <= len(settings) <= CANDIDATES
    assert len({repr(setting) for setting in settings}) == len(settings)


def test_both_branches_in_one_batch_are_the_picture_of_two_calls(context: Context, uncached: Drawing) -> None:
    batched = batched_guidance.draw(context, PICTURE, STEPS, counted=True)
    assert psnr(batched.pixels, uncached.pixels) > 100
    assert (batched.work, batched.blocks) == (uncached.work, uncached.blocks)


def test_faster_cache_as_pictures_is_the_plain_transformer_while_nothing_is_skipped(
    context: Context, uncached: Drawing
) -> None:
    method = next(method for method in DIFFUSERS_CACHES if method.name.endswith("FasterCache"))
    with method.drawer(context) as drawer:
        drawn = drawer.draw({"skip_range": 2, "branch_skip_range": 1, "from_timestep": 1001}, PICTURE)
    assert drawn.work == uncached.work
    assert psnr(drawn.pixels, uncached.pixels) > 100


@pytest.mark.parametrize("steps", [4, 6, 8, 28, 50])
def test_taylor_schedules_keep_to_their_budgets(steps: int) -> None:
    schedules = taylor_schedules(steps)
    counts = [
        sum(step < before or (step - before - 1) % interval == 0 for step in range(steps))
        for before, interval, _ in schedules
    ]
    assert len({schedule[:2] for schedule in schedules}) == len(schedules)
    assert max(counts) <= max(2, steps / (0.98 * 1.5))
    if steps >= 28:
        assert {steps / count >= 0.98 * 5.7 for count in counts} == {True, False}
