"""What follows from the rows beside peers: a finding for each, and how ours stands beside the best of the others."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.common import interval, pairs_of
from bench.findings import Finding, ratio
from bench.overhead.contenders import NOBODY, NOTHING, OURS, PLANNED

Row = Mapping[str, Any]

TIME, STATE, READS, COMPILE = (f"peers: {name}" for name in ("time", "state", "reads", "compile"))
OVERHEAD, EFFICIENCY, SKIPPED = "wrapped ÷ bare", "speed-up ÷ ideal", "skipped step ÷ what it must do"
#: How much more may be alive and count as equal: a few numbers beside the features.
EQUAL = 1.001


def peer_findings(rows: Mapping[str, Row]) -> list[Finding]:
    """All of them, whichever rows are there; a row that failed has none."""
    by_measure: dict[str, list[Row]] = {}
    for key, row in rows.items():
        if key.startswith("peers/") and not failed(row):
            by_measure.setdefault(row["measure"], []).append(row)
    return [
        *_of_time(by_measure.get("time", [])),
        *_of_state(by_measure.get("state", [])),
        *_of_reads(by_measure.get("reads", [])),
        *_of_compiling(by_measure.get("compile", [])),
    ]


def failed(row: Row) -> bool:
    """Whether nothing was measured. What goes wrong under the compiler is a measurement."""
    return row.get("error") is not None and "breaks" not in row


def is_ours(row: Row) -> bool:
    return str(row["who"]).startswith(OURS)


def _by_algorithm(rows: Iterable[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Rows that are compared, by model and algorithm."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["what"]), []).append(row)
    for (model, what), some in found.items():
        yield model, what, some


def _told(finding: Finding, row: Row, group: str, kind: str) -> Finding:
    """A finding that tells of what and of whom it is, as data too."""
    said = {"kind": kind, "what": row["what"], "who": row["who"], "model": row["model"]}
    name = ", ".join(filter(None, (kind, row["what"], row["model"], row["who"])))
    return replace(finding, name=name, group=group, details={**finding.details, **said})


# -- time


def _of_time(rows: Sequence[Row]) -> Iterator[Finding]:
    for _, what, found in _by_algorithm(rows):
        if what == NOTHING:
            yield from _overheads(found)
            continue
        for row in found:
            if "rest" not in row["times"]:  # it skipped nothing
                continue
            finding = _efficiency(row)
            if what == PLANNED and is_ours(row):
                finding = replace(finding, target="≥ 0.97", reached=finding.value >= 0.97)
            yield _told(finding, row, TIME, EFFICIENCY)
            yield _told(_skipped_step(row), row, TIME, SKIPPED)


def _overheads(rows: Sequence[Row]) -> Iterator[Finding]:
    findings = {row["who"]: ratio("", pairs_of(row["times"], "wrapped", "bare")) for row in rows}
    if OURS in findings:
        findings[OURS] = _below(findings, most=1.01)
    for row in rows:
        yield _told(findings[row["who"]], row, TIME, OVERHEAD)


def _below(findings: Mapping[str, Finding], most: float) -> Finding:
    """Ours, with the target: small, and not above any peer's but for what the intervals leave open."""
    ours, others = findings[OURS], {who: one for who, one in findings.items() if not who.startswith(OURS)}
    if not others:
        return replace(ours, target=f"≤ {most:g}", reached=ours.value <= most)
    best = min(others, key=lambda who: others[who].value)
    other = others[best]
    reached = ours.value <= most and (ours.low or ours.value) <= (other.high or other.value)
    details = {**ours.details, "best_peer": best, "best_peer_value": other.value}
    details["below_every_peer"] = ours.value < other.value
    details["told_apart"] = (ours.high or ours.value) < (other.low or other.value)
    return replace(ours, target=f"≤ {most:g}, no peer below", reached=reached, details=details)


def _efficiency(row: Row) -> Finding:
    """The measured speed-up over one that costs what must still run: ideal step by step, over measured."""
    times, blocks = row["times"], row["blocks"]
    full = max(blocks)
    runs = []
    for bare, wrapped, rest in zip(times["bare"], times["wrapped"], times["rest"], strict=True):
        floor = sum(b if ran == full else r for ran, b, r in zip(blocks, bare, rest, strict=True))
        runs.append((sum(bare), sum(wrapped), floor))

    def share(samples: Sequence[Any]) -> float:
        return statistics.median(floor / wrapped for _, wrapped, floor in samples)

    measured = statistics.median(bare / wrapped for bare, wrapped, _ in runs)
    by_blocks = full * len(blocks) / sum(blocks)
    details = {
        "measured_speedup": measured,
        "ideal_with_rest": statistics.median(bare / floor for bare, _, floor in runs),
        "ideal_by_blocks": by_blocks,
        "share_by_blocks": measured / by_blocks,
        "blocks": blocks,
    }
    return Finding("", share(runs), "×", *interval(runs, share), details=details)


def _skipped_step(row: Row) -> Finding:
    full = max(row["blocks"])
    steps = [step for step, ran in enumerate(row["blocks"]) if ran < full]
    return ratio("", pairs_of(row["times"], "wrapped", "rest", steps))


# -- state


def features(row: Row) -> float:
    """Live features."""
    return float(row["bytes"] / row["feature_bytes"])


def _of_state(rows: Sequence[Row]) -> Iterator[Finding]:
    for _, _, some in _by_algorithm(rows):
        others = {row["who"]: features(row) for row in some if not is_ours(row) and not row["apart"]}
        for row in some:
            details = {"bytes": row["bytes"], "another_algorithm": row["apart"]}
            finding = Finding("", features(row), "features", details=details)
            if row["who"] == OURS and others:
                least = min(others.values())
                finding.target, finding.reached = f"≤ {least:.2f}", finding.value <= least * EQUAL
                finding.details |= {"peers": others, "below_every_peer": finding.value < least}
            yield _told(finding, row, STATE, "live state")


# -- host reads


def _of_reads(rows: Sequence[Row]) -> Iterator[Finding]:
    bare = next((row["model_reads"] for row in rows if row["who"] == NOBODY), None)
    for row in rows:
        if row["who"] == NOBODY:
            continue
        of_the_model = bare or [0] * len(row["model_reads"])
        waits = [reads - own for reads, own in zip(row["model_reads"], of_the_model, strict=True)]
        details = {name: row[name] for name in ("model_reads", "timestep_reads", "own_reads", "first_request")}
        finding = Finding("", max(waits), "reads", details=details)
        if is_ours(row):
            most = 0 if row["what"] == PLANNED else 1
            finding.target, finding.reached = f"≤ {most}", finding.value <= most
        yield _told(finding, row, READS, "host reads in a step")


# -- torch.compile


def _of_compiling(rows: Sequence[Row]) -> Iterator[Finding]:
    for row in rows:
        kept = ("graphs", "graphs_by_request", "recompiles", "error", "difference")
        finding = Finding("", row["breaks"], "breaks", details={name: row[name] for name in kept})
        if row["who"] == OURS:
            finding.target, finding.reached = "0", row["breaks"] == 0 and row["error"] is None
        yield _told(finding, row, COMPILE, "graph breaks")
