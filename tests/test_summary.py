"""What `summary`, `CacheStats` and `strify` tell of the latest request."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import CacheStats, ConfigError, DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from cache_dit.caching import FakeDiffusionPipeline
from cache_dit.engine.policies import reasons
from cache_dit.engine.policies.base import StepRecord
from cache_dit.engine.subclass import state_of
from cache_dit.summary import quantile, report, steps_line
from tests.kit.tiny_models import tiny
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


def test_before_the_first_step_there_are_options_and_what_is_missing() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FC"))
    stats = stats_of(model)
    assert stats.cache_options == {"cache_config": static("FC"), "name": "blocks"}
    assert (stats.steps_line, stats.cached_steps, stats.executed_blocks) == ({}, [], 0)
    assert "was not called" in (stats.reason or "")
    assert stats.step_records == {}
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
            with state_of(model).router.branch_named(branch):
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


def printed_rows(text: str) -> list[list[str]]:
    """The cells of a printed report's rows; two blanks or more part them."""
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


def test_the_report_is_printed_unless_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    model = ran(static("FCFCFC"))
    cache_dit.summary(model, logging=False)
    assert capsys.readouterr().out == ""
    cache_dit.summary(model)
    printed = capsys.readouterr().out
    assert printed == report(stats_of(model))
    rows = printed_rows(printed)
    assert rows[1] == ["branch", "computed", "cached", "steps (F computed, C cached)"]
    assert rows[2] == ["default", "3", "3", "FCFCFC"]
    assert rows[3][0].startswith("18 of 30 blocks run, ideal speed-up 1.67, at most ")


class Refined(Toy):
    """Blocks that no description mentions run before those that one does."""

    def __init__(self) -> None:
        super().__init__("0", (5,))
        self.refiner = torch.nn.ModuleList(self.form.block() for _ in range(3))
        self.embedders = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.requires_grad_(False)

    @property
    def all_blocks(self) -> list[torch.nn.Module]:
        return [*self.refiner, *self.blocks]


def test_where_the_model_has_other_blocks_too_the_speed_up_names_those_that_it_is_of() -> None:
    model = Refined()
    cache_dit.enable_cache(model.adapter(), static("FCFCFC"))
    denoise(model, loop(6))
    stats = stats_of(model)
    assert (stats.executed_blocks, stats.possible_blocks, stats.partial) == (18, 30, True)
    told = "18 of 30 blocks run, ideal speed-up of the blocks in blocks 1.67, at most "
    assert told in report(stats)
    del model.refiner
    assert not stats_of(model).partial  # plain layers in a list are no blocks


def test_of_several_chains_each_names_its_own_blocks_and_one_of_all_names_none() -> None:
    model = ran(static("FCFCFC"), depths=(3, 4))
    told = [report(stats) for stats in cache_dit.summary(model, logging=False)[:2]]
    assert "ideal speed-up of the blocks in blocks 1.50" in told[0]
    assert "ideal speed-up of the blocks in blocks_1 1.60" in told[1]
    merged = stats_of(ran(static("FCFCFC"), depths=(3, 4), merge=True))
    assert not merged.partial and "of the blocks in" not in report(merged)


def test_blocks_of_a_list_that_the_description_leaves_out_are_beside_it() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(blocks=list(model.blocks[1:])), static("FCFCFC"))
    denoise(model, loop(6))
    assert stats_of(model).partial


def test_the_report_is_no_markdown_and_has_no_code(capsys: pytest.CaptureFixture[str]) -> None:
    cache_dit.summary(ran(dynamic(residual_diff_threshold=0.2)), details=True)
    printed = capsys.readouterr().out
    assert "|" not in printed and "---" not in printed and "_F1B0_" not in printed


def test_where_no_cache_is_on_the_report_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    cache_dit.summary(Toy("0"))
    assert capsys.readouterr().out == "cache_dit: no cache is on\n"


def test_a_line_of_steps_is_folded_in_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert "FC" * 20 in report(stats_of(ran(static("FC" * 20), steps=40)))


SETTINGS: dict[str, tuple[DBCacheConfig, list[str]]] = {
    "threshold": (
        dynamic(max_continuous_cached_steps=3),
        [
            *("DBCache", "Fn_compute_blocks=1", "residual_diff_threshold=0.5", "max_warmup_steps=1"),
            *("max_continuous_cached_steps=3", "predicted by the last computed step"),
        ],
    ),
    "a limit that is none": (
        dynamic(max_cached_steps=-7, max_accumulated_residual_diff_threshold=0.0),
        [
            *("DBCache", "Fn_compute_blocks=1", "residual_diff_threshold=0.5", "max_warmup_steps=1"),
            "predicted by the last computed step",
        ],
    ),
    "static mask": (
        static("FCFC", max_cached_steps=3),
        ["DBCache", "static mask", "Fn_compute_blocks=1", "predicted by the last computed step"],
    ),
}


