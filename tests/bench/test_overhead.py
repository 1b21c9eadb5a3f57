"""The bench of costs: that it measures what it says, of ours and beside peers. Its times are not tested."""

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.commands import COMMANDS
from bench.cost import beside, ours
from bench.cost.beside import MEASURED, NOBODY, NOTHING, OURS, PLANNED, cases, findings_of
from bench.cost.ours import GROUPS, QUICK, Extent
from bench.cost.settings import ALWAYS, NEVER, Variant, half_mask, static, threshold
from bench.cost.steps import EFFICIENCY, OVERHEAD, SKIPPED, expected, of_time
from bench.findings import Finding
from bench.measures import Subject
from bench.peers.client import PeerError, PeerUnavailableError
from bench.report.page import Section
from bench.results import Results
from cache_dit.cli.arguments import UsageError
from cache_dit.errors import ConfigError

#: The second stands for 1.5.x.
VERSIONS = ("1.2.0", "1.5.3")
TINY = replace(QUICK, runs=1)
ALL = list(cases(Extent(), 1))
SECTION = Section("overhead", "Costs", beside.parts)


def run(*flags: str) -> int:
    """The command, without the report that follows it."""
    command = next(one for one in COMMANDS if one.name == "overhead")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(flags))


# -- our own settings


@pytest.fixture(scope="module")
def found() -> dict[str, list[Finding]]:
    """What two groups find; a quick run of all is slow."""
    chosen = ("pruning", "python")
    return {name: [Finding(**one) for one in ours.measured(name, TINY)["findings"]] for name in chosen}


def test_every_group_tells_finite_numbers_under_names_of_their_own(found: dict[str, list[Finding]]) -> None:
    for name, findings in found.items():
        assert findings
        assert len({one.name for one in findings}) == len(findings)
        assert all(one.group == name and math.isfinite(one.value) for one in findings)
        assert all(one.low is None or one.low <= one.value <= one.high for one in findings)


def test_what_does_not_depend_on_the_clock_reaches_its_targets(found: dict[str, list[Finding]]) -> None:
    exact = [one for some in found.values() for one in some if one.unit in ("features", "reads") and one.target]
    assert len(exact) == 6
    assert [one.name for one in exact if not one.reached] == []


def test_block_by_block_decisions_read_once_a_block_and_delayed_ones_once_a_step(
    found: dict[str, list[Finding]],
) -> None:
    reads = {one.name.partition(", ")[2]: one.value for one in found["pruning"] if one.unit == "reads"}
    assert reads == {
        "DBPrune, nothing pruned, by block": 2,
        "DBPrune, nothing pruned, by previous": 1,
        "DBPrune, half of the blocks pruned, by block": 1,
        "DBPrune, half of the blocks pruned, by previous": 1,
    }


def test_the_ideal_speed_ups_are_those_of_the_blocks_that_ran(found: dict[str, list[Finding]]) -> None:
    def ideal(group: str) -> list[float]:
        return [one.details["ideal_by_blocks"] for one in found[group] if one.name.startswith(EFFICIENCY)]

    # of 3 blocks one can be skipped: from the second step on, or, decided by the step before, from the third
    assert ideal("pruning") == [18 / (18 - 5), 18 / (18 - 4)]


@torch.no_grad()
def test_samples_that_decide_for_themselves_run_fewer_blocks() -> None:
    subject, variants = ours.table("batches", TINY)
    found, row = expected(subject, [replace(one, reads=None) for one in variants])
    ran = {name.rpartition(" ")[2]: sum(blocks) for name, blocks in row["blocks"].items()}
    assert ran["sample"] < ran["any"]
    assert [one.details["ideal_by_blocks"] for one in found] == [ran["any"] / ran["mean"], ran["any"] / ran["sample"]]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("name", "kept"), [("memory", 7), ("predictors", 7)])
