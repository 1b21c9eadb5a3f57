"""What `summary`, `CacheStats` and `strify` tell of the latest request."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import CacheStats, ConfigError, DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from cache_dit.caching import FakeDiffusionPipeline
from cache_dit.engine.subclass import state_of
from cache_dit.summary import quantile, report
from tests.kit.toys import (
    TEXT,
    TOKENS,
    WIDTH,
    Toy,
    counted,
    denoise,
    dynamic,
    frozen_run,
    line,
    loop,
    static,
    stream_inputs,
)
from tests.models.tiny import tiny

FEATURE = (TOKENS + TEXT) * WIDTH * 4
"""Bytes of one feature: image and text tokens times width."""


def ran(config: DBCacheConfig, calibrator: Any = None, *, steps: int = 6, **described: Any) -> Toy:
    """A toy after a run."""
    model = Toy("0", described.pop("depths", (5,)))
    cache_dit.enable_cache(model.adapter(**described), config, calibrator)
    denoise(model, loop(steps))
    return model


def stats_of(model: Any) -> CacheStats:
    """The statistics of a model's one chain."""
    return cache_dit.summary(model, logging=False)[0]


# -- entries


def test_there_is_an_entry_for_each_chain_and_one_for_the_transformer() -> None:
    model = ran(static("FCFCFC"), depths=(3, 4))
    entries = cache_dit.summary(model, logging=False)
    assert [entry.name for entry in entries] == ["blocks", "blocks_1", "Toy"]
    assert entries[2].executed_blocks == entries[1].executed_blocks == 3 * 4 + 3
    assert entries[2].cache_options["name"] == "blocks_1"


def test_an_adapter_has_entries_for_its_chains_alone() -> None:
    model = ran(static("FCFCFC"), depths=(3, 4))
    assert [entry.name for entry in cache_dit.summary(model.adapter(), logging=False)] == ["blocks", "blocks_1"]


def test_what_is_not_cached_has_one_empty_entry() -> None:
    for holder in (None, Toy("0"), Toy("0").adapter(), tiny("PixArtTransformer2DModel")):
        assert cache_dit.summary(holder, logging=False) == [CacheStats()]
    with pytest.raises(ConfigError, match="FakeDiffusionPipeline"):
        cache_dit.summary(FakeDiffusionPipeline())


def test_before_the_first_step_there_are_options_and_nothing_else() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FC"))
    stats = stats_of(model)
    assert stats.cache_options == {"cache_config": static("FC"), "name": "blocks"}
    assert (stats.steps_line, stats.cached_steps, stats.executed_blocks, stats.reason) == ({}, [], 0, None)
    assert stats.ideal_speedup == 1.0


def test_the_options_tell_the_calibrator() -> None:
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2)
    assert stats_of(ran(static("FCFCFC"), calibrator)).cache_options["calibrator_config"] == calibrator


def test_steps_and_diffs_are_told_by_number() -> None:
    stats = stats_of(ran(dynamic(residual_diff_threshold=0.2)))
    assert "C" in stats.steps_line["default"]
    assert stats.cached_steps == [step for step, letter in enumerate(stats.steps_line["default"]) if letter == "C"]
    assert list(stats.residual_diffs) == ["1", "2", "3", "4", "5"]
    assert all(0 < diff < 1 for diff in stats.residual_diffs.values())
    assert all(stats.residual_diffs[str(step)] < 0.2 for step in stats.cached_steps)
    assert (stats.cfg_cached_steps, stats.cfg_residual_diffs) == ([], {})


@pytest.mark.parametrize(("front", "back"), [(1, 0), (2, 1), (0, 0)])
def test_the_number_of_blocks_executed_is_what_the_line_says(front: int, back: int) -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FFCCFC", Fn_compute_blocks=front, Bn_compute_blocks=back))
    with counted(model.blocks) as fired:
        denoise(model, loop(6))
    stats = stats_of(model)
    assert stats.executed_blocks == fired.total() == 3 * 5 + 3 * (front + back)
    assert stats.possible_blocks == 6 * 5
    assert stats.ideal_speedup == 30 / stats.executed_blocks


