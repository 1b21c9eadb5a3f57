"""A bench's results: the file grows row by row, a run that was ended goes on, and nothing unlike is mixed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cache_dit
from bench.commands import COMMITTED
from bench.findings import Finding
from bench.results import Results, commit_of, differences, machine_differences
from cache_dit.errors import ConfigError

SETTINGS = {"steps": 28, "model": {"hidden": 64}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "quality.json"


def opened(path: Path, **options: Any) -> Results:
    return Results.open(path, "quality", SETTINGS, **options)


def test_a_run_that_was_killed_between_two_rows_goes_on_with_the_rest(path: Path) -> None:
    made = []

    def run(results: Results, killed_at: str | None) -> None:
        for key in ("a", "b", "c"):
            if key == killed_at:
                raise KeyboardInterrupt
            results.row(key, lambda key=key: made.append(key) or {"value": ord(key)})

    with pytest.raises(KeyboardInterrupt):
        run(opened(path), "c")
    assert list(Results.load(path).rows) == ["a", "b"]
    run(opened(path), None)
    assert made == ["a", "b", "c"]
    assert Results.load(path).rows == {"a": {"value": 97}, "b": {"value": 98}, "c": {"value": 99}}


def test_a_row_reads_the_same_whether_it_was_just_made_or_lies_in_the_file(path: Path) -> None:
    results = opened(path)
    made = results.row("a", lambda: {"pair": (1, 2), "by_step": {3: 0.1}})
    assert made == results.row("a", dict) == Results.load(path).rows["a"] == {"pair": [1, 2], "by_step": {"3": 0.1}}
    assert "a" in results
    assert "b" not in results


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_is_no_json_is_refused_and_leaves_the_file_as_it_was(path: Path, value: Any) -> None:
    results = opened(path)
    results.add("a", {"value": 1})
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"row 'b' .*pass plain data, and None for NaN and infinity"):
        results.add("b", {"value": value})
    assert "b" not in results
    assert path.read_bytes() == before


def test_a_file_is_never_half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = opened(path)
    results.add("a", {"value": 1})

    def killed(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(ConfigError, match=r"no space left on device; pass another --out"):
        results.add("b", {"value": 2})
    assert list(Results.load(path).rows) == ["a"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 6, "model": {"hidden": 64}}, "steps: 28 there, 6 now"),
        ({"steps": 28, "model": {"hidden": 512}}, "model.hidden: 64 there, 512 now"),
        ({"steps": 28}, "model.hidden: 64 there, nothing now"),
        ({**SETTINGS, "seeds": [1, 2]}, r"seeds: nothing there, \[1, 2\] now"),
    ],
)
def test_other_settings_are_refused_by_name(path: Path, settings: dict[str, Any], said: str) -> None:
    opened(path).add("a", {})
    with pytest.raises(ConfigError, match=rf"{said}.*--fresh.*--out"):
        Results.open(path, "quality", settings)


def test_fresh_throws_away_what_was_there(path: Path) -> None:
    opened(path).add("a", {})
    assert Results.open(path, "quality", {"steps": 6}, fresh=True).rows == {}
    assert Results.load(path).settings == {"steps": 6}


def test_another_bench_and_another_machine_are_refused(path: Path) -> None:
    results = opened(path)
    with pytest.raises(ConfigError, match="is of the bench 'quality', not 'gpu'"):
        Results.open(path, "gpu", SETTINGS)
    results.machine["device"] = "abacus"
    results.machine["versions"]["torch"] = "0.1"
    results.add("a", {})
    with pytest.raises(ConfigError, match=r"elsewhere \(device: \"abacus\" there.*versions.torch: \"0.1\" there"):
        opened(path)


def test_the_load_and_versions_that_were_learned_later_do_not_make_another_machine(path: Path) -> None:
    results = opened(path)
    results.machine["load"] = 99.0
    results.machine["versions"]["learned"] = "2.0"
    results.add("a", {})
    assert list(opened(path).rows) == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": 1, "bench"',
        "[]",
        "null",
        '{"machine": {}, "findings": []}',
        '{"format": 2}',
        '{"format":1,"bench":"quality","settings":{},"machine":{},"seconds":0,"rows":{"a":{"v":NaN}},"findings":[]}',
        '{"format":1,"bench":"quality","settings":{},"machine":{},"seconds":0,"rows":[],"findings":[]}',
        '{"format":1,"bench":"quality","settings":{},"machine":{},"seconds":0,"rows":{},"findings":[{"nom":1}]}',
    ],
)
def test_a_broken_file_says_so_and_what_to_do(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"quality\.json is not a whole file of results: .*--fresh.*--out"):
        opened(path)
    assert path.read_text() == text
    assert opened(path, fresh=True).rows == {}


@pytest.mark.parametrize("name", [".", "missing.json", "binary.json"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        Results.load(tmp_path / name)


def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written"):
        opened(tmp_path / "file" / "quality.json")


def test_findings_are_saved_and_go_when_a_row_is_added(path: Path) -> None:
    results = opened(path)
    results.add("a", {})
    finding = Finding("speed-up", 2.0, "×", 1.9, 2.1, "≥ 1.5", True, {"raw": [1, 2]}, "core")
    results.finish([finding])
    assert Results.load(path).findings == [finding]
    assert Results.load(path).finished
    results.add("b", {})
    assert not Results.load(path).finished


def test_results_carry_the_commits_that_made_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for commit in ("abc1234", "abc1234", "def5678+"):
        monkeypatch.setattr("bench.results.commit_of", lambda folder, commit=commit: commit)
        opened(path).add(commit, {})
    there = Results.load(path)
    assert there.commits == ["abc1234", "def5678+"]
    assert there.made_by.endswith("commit abc1234, commit def5678+")
    assert there.made_by.startswith(f"cache_dit (this project) {cache_dit.__version__}")


def test_a_commit_is_that_of_the_checkout_and_tells_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        told = ("-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments)
        subprocess.run(["git", *told], check=True, capture_output=True)

    assert commit_of(tmp_path) == ""
    git("init")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    clean = commit_of(tmp_path)
    assert len(clean) == 7
    (tmp_path / "src" / "a.py").write_text("2")
    assert commit_of(tmp_path) == f"{clean}+"


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_load_and_name_their_commit_and_never_a_peers_version_as_ours(path: Path) -> None:
    there = Results.load(path)
    assert there.finished
    assert re.fullmatch(r"cache_dit \(this project\).*, commit [0-9a-f]{7}", there.made_by)
    assert "1.2.0" not in there.made_by


def test_two_findings_of_one_name_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="two findings of group 'core' are called 'speed-up'"):
        opened(path).finish([Finding("speed-up", value, "×", group="core") for value in (1.0, 2.0)])


def test_seconds_add_up_over_the_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("bench.results.time.perf_counter", lambda: now)
    for begin, end, expected in ((0.0, 10.0, 10.0), (93.0, 100.0, 17.0)):
        now = begin
        results = opened(path)
        now = end
        results.add(str(end), {})
        assert Results.load(path).seconds == expected


def test_a_row_is_a_line_of_the_file(path: Path) -> None:
    results = opened(path)
    results.add("a", {"samples": list(range(100))})
    results.add("b", {"samples": [0.5, None]})
    assert '"b": {"samples": [0.5, null]}' in path.read_text().splitlines()
    assert json.loads(path.read_text())["format"] == 1


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), _PLAIN, max_size=3), max_size=3))
def test_any_plain_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.json"
    results = Results(path, "x", {}, {}, dict(rows))
    results.save()
    assert Results.load(path).rows == rows


@given(st.dictionaries(st.text(), _PLAIN, max_size=4))
def test_the_same_settings_do_not_differ(settings: dict[str, Any]) -> None:
    assert differences(settings, settings) == []


def test_only_versions_that_both_machines_tell_are_compared() -> None:
    one = {"device": "a", "load": 1.0, "versions": {"torch": "2", "lpips": "1"}}
    other = {"device": "a", "load": 2.0, "versions": {"torch": "3", "peer": "1"}}
    assert machine_differences(one, other) == ['versions.torch: "2" there, "3" now']
