"""The bench of how costs grow: that a run measures what it says. Its times are not tested."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench.cost import scaling
from bench.cost.scaling import AXES, VARIANTS, Point, points, step_ms
from bench.models import Size
from bench.report.page import Section
from bench.results import Results, findings_of
from bench.timer import HostClock

TINY = Size(hidden=64, double=1, single=1, image_tokens=9, text_tokens=2, steps=3)
SECTION = Section("scaling", "How costs grow", scaling.parts)
RUN = {"runs": 1, "device": torch.device("cpu"), "clock": HostClock("processor")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two tiny models, measured."""
    found = Results.open(tmp_path_factory.mktemp("scaling") / "scaling.json", "scaling", {"quick": True})
    scaling.run([Point("batch", TINY, batch) for batch in (1, 2)], found, **RUN)
    found.finish(findings_of(found.rows.values()))
    return found


def test_one_thing_grows_at_a_time() -> None:
    for quick in (True, False):
        for axis in AXES:
            own = [point for point in points(quick=quick) if point.axis == axis]
            values = [point.value for point in own]
            assert values == sorted(set(values)) and len(values) > 1
            others = {(p.size.hidden, p.size.blocks, p.size.image_tokens, p.batch) for p in own}
            assert len(others) == len(own)
            assert sum(len({row[place] for row in others}) > 1 for place in range(4)) == 1
    assert len({point.key for point in points()}) == len(points())


def test_caches_that_should_not_skip_compute_and_the_others_skip_from_the_second_step(results: Results) -> None:
    for row in results.rows.values():
        if "axis" in row:
            skipping = {"static": "FCC", "dynamic": "FCC", "FirstBlockCache": "FCC"}
            assert row["lines"] == {"full": "FFF", "FirstBlockCache full": "FFF", **skipping}
            assert set(row["times"]) == {"bare", *(one.name for one in VARIANTS), "blocks []", "blocks [0]"}


def test_a_step_is_timed_without_the_first_one() -> None:
    assert step_ms({"times": {"bare": [[9.0, 1.0, 2.0], [9.0, 3.0, 4.0]]}}, "bare") == 2500


def test_findings_are_finite_and_have_names_of_their_own(results: Results) -> None:
    names = {(finding.group, finding.name) for finding in results.findings}
    assert len(names) == len(results.findings)
    assert ("batch", "speed-up ÷ ideal, static, 2 samples") in names
    assert ("batch", "cached step, dynamic ÷ FirstBlockCache, 1 samples") in names
    assert all(math.isfinite(finding.value) for finding in results.findings)


def test_rows_that_are_there_are_not_measured_again(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.dumps(results.rows)
    monkeypatch.setattr(scaling, "expected", lambda *_, **__: pytest.fail("measured again"))
    scaling.run([Point("batch", TINY, 1)], results, **RUN)
    assert json.dumps(results.rows) == before


def test_the_section_takes_any_file(results: Results, tmp_path: Path) -> None:
    text, _ = SECTION.text(results)
    assert "### Batch" in text and "\n| 2 | " in text and "What follows" not in text
    assert SECTION.text(Results.open(tmp_path / "empty.json", "scaling", {}))[0]