@pytest.mark.parametrize("which", SETTINGS)
def test_the_settings_told_are_those_that_act(which: str) -> None:
    config, told = SETTINGS[which]
    first = report(stats_of(ran(config))).splitlines()[0]
    assert first.removeprefix("cache_dit: blocks: ").split(", ") == told


def test_what_a_plan_decides_is_not_told_as_a_setting() -> None:
    config = DBCacheConfig(plan="plan.json", cache_dtype="bfloat16")
    text = report(CacheStats("blocks", {"cache_config": config, "calibrator_config": TaylorSeerCalibratorConfig()}))
    assert text == "cache_dit: blocks: DBCache, by a plan, cache_dtype=bfloat16\n"


def test_the_calibrator_is_told_as_the_call_that_makes_it() -> None:
    text = report(stats_of(ran(static("FCFCFC"), TaylorSeerCalibratorConfig(taylorseer_order=2))))
    assert "predicted by TaylorSeerCalibratorConfig(taylorseer_order=2)" in text
    switched_off = report(stats_of(ran(static("FCFCFC"), TaylorSeerCalibratorConfig(enable_calibrator=False))))
    assert "predicted by the last computed step" in switched_off


def recorded(*diffs: float, threshold: float = 0.05) -> list[StepRecord]:
    """Records of a first step, and of further ones with these diffs."""
    further = [
        StepRecord(step, diff >= threshold, diff, "threshold" if diff >= threshold else "hit")
        for step, diff in enumerate(diffs, 1)
    ]
    return [StepRecord(0, True, None, "first"), *further]


def told(**records: list[StepRecord]) -> CacheStats:
    """Statistics with a line of steps for each of some branches."""
    lines = {label: steps_line(found) for label, found in records.items()}
    return CacheStats("blocks", {"cache_config": DBCacheConfig()}, steps_line=lines, step_records=records)


def test_the_report_tells_the_quantiles_of_the_diffs_of_each_branch() -> None:
    stats = told(cond=recorded(*(step / 100 for step in range(1, 12))), uncond=recorded(0.25, math.nan))
    rows = printed_rows(report(stats))
    assert rows[1][3:7] == ["diff min", "diff median", "diff P95", "diff max"]
    assert rows[2] == ["cond", "8", "4", "0.0100", "0.0600", "0.1050", "0.1100", "FCCCCFFFFFFF"]
    assert rows[3][:4] == ["uncond", "2", "1", "0.2500"]


def test_details_tell_the_diff_and_the_reason_of_each_step() -> None:
    stats = told(default=recorded(0.03, 0.07))
    assert len(printed_rows(report(stats))) == 3
    rows = printed_rows(report(stats, details=True))[3:]
    assert rows == [
        ["default", "step", "diff", "reason"],
        ["computed", "0", "nothing was computed before it"],
        ["cached", "1", "0.0300", "the diff is below the threshold"],
        ["computed", "2", "0.0700", "the diff is not below the threshold"],
    ]


def test_every_reason_that_the_engine_gives_has_words() -> None:
    config = DBCacheConfig()
    codes = {"first", "hit", "threshold", *reasons._sentences(config, 4, 2, 0.1)}
    assert [code for code in codes if reasons.step_reason(StepRecord(0, True, 0.1, code), config) == code] == []
    assert reasons.step_reason(StepRecord(0, True, None, "gradients"), config).startswith("While gradients")
    assert reasons.step_reason(StepRecord(3, True, None, "every_third"), config) == "every_third"
    assert "nothing is measured" in reasons.step_reason(StepRecord(1, False, None, "hit"), config)


def test_the_report_tells_the_second_branch_too() -> None:
    stats = CacheStats("blocks", {"cache_config": DBCacheConfig()}, steps_line={"cond": "FF", "uncond": "-F"})
    assert printed_rows(report(stats))[2:] == [["cond", "2", "0", "FF"], ["uncond", "1", "0", "-F"]]


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [1.0, 2.0, 4.0, 8.0, 16.0]])
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 0.95, 1])
def test_quantiles_are_interpolated(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(torch.tensor(values).quantile(share).item())


# -- why nothing was cached

PRUNE_NOTHING = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.0)

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
    said = why != "zero threshold"  # that is what was asked for
    assert [sentence in record.message for record in caplog.records] == [True] * said


def test_a_reason_is_said_once_for_a_model_until_the_cache_is_put_on_anew(caplog: pytest.LogCaptureFixture) -> None:
    config = dynamic(residual_diff_threshold=1e-4)
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = ran(config)
        for seed in (1, 2):  # their smallest diffs are others, the reason is not
            denoise(model, loop(6), seed=seed)
        cache_dit.refresh_context(model)
        assert len(caplog.records) == 1
        denoise(model, loop(6), seed=1)
        assert "not above the smallest" in (stats_of(model).reason or "")
        cache_dit.refresh_context(model, max_cached_steps=0, residual_diff_threshold=0.5)
        assert len(caplog.records) == 1
        denoise(model, loop(6), seed=1)
        cache_dit.refresh_context(model)
        assert ["max_cached_steps=0" in one.message for one in caplog.records] == [False, True]
        cache_dit.enable_cache(model.adapter(), config)
        denoise(model, loop(6), seed=1)
        cache_dit.refresh_context(model)
        assert ["max_cached_steps=0" in one.message for one in caplog.records] == [False, True, False]


