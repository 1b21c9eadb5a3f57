"""The benchmark of how costs grow: its fits, and that a run measures what it says. Its times are not tested."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu.clock import HostClock
from bench.peers.cost import Size
from bench.results import Results
from bench.scaling import measure
from bench.scaling.findings import findings_of, python_seconds, step_seconds
from bench.scaling.fit import falls_below, fitted
from bench.scaling.points import UNITS, Point, points
from bench.scaling.section import SECTION

TINY = Size(hidden=64, double=1, single=1, image_tokens=9, text_tokens=2, steps=3)
coefficients = st.floats(0.01, 100)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three tiny models, measured."""
    found = Results.open(tmp_path_factory.mktemp("scaling") / "scaling.json", "scaling", {"quick": True})
    chosen = [Point("batch", TINY, batch) for batch in (1, 2, 4)]
    measure.run(
        chosen, found, runs=1, calls=5, device=torch.device("cpu"), clock=HostClock("processor"), say=lambda line: None
    )
    found.finish(findings_of(found.rows))
    return found


# -- fits


@given(coefficients, coefficients, coefficients)
def test_a_fit_finds_the_curve_that_the_points_lie_on(a: float, b: float, c: float):
    xs = [1.0, 2.0, 5.0, 9.0, 20.0]
    fit = fitted(xs, [a + b * x + c * x * x for x in xs], (0, 1, 2))
    assert fit.error < 1e-6
    assert fit(40.0) == pytest.approx(a + b * 40 + c * 1600, rel=1e-3)


@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=8))
def test_no_part_of_a_fit_is_negative(ys: list[float]):
    fit = fitted(range(1, len(ys) + 1), ys, (0, 1, 2))
    assert all(coefficient >= 0 for coefficient in fit.coefficients)
    assert fit.error <= fit.largest


def test_a_fit_has_fewer_terms_than_points():
    assert fitted([1, 2], [1.0, 3.0], (0, 1, 2)).powers == (0,)
    assert fitted([1, 2, 3], [1.0, 3.0, 9.0], (0, 1, 2)).powers == (0, 1)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (lambda n: 1 / n, (100.0, "measured")),
        (lambda n: 10 / n, (1000.0, "extrapolated")),
        (lambda n: 0.015 / n, (1.5, "extrapolated")),
        (lambda n: 0.001, (1.0, "below")),
        (lambda n: 0.5, (500_000.0, "never")),
    ],
)
def test_where_a_share_falls_below_a_hundredth_and_how_that_is_known(share: Any, expected: tuple[float, str]):
    value, how = falls_below(share, 2.0, 500.0)
    assert (value, how) == (pytest.approx(expected[0]), expected[1])


# -- rows


def test_one_thing_grows_at_a_time():
    for quick in (True, False):
        for axis in UNITS:
            own = [point for point in points(quick=quick) if point.axis == axis]
            values = [point.value for point in own]
            assert values == sorted(set(values)) and len(values) > 1
            others = {(p.size.hidden, p.size.blocks, p.size.image_tokens, p.batch) for p in own}
            assert len(others) == len(own)
            assert max(len({row[place] for row in others}) for place in range(4)) == len(own)
            assert sum(len({row[place] for row in others}) > 1 for place in range(4)) == 1
    assert len({point.key for point in points()}) == len(points())


def test_caches_that_should_not_skip_compute_and_the_others_skip_from_the_second_step(results: Results):
    for row in results.rows.values():
        if "axis" in row:
            assert row["lines"] == {"full": "FFF", "static": "FCC", "dynamic": "FCC"}
            assert set(row["times"]) == {"bare", "rest", *measure.caches(3)}


def test_a_step_is_timed_without_the_first_one():
    assert step_seconds({"times": {"bare": [[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]}}, "bare") == 2.5


def test_python_is_told_by_step_and_by_block():
    few, many = measure.FEW, measure.MANY
    times = {str(n): {"bare": [[1.0]], "wrapped": [[1.0 + 0.5 + 0.25 * n]]} for n in (few, many)}
    assert python_seconds({"times": times}) == pytest.approx((0.5, 0.25))


def test_findings_say_where_the_wrapper_is_a_hundredth_of_a_step(results: Results):
    found = {(finding.group, finding.name): finding for finding in results.findings}
    one = found["batch", "samples from which the wrapper's Python is below 1 % of a full step"]
    assert one.details["how"] in ("below", "measured", "extrapolated", "never")
    assert set(one.details["share_at"]) == {"1", "2", "4"}
    assert one.low is not None and one.high is not None and one.low <= one.value <= one.high
    assert all(math.isfinite(finding.value) for finding in results.findings)
    assert len(found) == len(results.findings)


def test_rows_that_are_there_are_not_measured_again(results: Results):
    before = json.dumps(results.rows)
    chosen = [Point("batch", TINY, 1)]
    measure.run(chosen, results, runs=1, calls=5, device=torch.device("cpu"), clock=HostClock(), say=pytest.fail)
    assert json.dumps(results.rows) == before


# -- report


def test_the_section_takes_any_file(results: Results, tmp_path: Path):
    text = SECTION.text(results)
    assert "### Batch" in text and "{figure: scaling_batch}" in text
    drawn = list(SECTION.figures(results))
    assert [one.name for one in drawn] == ["scaling_batch"]
    empty = Results.open(tmp_path / "empty.json", "scaling", {})
    assert SECTION.text(empty) and not list(SECTION.figures(empty))
    empty.add("batch: 1", results.rows["batch: 1"])
    assert "{figure" not in SECTION.text(empty) and not list(SECTION.figures(empty))