def test_live_state_and_reads_are_as_expected_of_each_setting(name: str, kept: int) -> None:
    subject, variants = ours.table(name, replace(TINY, steps=12))
    found, _ = expected(subject, [replace(one, time=None, against=None) for one in variants])
    held = [one for one in found if one.unit == "features"]
    assert len(held) >= kept
    assert [one.name for one in found if not one.reached] == []
    if name == "predictors":
        states = {one.name.rpartition(", ")[2]: one.value for one in held}
        full = {"reuse": 1, "Taylor 1": 2, "Taylor 2": 3, "Newton 2": 3, "Hermite 2": 3, "FoCa": 4, "DMD 6": 6}
        assert states == pytest.approx(full), "after so many steps each has all its snapshots"


@torch.no_grad()
def test_a_policy_computes_all_and_then_half_of_the_steps() -> None:
    subject, variants = ours.table("policies", TINY)
    some = [replace(one, reads=None) for one in variants if one.time is not None]
    _, row = expected(subject, some)
    for name, blocks in row["blocks"].items():
        skipped = sum(ran < max(blocks) for ran in blocks)
        assert skipped in ((2, 3) if "half" in name else (0,)), name


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "reads"),
    [
        (static(half_mask(6), 1), 0),
        (threshold(ALWAYS), 5),
        (threshold(ALWAYS, max_continuous_cached_steps=1), 3),
        (threshold(NEVER), 5),
    ],
)
def test_a_measured_step_reads_once_and_a_planned_one_never(options: dict[str, Any], reads: int) -> None:
    ((finding,), _) = expected(Subject.of(TINY), [Variant("x", options, reads="≤ 1")])
    assert (finding.details["in_the_run"], finding.reached) == (reads, True)


def test_a_speed_up_is_told_as_a_share_of_what_must_still_run() -> None:
    # every other of 6 steps skips 2 of 3 blocks; a skipped step is timed at 0.6, and its rest at 0.5
    times = {"bare": [[1.0] * 6], "cached": [[1.0, 0.6] * 3], "rest": [[0.5] * 6]}
    row = {"times": times, "blocks": {"cached": [3, 1] * 3}, "rest": {"cached": "rest"}}
    share, skipped = of_time(row, "cached", target="≥ 0.9")
    assert share.value == pytest.approx(4.5 / 4.8)
    assert (share.reached, share.details["steps_line"], share.details["ideal_by_blocks"]) == (True, "FCFCFC", 1.5)
    assert share.details["measured_speedup"] == pytest.approx(6 / 4.8)
    assert skipped.value == pytest.approx(0.6 / 0.5)
    (overhead,) = of_time({**row, "blocks": {"cached": [3] * 6}}, "cached", target="≤ 0.5")
    assert (overhead.name, overhead.reached) == (f"{OVERHEAD}, cached", False)


# -- beside peers


def row(measure: str, what: str, who: str, **told: Any) -> tuple[str, dict[str, Any]]:
    """A row and its key."""
    said = {"measure": measure, "what": what, "who": who, "model": "small", "apart": False}
    return f"peers/{measure}/small/{what}/{who}", {**said, **told}


def times(wrapped: float, blocks: list[int]) -> dict[str, Any]:
    """A full step takes 1 second bare and ``wrapped`` with the cache, a skipped one 0.5 and a tenth."""
    full = max(blocks)
    steps = [wrapped if ran == full else 0.6 for ran in blocks]
    by_model = {"bare": [1.0] * len(blocks), "wrapped": steps, "rest": [0.5] * len(blocks)}
    rest = {"wrapped": "rest"} if min(blocks) < full else {}
    return {"blocks": {"wrapped": blocks}, "rest": rest, "times": {name: [one] * 3 for name, one in by_model.items()}}


def told(*rows: tuple[str, dict[str, Any]]) -> dict[tuple[str, str], Finding]:
    """The findings of rows, by kind and contender."""
    return {(one.details["kind"], one.details["who"]): one for one in findings_of(dict(rows))}