@pytest.mark.parametrize("left_out", [2, 4])
def test_blocks_that_the_loop_leaves_out_are_not_possible_ones(left_out: int) -> None:
    class Leaves(Toy):
        @property
        def all_blocks(self) -> list[torch.nn.Module]:
            return [block for place, block in enumerate(self.blocks) if place != left_out]

    model = Leaves("0")
    cache_dit.enable_cache(model.adapter(), static("FFCC"))
    denoise(model, loop(4))
    assert line(model) == "FFCC"
    assert (stats_of(model).executed_blocks, stats_of(model).possible_blocks) == (2 * 4 + 2, 4 * 4)


@pytest.mark.parametrize("first", ["cond", "uncond"])
def test_the_cfg_fields_are_those_of_the_unconditional_branch_whichever_comes_first(first: str) -> None:
    model = Toy("0")
    order = {"cfg_compute_first": True, "cfg_diff_compute_separate": False} if first == "uncond" else {}
    cache_dit.enable_cache(model.adapter(), static("FCFC", enable_separate_cfg=True, **order))
    for timestep in loop(3):
        denoise(model, [timestep] * 2)
    denoise(model, [0.1])  # the second call of the last step is left out
    stats = stats_of(model)
    assert list(stats.steps_line) == [first, "uncond" if first == "cond" else "cond"]
    assert (stats.cached_steps, stats.cfg_cached_steps) == (([1, 3], [1]) if first == "cond" else ([1], [1, 3]))


def test_the_cfg_fields_tell_uncond_from_cond_by_name() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FCFC"))
    for step, timestep in enumerate(loop(4)):
        for branch in ("uncond", "cond")[: 1 if step == 3 else 2]:
            with state_of(model).branch_named(branch):
                denoise(model, [timestep])
    assert stats_of(model).steps_line == {"uncond": "FCFC", "cond": "FCF"}
    assert (stats_of(model).cached_steps, stats_of(model).cfg_cached_steps) == ([1], [1, 3])


def test_a_second_pass_is_no_guidance() -> None:
    class Twice(Toy):
        @property
        def all_blocks(self) -> list[torch.nn.Module]:
            return [*self.blocks, *self.blocks]

    model = Twice("0")
    cache_dit.enable_cache(model.adapter(), static("FCFC"))
    denoise(model, loop(4))
    stats = stats_of(model)
    assert stats.steps_line == {"default": "FCFC", "default #2": "FCFC"}
    assert (stats.cached_steps, stats.cfg_cached_steps, stats.cfg_residual_diffs) == ([1, 3], [], {})


def test_the_summary_is_that_of_the_latest_request() -> None:
    model = ran(static("FCFCFC"))
    denoise(model, loop(3), seed=1)
    assert line(model) == "FCF"


def test_the_summary_outlives_the_request() -> None:
    model = ran(static("FCFCFC", num_inference_steps=6))
    assert state_of(model).latest.nbytes == 0
    assert line(model) == "FCFCFC"
    assert stats_of(model).peak_bytes > 0


# -- bytes


#: Options, and how many features a branch may keep at most: one more than the predictor wants where a diff is measured.
BOUNDS: dict[str, tuple[DBCacheConfig, TaylorSeerCalibratorConfig | None, int]] = {
    "static": (static("FCFCFC"), None, 1),
    "static F0": (static("FCFCFC", Fn_compute_blocks=0), None, 1),
    "unmeasured": (dynamic(residual_diff_threshold=1.0), None, 1),
    "measured": (dynamic(residual_diff_threshold=0.2), None, 2),
    "measured, no hit": (dynamic(residual_diff_threshold=0.01), None, 2),
    "nothing ever cached": (dynamic(residual_diff_threshold=0.0), None, 0),
    "too short": (dynamic(max_warmup_steps=5, num_inference_steps=6), None, 0),
    "a mask of ones": (static("FFFFFF"), None, 0),
    "no cached steps allowed": (dynamic(max_cached_steps=0), None, 0),
    "taylor 1": (dynamic(residual_diff_threshold=0.01), TaylorSeerCalibratorConfig(taylorseer_order=1), 3),
    "taylor 2": (dynamic(residual_diff_threshold=0.01), TaylorSeerCalibratorConfig(taylorseer_order=2), 4),
    "static taylor 2": (static("FFFFFC"), TaylorSeerCalibratorConfig(taylorseer_order=2), 3),
    "static, states": (static("FFFFFC"), TaylorSeerCalibratorConfig(calibrator_cache_type="hidden_states"), 2),
}