@pytest.mark.parametrize("config", [dynamic(residual_diff_threshold=0.0), PRUNE_NOTHING], ids=["steps", "blocks"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_threshold_of_zero_is_not_told(config: DBCacheConfig, grad: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = Toy("0", (5,))
        cache_dit.enable_cache(model.adapter(), config)
        hidden, encoder = stream_inputs()
        with torch.set_grad_enabled(grad):
            for timestep in loop(6):
                model(hidden.requires_grad_(grad), encoder, timestep)
        assert stats_of(model).reason
        cache_dit.disable_cache(model)
    assert not caplog.records


def test_a_model_that_is_called_by_its_forward_was_never_called() -> None:
    model = Toy("0", (5,))
    cache_dit.enable_cache(model.adapter(), static("FCFCFC"))
    hidden, encoder = stream_inputs()
    with torch.no_grad(), counted(model.blocks) as fired:
        for timestep in loop(6):
            model.forward(hidden, encoder, timestep)
    assert fired == dict.fromkeys(range(5), 6)
    stats = stats_of(model)
    assert "transformer.forward(…)" in (stats.reason or "") and "was not called" in (stats.reason or "")
    assert "no step was cached: The transformer was not called" in report(stats)
    denoise(model, loop(6))
    assert (stats_of(model).steps_line, stats_of(model).reason) == ({"default": "FCFCFC"}, None)


def test_a_run_with_a_hit_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = ran(static("FFFFFC"))
        assert stats_of(model).reason is None
        cache_dit.disable_cache(model)
    assert not caplog.records


HARDLY = {"max_warmup_steps": 6, "num_inference_steps": 8}


def test_a_run_that_was_hardly_faster_is_told_once_with_what_to_change(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = Toy("0", (5,))
        cache_dit.enable_cache(model.adapter(), dynamic(Fn_compute_blocks=3, **HARDLY))
        for _ in range(2):
            denoise(model, loop(8))
        cache_dit.disable_cache(model)
    assert stats_of(model).ideal_speedup == 1.0  # taken off: nothing to tell
    assert [one.message for one in caplog.records] == [
        "cache_dit: the ideal speed-up was 1.11: max_warmup_steps=6 computed 6 of 8 steps: pass a smaller one. "
        "3 of 5 blocks run in cached steps too: pass a smaller Fn_compute_blocks."
    ]


def test_another_reason_for_a_run_that_was_hardly_faster_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    model = Toy("0", (5,))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        cache_dit.enable_cache(model.adapter(), dynamic(**HARDLY, max_cached_steps=1))
        denoise(model, loop(8))
        cache_dit.refresh_context(model, max_warmup_steps=2)
        denoise(model, loop(8))
        cache_dit.disable_cache(model)
    assert ["max_warmup_steps=6" in one.message for one in caplog.records] == [True, False]
    assert all("max_cached_steps=1 computed" in one.message for one in caplog.records)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (dynamic(max_warmup_steps=2), 8),
        (dynamic(max_warmup_steps=6, num_inference_steps=20), 7),
        (static("FFFFFFC"), 7),
    ],
    ids=["faster", "given up", "as the mask says"],
)
def test_nothing_is_said_of_a_run_that_was_faster_was_given_up_or_did_what_a_mask_says(
    config: DBCacheConfig, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        model = Toy("0", (5,))
        cache_dit.enable_cache(model.adapter(), config)
        denoise(model, loop(steps))
        assert "C" in stats_of(model).steps_line["default"]
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


def test_the_report_of_dbprune_counts_blocks() -> None:
    records = [
        *(StepRecord(step, True, None, "warmup", 0, 4) for step in range(2)),
        StepRecord(2, False, 0.15, "hit", 2, 4, (0.2, 0.1)),
        StepRecord(3, False, 0.3, "hit", 1, 4, (0.3,)),
    ]
    stats = told(default=records)
    stats.cache_options = {"cache_config": DBPruneConfig()}
    rows = printed_rows(report(stats, details=True))
    assert rows[1][:4] == ["branch", "computed", "pruned", "blocks pruned"]
    assert rows[2] == ["default", "2", "2", "3 of 16", "0.1000", "0.2000", "0.2900", "0.3000", "FFPP"]
    assert rows[-2] == ["2 of 4 blocks pruned", "2", "0.1000 – 0.2000", "the diff is below the threshold"]
    assert "cached" not in report(stats)