def test_every_measurement_has_a_key_of_its_own() -> None:
    assert len({case.key for case in ALL}) == len(ALL)


def test_ours_and_the_packages_of_our_name_are_asked_for_the_same_and_only_these_run_elsewhere() -> None:
    asked: dict[str, dict[str, Any]] = {}
    for case in ALL:
        asked.setdefault(case.who, {})[f"{case.measure}/{case.model}/{case.what}"] = case.arguments
    for version in VERSIONS:
        assert asked[f"cache-dit {version}"] == asked[OURS]
    assert {case.who: case.version for case in ALL if case.version} == {f"cache-dit {one}": one for one in VERSIONS}


def test_an_overhead_is_judged_by_its_size_and_by_every_peer() -> None:
    ours_, low, high = (times(value, [6] * 4) for value in (1.005, 1.002, 1.02))
    for others, reached in (([high], True), ([low, high], False), ([], True)):
        rows = [row("time", NOTHING, f"peer {number}", **other) for number, other in enumerate(others)]
        assert told(row("time", NOTHING, OURS, **ours_), *rows)[OVERHEAD, OURS].reached is reached
    assert told(row("time", NOTHING, OURS, **times(1.02, [6] * 4)))[OVERHEAD, OURS].reached is False


def test_a_planned_speed_up_of_ours_is_judged() -> None:
    some = told(row("time", PLANNED, OURS, **times(1.0, [6, 1, 6, 1])), row("time", PLANNED, "x", **times(1, [6] * 4)))
    assert some[EFFICIENCY, OURS].value == pytest.approx(3.0 / 3.2)
    assert some[EFFICIENCY, OURS].reached is False
    assert some[SKIPPED, OURS].value == pytest.approx(0.6 / 0.5)


def test_live_state_is_compared_with_peers_of_the_same_algorithm_alone() -> None:
    own = row("state", "reuse, planned", OURS, bytes=1008, feature_bytes=1000)
    lite = row("state", "reuse, planned", "lite", bytes=10, feature_bytes=1000)
    lite[1]["apart"] = True
    for size, reached in ((1008, True), (2000, True), (900, False)):
        peer = row("state", "reuse, planned", "peer", bytes=size, feature_bytes=1000)
        finding = told(own, lite, peer)["live state", OURS]
        assert (finding.reached, finding.details["best_peer"]) == (reached, "peer")
    assert told(own, lite)["live state", OURS].reached is None


def test_reads_of_the_model_itself_are_not_the_cache_s() -> None:
    nothing = {"first_request": 0}
    bare = row("reads", NOTHING, NOBODY, model_reads=[1, 1], **nothing)
    some = told(bare, row("reads", MEASURED, OURS, model_reads=[1, 3], **nothing))
    assert {key: (one.value, one.reached) for key, one in some.items()} == {("host reads in a step", OURS): (2, False)}


def test_what_failed_is_no_finding() -> None:
    assert findings_of(dict([row("time", NOTHING, "x", error="ended")])) == []


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
) -> None:
    monkeypatch.setattr(beside, "Workers", Elsewhere)
    monkeypatch.setattr(beside.measures, "run", lambda **given: {"given": given["measure"]})
    results = Results.open(tmp_path / "overhead.json", "overhead", {})
    some = [case for case in ALL if case.measure == "reads" and case.what == PLANNED]
    assert beside.measure_cases(results, some, 1) == {VERSIONS[1]: "no index"}
    kept = {one["who"]: one for one in results.rows.values()}
    assert kept[OURS]["given"] == "reads"
    assert kept[f"cache-dit {VERSIONS[0]}"]["error"] == "it ended"
    assert f"cache-dit {VERSIONS[1]}" not in kept
    monkeypatch.setattr(Elsewhere, "run", lambda self, version, arguments: {"given": "at last"})
    monkeypatch.setattr(beside.measures, "run", lambda **given: pytest.fail("what is there is not measured again"))
    beside.measure_cases(results, some, 1)
    assert {one["given"] for one in results.rows.values() if one["who"] != OURS} >= {"at last"}


