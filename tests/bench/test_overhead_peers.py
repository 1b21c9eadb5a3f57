"""What the overhead bench makes of its rows beside peers, and who is asked for what."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench.findings import Finding
from bench.overhead import peers
from bench.overhead.contenders import COUNTED, MEASURED, MODELS, NOBODY, NOTHING, OURS, PLANNED, cases
from bench.overhead.peer_findings import EFFICIENCY, OVERHEAD, SKIPPED, peer_findings
from bench.overhead.section import SECTION
from bench.peers.client import PeerError
from bench.peers.environment import VERSIONS, PeerUnavailableError
from bench.results import Results

ALL = list(cases(MODELS, COUNTED, clock="processor", threads=1))


def row(measure: str, what: str, who: str, **found: Any) -> tuple[str, dict[str, Any]]:
    """A row and its key."""
    return f"peers/{measure}/small/{what}/{who}", {
        "measure": measure, "what": what, "who": who, "model": "small", "apart": False, **found
    }  # fmt: skip


def times(wrapped: float, blocks: list[int], rest: float = 0.5) -> dict[str, Any]:
    """A full step takes 1 second bare and ``wrapped`` with the cache, a skipped one ``rest`` and a tenth."""
    full = max(blocks)
    steps = [wrapped if ran == full else rest + 0.1 for ran in blocks]
    by_model = {"bare": [1.0] * len(blocks), "wrapped": steps, "rest": [rest] * len(blocks)}
    if min(blocks) == full:
        del by_model["rest"]
    return {"blocks": blocks, "times": {name: [row] * 3 for name, row in by_model.items()}}


def found(*rows: tuple[str, dict[str, Any]]) -> dict[tuple[str, str], Finding]:
    """The findings of rows, by kind and contender."""
    return {(one.details["kind"], one.details["who"]): one for one in peer_findings(dict(rows))}


# -- who is asked for what


def test_every_measurement_has_a_key_of_its_own():
    assert len({case.key for case in ALL}) == len(ALL)


def test_ours_and_the_packages_of_our_name_are_asked_for_the_same():
    asked: dict[str, dict[str, Any]] = {}
    for case in ALL:
        asked.setdefault(case.who, {})[f"{case.measure}/{case.model}/{case.what}"] = case.arguments
    for version in VERSIONS:
        assert asked[f"cache-dit {version}"] == asked[OURS]


def test_only_the_packages_of_our_name_run_elsewhere():
    assert {case.who: case.version for case in ALL if case.version} == {f"cache-dit {one}": one for one in VERSIONS}


# -- findings


def test_an_overhead_is_judged_by_its_size_and_by_every_peer():
    ours, low, high = (times(value, [6] * 4) for value in (1.005, 1.002, 1.02))
    for others, reached in (([high], True), ([low, high], False), ([], True)):
        rows = [row("time", NOTHING, f"peer {number}", **other) for number, other in enumerate(others)]
        assert found(row("time", NOTHING, OURS, **ours), *rows)[OVERHEAD, OURS].reached is reached
    assert found(row("time", NOTHING, OURS, **times(1.02, [6] * 4)))[OVERHEAD, OURS].reached is False


def test_a_speed_up_is_told_as_a_share_of_one_that_costs_what_must_run():
    told = found(row("time", PLANNED, OURS, **times(1.0, [6, 1, 6, 1])), row("time", PLANNED, "x", **times(1, [6] * 4)))
    share = told[EFFICIENCY, OURS]
    assert share.value == pytest.approx(3.0 / 3.2)
    assert share.details["ideal_by_blocks"] == pytest.approx(24 / 14)
    assert share.reached is False
    assert told[SKIPPED, OURS].value == pytest.approx(0.6 / 0.5)


def test_live_state_is_compared_with_peers_of_the_same_algorithm_alone():
    ours = row("state", "reuse, planned", OURS, bytes=1008, feature_bytes=1000)
    lite = row("state", "reuse, planned", "lite", bytes=10, feature_bytes=1000)
    lite[1]["apart"] = True
    for size, reached in ((1008, True), (2000, True), (1000, False)):
        peer = row("state", "reuse, planned", "peer", bytes=size, feature_bytes=1000)
        told = found(ours, lite, peer)["live state", OURS]
        assert (told.reached, told.details["below_every_peer"]) == (reached, size > 1008)
    assert found(ours, lite)["live state", OURS].reached is None


def test_reads_of_the_model_itself_are_not_the_cache_s():
    nothing = {"timestep_reads": [0, 0], "own_reads": [0, 0], "first_request": {}}
    bare = row("reads", NOTHING, NOBODY, model_reads=[1, 1], **nothing)
    told = found(bare, row("reads", MEASURED, OURS, model_reads=[1, 3], **nothing))
    assert list(told) == [("host reads in a step", OURS)]
    assert told["host reads in a step", OURS].value == 2
    assert told["host reads in a step", OURS].reached is False


def test_what_fails_under_the_compiler_is_a_finding_and_what_fails_elsewhere_is_none():
    counts = {"breaks": 0, "graphs": 1, "graphs_by_request": [1], "recompiles": 0, "difference": None}
    rows = [row("compile", PLANNED, OURS, error="RuntimeError: no", **counts), row("time", NOTHING, "x", error="ended")]
    assert [(one.details["who"], one.reached) for one in peer_findings(dict(rows))] == [(OURS, False)]


# -- running


class Elsewhere:
    """Workers that answer by rule."""

    def __init__(self, threads: int) -> None:
        self.unavailable: dict[str, str] = {}

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, version: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if version == VERSIONS[0]:
            raise PeerError("it ended\nlong story")
        self.unavailable[version] = "no index"
        raise PeerUnavailableError("no index")


def test_a_peer_that_fails_leaves_a_row_and_one_that_is_not_there_leaves_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(peers, "Workers", Elsewhere)
    monkeypatch.setattr(peers.cost, "run", lambda **given: {"given": given["measure"]})
    results = Results.open(tmp_path / "overhead.json", "overhead", {})
    some = [case for case in ALL if case.measure == "reads" and case.what == PLANNED]
    assert peers.measure(results, some, 1) == {VERSIONS[1]: "no index"}
    kept = {one["who"]: one for one in results.rows.values()}
    assert kept[OURS]["given"] == "reads"
    assert kept[f"cache-dit {VERSIONS[0]}"]["error"] == "it ended"
    assert f"cache-dit {VERSIONS[1]}" not in kept
    monkeypatch.setattr(Elsewhere, "run", lambda self, version, arguments: {"given": "at last"})
    monkeypatch.setattr(peers.cost, "run", lambda **given: pytest.fail("what is there is not measured again"))
    peers.measure(results, some, 1)
    assert {one["given"] for one in results.rows.values() if one["who"] != OURS} >= {"at last"}


# -- the section


def test_the_section_takes_whatever_is_there(tmp_path: Path):
    pytest.importorskip("matplotlib")
    model = {"hidden": 64, "double": 1, "single": 2, "image_tokens": 8, "text_tokens": 4, "steps": 4, "runs": 1}
    settings = {"model": model, "peers": {"small": model}, "threads": 1, "clock": "processor", "quick": True}
    results = Results(tmp_path / "overhead.json", "overhead", settings, {})
    assert "Beside peers" not in SECTION.text(results)
    assert list(SECTION.figures(results)) == []
    counts = {"breaks": 3, "graphs": 1, "graphs_by_request": [1, 0], "recompiles": 0, "error": None, "difference": 0.0}
    own = {"findings": [asdict(Finding("a row", 1.0, "×", group="core"))]}
    results.rows |= {
        "group/core": own,
        **dict(
            [
                row("time", NOTHING, OURS, **times(1.005, [6] * 4)),
                row("time", PLANNED, "peer", **times(1.0, [6, 1])),
                row("time", MEASURED, "peer", error="it ended"),
                row("state", "reuse, planned", OURS, bytes=1008, feature_bytes=1000),
                row("compile", PLANNED, "peer", **counts),
            ]
        ),
    }
    text = SECTION.text(results)
    for said in (
        "| ours | 1.0050 × (1.0050 – 1.0050) |",
        "| peer | 3 | 1 | 0 | 0 |",
        "it ended",
        "| a row | 1.0000 × |",
    ):
        assert said in text
    assert [one.name for one in SECTION.figures(results)] == ["bench_overhead_time", "bench_overhead_state"]
