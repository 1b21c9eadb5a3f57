"""The table of configurations."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cache_dit import Plan
from cache_dit.demo import load_pipeline, plans
from cache_dit.demo.configurations import Configuration, configurations, plan_for
from tests.demo.plans import even_plan

PLAN = even_plan(28, 16, 14, 12, 10, 7)


def named(columns: tuple[Configuration, ...]) -> dict[str, Any]:
    return {configuration.name: configuration for configuration in columns}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of that of the shipped plans."""
    monkeypatch.setattr(plans, "FOLDER", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Any:
    return load_pipeline(tiny_folder, progress=False)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 28, 50, 100])
def test_they_can_be_made_for_any_number_of_steps(steps: int):
    for configuration in configurations(steps):
        mask = configuration.cache and configuration.cache.steps_computation_mask
        assert mask is None or len(mask) == steps


@pytest.mark.parametrize("plan", [None, PLAN])
def test_the_first_is_uncached_and_at_most_six_others_follow_with_names_of_their_own(plan: Plan | None):
    columns = configurations(28, plan)
    assert columns[0].cache is None
    assert all(configuration.cache is not None for configuration in columns[1:])
    assert len(named(columns)) == len(columns) == (7 if plan else 5)


def test_what_is_no_plan_has_a_predictor():
    columns = configurations(28, PLAN)[1:]
    assert all((column.calibrator is None) == isinstance(column.cache, Plan) for column in columns)


def test_a_plan_is_shown_at_the_most_full_steps_that_reach_each_speed_up():
    columns = named(configurations(28, PLAN))
    assert (columns["plan 2×"].cache.chosen, columns["plan 4×"].cache.chosen) == (14, 7)


def test_the_even_mask_computes_as_many_steps_as_the_faster_plan():
    columns = named(configurations(28, PLAN))
    assert sum(columns["even mask"].cache.steps_computation_mask) == columns["plan 4×"].cache.point.full_steps


def test_speed_ups_that_one_point_reaches_are_one_column_and_those_that_none_reaches_none():
    assert [name for name in named(configurations(28, even_plan(28, 7))) if "plan" in name] == ["plan 4×"]
    assert [name for name in named(configurations(28, even_plan(28, 14))) if "plan" in name] == ["plan 2×"]
    assert [name for name in named(configurations(28, even_plan(28, 20))) if "plan" in name] == []


def test_a_plan_says_what_was_measured_or_that_it_is_an_estimate():
    column = named(configurations(28, PLAN))["plan 4×"]
    assert column.explanation.startswith("7 of 28 steps")
    unseen = "Quality: 40.0 dB, mean of 8 held-out pictures (5th percentile 36.0)."
    assert column.explanation.endswith(unseen)
    adapted = named(configurations(50, PLAN.adapt(50)))["plan 4×"]
    assert "Quality: unknown: an estimate. An estimate: adapted from 28 to 50 steps" in adapted.explanation
    assert " dB" not in adapted.explanation


def test_a_plan_is_written_with_its_chosen_point_alone_and_can_be_read_again():
    column = named(configurations(28, PLAN))["plan 4×"]
    written = json.loads(json.dumps(column.as_dict(), allow_nan=False))
    assert Plan.of(written["cache"]["plan"]) == even_plan(28, 7).select(full_steps=7)


def test_the_plan_of_so_many_steps_is_taken_where_there_is_one_and_else_adapted(shipped: Path, pipe: Any):
    even_plan(28, 14, 7, pipe=pipe).save(shipped / "28.json")
    even_plan(20, 10, pipe=pipe).save(shipped / "20.json")
    assert plan_for(pipe, 28) == even_plan(28, 14, 7, pipe=pipe)
    assert plan_for(pipe, 20) == even_plan(20, 10, pipe=pipe)
    assert plan_for(pipe, 50) == even_plan(28, 14, 7, pipe=pipe).adapt(50)


@pytest.mark.parametrize(
    ("made_for", "steps", "why"),
    [(None, 28, "no plan of the demo model"), ("this", 2, "num_inference_steps=2"), ("another", 28, "weights=")],
)
def test_without_a_plan_that_fits_there_is_none_and_one_line_of_log_says_why(
    made_for: str | None, steps: int, why: str, shipped: Path, pipe: Any, caplog: pytest.LogCaptureFixture
):
    if made_for is not None:
        plan = even_plan(28, 10, pipe=pipe).as_dict()
        plan["scope"]["weights"] = plan["scope"]["weights"] if made_for == "this" else "0" * 32
        Plan.of(plan).save(shipped / "28.json")
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        assert plan_for(pipe, steps) is None
    (record,) = caplog.records
    assert record.message.startswith("cache_dit: the columns with plans are left out: ")
    assert why in record.message