def test_the_section_takes_whatever_is_there_and_calls_us_by_our_own_name(tmp_path: Path) -> None:
    model = {"hidden": 64, "double": 1, "single": 2, "image_tokens": 8, "text_tokens": 4, "steps": 4, "runs": 1}
    settings = {"model": model, "peers": {"small": model}, "threads": 1, "clock": "processor", "quick": True}
    machine = {"versions": {"cache-dit": "2.0.0.dev0"}}
    results = Results(tmp_path / "overhead.json", "overhead", settings, machine)
    text, charts = SECTION.text(results)
    assert "Beside peers\n\nA step" not in text
    assert charts == {}
    results.rows |= {
        "group/core": {"findings": [asdict(Finding("a row", 1.0, "×", group="core"))]},
        **dict(
            [
                row("time", NOTHING, OURS, **times(1.005, [6] * 4)),
                row("time", PLANNED, "peer", **times(1.0, [6, 1])),
                row("time", MEASURED, "peer", error="it ended"),
                row("state", "reuse, planned", OURS, bytes=1008, feature_bytes=1000),
            ]
        ),
    }
    text, _ = SECTION.text(results)
    for said in (
        "| cache_dit (this project) 2.0.0.dev0 | 1.0050 × (1.0050 – 1.0050) |",
        "it ended",
        "| a row | 1.0000 × |",
    ):
        assert said in text
    assert "| ours" not in text


# -- the command


@pytest.fixture
def two_groups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two groups of one finding each; which of them ran."""
    ran: list[str] = []

    def measured(name: str, size: Extent) -> dict[str, Any]:
        ran.append(name)
        return {"findings": [asdict(Finding(f"a {name}", 1.0, "×", group=name))]}

    monkeypatch.setattr(ours, "GROUPS", {"first": None, "second": None})
    monkeypatch.setattr(beside, "measured", measured)
    monkeypatch.setattr(beside, "measure_cases", lambda *_: {"1.2.0": "no index\nat all"})
    return ran


def test_a_run_goes_on_where_another_stood(
    two_groups: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "overhead.json"
    run("--quick", "--out", str(out), "--only", "second")
    assert two_groups == ["second"]
    run("--quick", "--out", str(out))
    assert two_groups == ["second", "first"]
    saved = json.loads(out.read_text(encoding="utf-8"))["findings"]
    assert {(one["group"], one["name"]) for one in saved} == {("first", "a first"), ("second", "a second")}
    printed = capsys.readouterr().out
    assert "a first" in printed
    assert "cache-dit 1.2.0 was not measured: no index\n" in printed


def test_a_group_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no group is called 'cores'; --list shows all"):
        run("--quick", "--out", str(tmp_path / "overhead.json"), "--only", "cores")


def test_results_of_another_number_of_runs_are_not_mixed(two_groups: list[str], tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    run("--quick", "--out", str(out), "--runs", "1")
    with pytest.raises(ConfigError, match=r"model\.runs"):
        run("--quick", "--out", str(out), "--runs", "2")
    assert two_groups == ["first", "second"]


@pytest.mark.slow
def test_a_quick_run_saves_every_group_and_every_case_that_needs_no_other_environment(tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    assert run("--quick", "--runs", "1", "--out", str(out)) == 0
    results = Results.load(out)
    assert results.finished
    assert {key.removeprefix("group/") for key in results.rows if key.startswith("group/")} == set(GROUPS)
    assert len({(one.group, one.name) for one in results.findings}) == len(results.findings)
    exact = [one for one in results.findings if one.unit in ("features", "reads") and one.target]
    assert len(exact) > 50
    assert [one.name for one in exact if not one.reached] == []
    assert not [key for key, one in results.rows.items() if one.get("error")]
