"""`cache-dit bench check`: what counts as moved, as worse, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.commands import main
from bench.comparison import beyond_noise, compare
from bench.findings import Finding
from bench.results import Results
from cache_dit.errors import ConfigError

MACHINE = {"device": "abacus", "system": "clay", "cores": 1, "threads": 1, "versions": {"torch": "2.13"}}


def results(*findings: Finding, path: str = "x.json", **changes: Any) -> Results:
    fields = {"bench": "overhead", "settings": {"steps": 28}, "machine": MACHINE, **changes}
    return Results(Path(path), fields["bench"], fields["settings"], fields["machine"], {}, list(findings), 1.0)


def one(value: float, low: float | None = None, high: float | None = None, **options: Any) -> Finding:
    return Finding(**{"name": "cost", "value": value, "unit": "×", "low": low, "high": high, **options})


@pytest.mark.parametrize(
    ("before", "now", "moved"),
    [
        (one(1.0, 0.9, 1.1), one(1.3, 1.2, 1.4), True),
        (one(1.0, 0.9, 1.1), one(1.15, 1.05, 1.25), False),  # the intervals meet
        (one(1.0, 0.999, 1.001), one(1.01, 1.009, 1.011), False),  # apart, and yet a trifle
        (one(3), one(4), True),  # counts
        (one(0), one(1), True),
        (one(0), one(0), False),
        (one(1.0, 0.9, 1.1), one(1.05), False),  # a number without an interval, inside of one
        (one(-2.0), one(-3.0), True),
    ],
)
def test_moved_is_what_intervals_and_tolerance_leave_no_doubt_of(before: Finding, now: Finding, moved: bool) -> None:
    assert beyond_noise(before, now, 0.02) is moved
    assert beyond_noise(now, before, 0.02) is moved


_VALUES = st.floats(-1e6, 1e6)


@given(_VALUES, _VALUES, _VALUES, st.floats(0, 0.5))
def test_a_finding_never_moved_against_itself(value: float, low: float, high: float, tolerance: float) -> None:
    finding = one(value, *sorted((low, high)))
    assert not beyond_noise(finding, finding, tolerance)


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        ("≤ 1.5", 1.3, "worse"),
        ("≤ 1.5", 0.7, "better"),
        ("≥ 0.5", 1.3, "better"),
        ("≥ 0.5", 0.7, "worse"),
        ("", 1.3, "moved"),
        ("= 1", 1.3, "moved"),
    ],
)
def test_the_target_tells_what_is_worse(target: str, value: float, verdict: str) -> None:
    before, now = (one(x, target=target, reached=True) for x in (1.0, value))
    (change,) = compare(results(now), results(before)).changes
    assert change.verdict == verdict


def test_a_target_newly_missed_is_worse_though_the_value_hardly_moved() -> None:
    before, now = one(1.009, target="≤ 1.01", reached=True), one(1.011, target="≤ 1.01", reached=False)
    comparison = compare(results(now), results(before))
    assert [(change.newly_missed, change.beyond_noise) for change in comparison.changes] == [(True, False)]
    assert comparison.worse == 1
    back = compare(results(before), results(now))
    assert [change.newly_reached for change in back.changes] == [True]
    assert back.worse == 0


def test_findings_are_known_by_group_and_name() -> None:
    before = results(one(1.0, group="a"), one(2.0, group="b"), one(5.0, name="gone"))
    now = results(one(2.0, group="b"), one(1.0, group="a"), one(7.0, name="new"))
    comparison = compare(now, before)
    assert (comparison.unchanged, comparison.changes) == (2, [])
    assert [finding.name for finding in comparison.appeared] == ["new"]
    assert [finding.name for finding in comparison.gone] == ["gone"]


def test_another_unit_is_a_change() -> None:
    assert compare(results(one(1.0, unit="ms")), results(one(1.0, unit="s"))).changes[0].verdict == "moved"


def test_other_conditions_are_told() -> None:
    machine = {**MACHINE, "device": "slide rule", "versions": {"torch": "2.14"}}
    said = compare(results(one(1), settings={"steps": 6}, machine=machine), results(one(1))).conditions
    assert said == [
        'device: "abacus" there, "slide rule" now',
        'versions.torch: "2.13" there, "2.14" now',
        "steps: 28 there, 6 now",
    ]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="of the bench 'gpu'"):
        compare(results(one(1), bench="gpu"), results(one(1)))
    with pytest.raises(ConfigError, match="has no findings yet"):
        compare(results(), results(one(1)))


# -- the command


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A fresh file that is worse in one finding, on another machine, and a committed one."""
    slower = one(2.0, 1.9, 2.1, name="cost [bold]of[/bold] a step", target="≤ 1.5", reached=False, group="core")
    before = one(1.0, 0.9, 1.1, name="cost [bold]of[/bold] a step", target="≤ 1.5", reached=True, group="core")
    paths = str(tmp_path / "fresh.json"), str(tmp_path / "committed.json")
    results(slower, path=paths[0], machine={**MACHINE, "device": "slide rule"}).save()
    results(before, one(1.0, name="was there"), path=paths[1]).save()
    return paths


def test_the_table_says_conditions_first_and_names_as_they_are(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *files]) == 0
    printed = capsys.readouterr().out
    assert printed.index("slide rule") < printed.index("what moved") < printed.index("went away")
    assert "cost [bold]of[/bold] a step" in printed
    assert "misses ≤ 1.5" in printed
    assert "0 unchanged, 1 moved, 1 targets newly missed" in printed
    assert "1 got worse" in printed


def test_strict_fails_where_something_got_worse_and_nowhere_else(files: tuple[str, str]) -> None:
    fresh, committed = files
    assert main(["check", fresh, committed, "--strict"]) == 1
    assert main(["check", committed, fresh, "--strict"]) == 0
    assert main(["check", fresh, fresh, "--strict"]) == 0


def test_json_holds_everything(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *files, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["worse"] == 1
    assert printed["changes"][0]["before"]["value"] == 1.0
    assert printed["changes"][0]["newly_missed"] is True
    assert [finding["name"] for finding in printed["gone"]] == ["was there"]


def test_the_committed_file_is_found_by_the_benchs_name(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.commands.COMMITTED", tmp_path)
    (tmp_path / "committed.json").rename(tmp_path / "overhead.json")
    assert main(["check", files[0]]) == 0
    assert "1 got worse" in capsys.readouterr().out


@pytest.mark.parametrize("share", ["-0.1", "1", "much"])
def test_a_tolerance_that_is_no_share_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "x.json", "--tolerance", share])
    assert "expected a number from 0 to less than 1" in capsys.readouterr().err


def test_a_missing_file_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.json")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