@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_live_state_is_bounded(form: str, bound: str) -> None:
    config, calibrator, features = BOUNDS[bound]
    model = Toy(form)
    cache_dit.enable_cache(model.adapter(), config, calibrator)
    inputs = stream_inputs(model)
    with torch.no_grad():
        for step in range(6):
            model(inputs[0] * (1 + step), *inputs[1:])
            assert state_of(model).latest.nbytes <= features * FEATURE
    least = TOKENS * WIDTH * 4 if features else 0
    assert least <= stats_of(model).peak_bytes <= features * FEATURE


def test_live_state_is_counted_per_branch() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(has_separate_cfg=True), static("FCFC"))
    frozen_run(model, stream_inputs(), 8)
    assert stats_of(model).peak_bytes == 2 * FEATURE


# -- strify


def test_the_tag_says_what_was_asked_for_and_how_many_steps_were_cached() -> None:
    config = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.5, num_inference_steps=6)
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), config)
    assert cache_dit.strify(model) == "DBCache_F1B0_W2I1M0MC0_R0.5_N6_CFG0_T0O0"
    frozen_run(model, stream_inputs(), 6)
    assert cache_dit.strify(model) == "DBCache_F1B0_W2I1M0MC0_R0.5_N6_CFG0_T0O0_S4"
    assert cache_dit.strify(model.adapter()) == cache_dit.strify(model)
    assert cache_dit.strify(cache_dit.summary(model, logging=False)) == cache_dit.strify(model)
    assert cache_dit.strify(stats_of(model)) == cache_dit.strify(model)


@pytest.mark.parametrize(
    ("config", "calibrator", "tag"),
    [
        (
            DBCacheConfig(max_cached_steps=3, max_continuous_cached_steps=2, enable_separate_cfg=True),
            None,
            "DBCache_F8B0_W8I1M3MC2_R0.08_CFG1_T0O0",
        ),
        (
            static("FCF"),
            TaylorSeerCalibratorConfig(taylorseer_order=2),
            "DBCache_F1B0_W1I1M0MC0_R0.08_SCM101_static_CFG0_T1O2",
        ),
        (
            static("FCF"),
            TaylorSeerCalibratorConfig(enable_calibrator=False),
            "DBCache_F1B0_W1I1M0MC0_R0.08_SCM101_static_CFG0_T0O0",
        ),
        (DBCacheConfig(cache_type="NONE"), None, "NONE"),
    ],
)
def test_tags_of_options(config: DBCacheConfig, calibrator: Any, tag: str) -> None:
    options = {"cache_config": config} | ({} if calibrator is None else {"calibrator_config": calibrator})
    assert cache_dit.strify(options) == tag


def test_nothing_enabled_is_none() -> None:
    assert [cache_dit.strify(holder) for holder in (Toy("0"), None, [], {}, CacheStats())] == ["NONE"] * 5


# -- the report


def test_the_report_is_printed_unless_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    model = ran(static("FCFCFC"))
    cache_dit.summary(model, logging=False)
    assert capsys.readouterr().out == ""
    cache_dit.summary(model)
    printed = capsys.readouterr().out
    assert "FCFCFC  (3 computed, 3 cached)" in printed
    assert "blocks executed: 18 of 30 (ideal speed-up 1.67)" in printed
    assert "DBCache_F1B0" in printed


def test_the_report_tells_the_quantiles_of_the_diffs() -> None:
    diffs = {str(step): step / 100 for step in range(1, 12)}
    stats = CacheStats("blocks", {"cache_config": DBCacheConfig()}, [2, 3], diffs)
    text = report(stats)
    assert "| Cache Steps | Diffs P00 | Diffs P25 | Diffs P50 | Diffs P75 | Diffs P95 | Diffs Min | Diffs Max |" in text
    assert "| 2 | 0.010 | 0.035 | 0.060 | 0.085 | 0.105 | 0.010 | 0.110 |" in text
    assert "cached steps" not in text
    assert "cached steps: [2, 3]" in report(stats, details=True)
    assert "11: 0.1100" in report(stats, details=True)


