"""The comparison: taking turns, and what is counted."""

from pathlib import Path

import numpy as np
import pytest

from cache_dit import DBCacheConfig, steps_mask
from cache_dit.demo import load_pipeline
from cache_dit.demo.compare import Comparison, Settings, compare
from cache_dit.demo.configurations import UNCACHED, Configuration
from cache_dit.demo.figures import column_figures
from cache_dit.summary import CacheStats

STEPS = 6
MASK = steps_mask(compute_bins=[2, 1], cache_bins=[2, 1])
STATIC = Configuration(
    "static",
    "",
    DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=MASK, steps_computation_policy="static"),
)
NEVER = Configuration("never", "", DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0, max_warmup_steps=1))
COLUMNS = (UNCACHED, NEVER, STATIC)


@pytest.fixture(scope="module")
def noted() -> list[tuple[str, str]]:
    return []


@pytest.fixture(scope="module")
def comparison(tiny_folder: Path, noted: list[tuple[str, str]]) -> Comparison:
    pipe = load_pipeline(tiny_folder, progress=False)
    settings = Settings(("owl", "rocket"), steps=STEPS, repeats=2)
    return compare(pipe, settings, COLUMNS, lambda prompt, configuration: noted.append((prompt, configuration.name)))


def test_the_runs_take_turns_in_rotating_order_after_a_warm_up(comparison: Comparison, noted: list[tuple[str, str]]):
    assert [prompt for prompt, _ in noted[:2]] == ["warm-up", "warm-up"]
    turns = [tuple(name for _, name in noted[start : start + 3]) for start in range(2, len(noted), 3)]
    assert turns == [
        ("no cache", "never", "static"),
        ("never", "static", "no cache"),
        ("never", "static", "no cache"),
        ("static", "no cache", "never"),
    ]


def test_every_picture_is_timed_in_every_repeat(comparison: Comparison):
    assert [len(drawing.seconds) for row in comparison.rows for drawing in row] == [2] * 6
    assert all(seconds > 0 for row in comparison.rows for drawing in row for seconds in drawing.seconds)


def test_steps_and_blocks_are_those_of_the_configuration(comparison: Comparison):
    for uncached, never, static in comparison.rows:
        assert (static.computed_steps, static.steps) == (3, STEPS)
        assert (static.stats.executed_blocks, static.stats.possible_blocks) == (3 * 3, STEPS * 3)
        for drawing in (uncached, never):
            assert (drawing.computed_steps, drawing.steps) == (STEPS, STEPS)
            assert drawing.stats.executed_blocks == drawing.stats.possible_blocks == STEPS * 3


def test_a_configuration_that_skips_nothing_draws_the_uncached_picture(comparison: Comparison):
    for uncached, never, static in comparison.rows:
        assert np.array_equal(uncached.pixels, never.pixels)
        assert never.psnr == float("inf")
        assert static.psnr < float("inf")


def test_speedups_are_ratios_of_medians_within_a_prompt(comparison: Comparison):
    for uncached, never, static in comparison.rows:
        for drawing in (never, static):
            assert drawing.speedup == pytest.approx(uncached.median_seconds / drawing.median_seconds)


def test_the_pipeline_is_left_without_a_cache(tiny_folder: Path):
    pipe = load_pipeline(tiny_folder, progress=False)
    before = type(pipe), type(pipe.transformer)
    compare(pipe, Settings(("owl",), steps=2, repeats=1), (UNCACHED, NEVER))
    assert (type(pipe), type(pipe.transformer)) == before


def test_over_all_prompts_speedups_are_geometric_means_and_psnr_is_a_median(comparison: Comparison):
    rows = comparison.rows
    for row, seconds, psnr in zip(rows, (1.0, 4.0), (20.0, 30.0), strict=True):
        row[2].speedup, row[2].seconds, row[2].psnr = seconds, [seconds], psnr
    static = column_figures(comparison)[2]
    assert static.speedup == pytest.approx(2.0)
    assert static.median_seconds == 2.5
    assert (static.psnr, static.worst_psnr) == (25.0, 20.0)
    assert static.ideal_speedup == pytest.approx(2.0)


def test_both_branches_of_guidance_are_counted(comparison: Comparison):
    drawing = comparison.rows[0][2]
    drawing.stats = CacheStats(steps_line={"cond": "FFCC", "uncond": "FFC-"})
    assert (drawing.computed_steps, drawing.steps) == (4, 7)