def test_the_report_tells_the_second_branch_too() -> None:
    stats = CacheStats(
        "blocks",
        {"cache_config": DBCacheConfig()},
        cfg_cached_steps=[4],
        cfg_residual_diffs={"4": 0.25},
        steps_line={"cond": "FF", "uncond": "-F"},
    )
    text = report(stats)
    assert "| CFG Cache Steps |" in text
    assert "| 1 | 0.250 |" in text
    assert "uncond  -F  (1 computed, 0 cached)" in text


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [1.0, 2.0, 4.0, 8.0, 16.0]])
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 0.95, 1])
def test_quantiles_are_interpolated(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(torch.tensor(values).quantile(share).item())


# -- why nothing was cached

REASONS: dict[str, tuple[DBCacheConfig, str]] = {
    "threshold": (dynamic(residual_diff_threshold=1e-4), "residual_diff_threshold=0.0001 is not above the smallest"),
    "zero threshold": (dynamic(residual_diff_threshold=0.0), "residual_diff_threshold=0 caches nothing"),
    "warm-up": (dynamic(max_warmup_steps=9), "warm-up (9 steps) leaves none"),
    "too short": (dynamic(max_warmup_steps=5, num_inference_steps=6), "shorter than its warm-up of 5 steps plus 2"),
    "mask": (static("FFFFFF"), "steps_computation_mask says 1"),
    "max_cached_steps": (dynamic(max_cached_steps=0), "max_cached_steps=0 allows no"),
    "max_continuous_cached_steps": (dynamic(max_continuous_cached_steps=0), "max_continuous_cached_steps=0 allows no"),
    "accumulated": (
        dynamic(max_accumulated_residual_diff_threshold=1e-6),
        "is above max_accumulated_residual_diff_threshold=1e-06",
    ),
    "no middle": (static("FCCCCC", Fn_compute_blocks=4, Bn_compute_blocks=1), "leave no block to skip"),
}


@pytest.mark.parametrize("why", REASONS)
def test_a_run_without_a_hit_says_why_in_its_summary_and_once_in_the_log(
    why: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, sentence = REASONS[why]
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = ran(config)
        stats = stats_of(model)
        assert "C" not in stats.steps_line["default"]
        assert sentence in (stats.reason or "")
        assert sentence in report(stats)
        cache_dit.disable_cache(model)
    assert [sentence in record.message for record in caplog.records] == [True]


def test_each_request_has_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = ran(dynamic(residual_diff_threshold=1e-4))
        for seed in (1, 2):
            denoise(model, loop(6), seed=seed)
        cache_dit.refresh_context(model)
    assert len(caplog.records) == 3


def test_a_run_with_a_hit_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = ran(static("FFFFFC"))
        assert stats_of(model).reason is None
        cache_dit.disable_cache(model)
    assert not caplog.records


def test_a_hit_in_one_branch_is_a_hit() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(has_separate_cfg=True), dynamic())
    (hidden, encoder) = stream_inputs()
    with torch.no_grad():
        for _ in range(4):
            model(hidden, encoder)
            model(hidden * math.nan, encoder)
    stats = stats_of(model)
    assert stats.steps_line == {"cond": "FCCC", "uncond": "FFFF"}
    assert stats.reason is None
    assert stats.cfg_residual_diffs == {}


def test_the_table_of_dbprune_counts_blocks() -> None:
    stats = CacheStats(
        cache_options={"cache_config": DBPruneConfig()},
        cached_steps=[2, 3],
        residual_diffs={"2": [0.1, 0.2], "3": [0.3]},
        pruned_blocks=[0, 0, 2, 1],
        actual_blocks=[4] * 4,
        pruned_ratio=3 / 16,
    )
    text = report(stats, details=True)
    assert "| Pruned Blocks | Diffs P00 |" in text
    assert "| 3 | 0.100 |" in text
    assert "pruned steps: [2, 3]" in text
    assert "Cache Steps" not in text
