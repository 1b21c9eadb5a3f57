"""What is expected of settings, and what follows from measured steps: of any model, device and contender."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.cost.settings import Variant
from bench.findings import Finding, flat, found, measured, median, milliseconds, pairs_of, ratio
from bench.measures import Subject, reads_of, state_of, time_of
from bench.timer import Times, watched

Row = Mapping[str, Any]
OVERHEAD, EFFICIENCY, SKIPPED = "wrapped ÷ bare", "speed-up ÷ ideal", "skipped step ÷ what it must do"
READS, STATE = "host reads in a step", "live state"
#: How much more may be alive and count as equal.
EQUAL = 1.01
#: After so many steps of a plan, of which every other one is computed, each predictor has all its snapshots.
FULL = 12


def expected(subject: Subject, variants: Sequence[Variant]) -> tuple[list[Finding], Row]:
    """All that is expected of some settings, with the row of their times; they are timed in turn, step by step."""
    held = {one.faster for one in variants}
    timed = [
        one
        for one in variants
        if one.options is None or one.name in held or not (one.time is one.against is one.faster is None)
    ]
    caches = {one.name: None if one.options is None else one.put_on() for one in timed}
    row = time_of(subject, caches, watched=watched("steps")) if timed else {}
    findings = []
    for one in variants:
        if one.options is None:
            findings.append(ratio("bare ÷ bare: how far the machine lets one see", pairs_of(row["times"], one.name)))
        if one.time is not None:
            findings += of_time(row, one.name, target=one.time)
            if set(line_of(row, one.name)) == {"F"}:
                beyond = [1e6 * (wrapped - bare) for wrapped, bare in pairs_of(row["times"], one.name)]
                findings.append(measured(f"wrapped − bare, {one.name}", beyond, median, "µs"))
        if one.against is not None:
            findings += _against(row, one.name, *one.against)
        if one.faster is not None:
            findings.append(_faster(row, one.name, one.faster))
        if one.reads is not None:
            findings.append(of_reads(reads_of(subject, one.put_on()), f", {one.name}", one.reads))
        if one.state is not None:
            findings.append(of_state(state_of(subject, one.put_on()), f", {one.name}", one.state))
    return findings, row


# -- what follows


def line_of(row: Row, name: str) -> str:
    """The steps of a run: F computed in full, C cached, by the blocks that ran."""
    blocks = row["blocks"][name]
    return "".join("F" if ran == max(blocks) else "C" for ran in blocks)


def where(line: str, letter: str) -> list[int]:
    """The steps of a letter."""
    return [step for step, one in enumerate(line) if one == letter]


def seconds_of(times: Times, name: str, steps: Sequence[int] | None = None) -> list[float]:
    """A model's seconds; None: of all steps."""
    return flat(times[name] if steps is None else [[row[step] for step in steps] for row in times[name]])


def of_time(row: Row, name: str, *, target: str = "", shown: str | None = None) -> list[Finding]:
    """The findings of one cache in a row of `bench.measures.time_of`.

    Where nothing was skipped, how long a step takes with the cache on, over one without. Else the speed-up over the
    ideal one, which takes at each step just what a model takes that has only the blocks that run, and a skipped step
    over that model's.
    """
    times, blocks, line = row["times"], row["blocks"][name], line_of(row, name)
    of = f", {name}" if shown is None else shown
    if "C" not in line:
        return [ratio(f"{OVERHEAD}{of}", pairs_of(times, name), target, steps_line=line)]
    rest, skipped = row["rest"].get(name, "bare"), where(line, "C")
    runs = []
    for bare, quick, least in zip(times["bare"], times[name], times[rest], strict=True):
        floor = sum(b if letter == "F" else r for letter, b, r in zip(line, bare, least, strict=True))
        runs.append((sum(bare), sum(quick), floor))
    taken = np.array(runs)
    details = {
        "measured_speedup": float(np.median(taken[:, 0] / taken[:, 1])),
        "ideal_by_blocks": max(blocks) * len(blocks) / max(1, sum(blocks)),
        "ideal_with_rest": float(np.median(taken[:, 0] / taken[:, 2])),
        "skipped_step_ms": 1000 * statistics.median(seconds_of(times, name, skipped)),
        "steps_line": line,
    }
    share = measured(f"{EFFICIENCY}{of}", taken[:, 2] / taken[:, 1], median, "×", target, **details)
    return [share, ratio(f"{SKIPPED}{of}", pairs_of(times, name, rest, skipped))]


def of_reads(row: Row, name: str, target: str = "", bare: Sequence[int] | None = None) -> Finding:
    """The most numbers of the model's that a step of a second request reads beyond the model's own reads."""
    own = bare or [0] * len(row["model_reads"])
    waits = [reads - of_model for reads, of_model in zip(row["model_reads"], own, strict=True)]
    details = {one: row[one] for one in ("model_reads", "first_request")}
    return found(f"{READS}{name}", max(waits), "reads", target, in_the_run=sum(waits), **details)


def of_state(row: Row, name: str, target: str = "") -> Finding:
    """What is alive between two steps, in features: a few numbers beside them count as nothing."""
    held = row["bytes"] / row["feature_bytes"]
    finding = found(f"{STATE}{name}", held, "features", target, bytes=row["bytes"])
    return finding if not target else replace(finding, reached=held <= float(target[1:]) * EQUAL)


def cached_steps(row: Row, name: str) -> Finding:
    """The median of a cache's skipped steps."""
    line = line_of(row, name)
    return milliseconds(f"cached step, {name}", seconds_of(row["times"], name, where(line, "C")), steps_line=line)


def _against(row: Row, name: str, other: str, target: str) -> Iterator[Finding]:
    """Cached and computed steps over another's, once all snapshots are there that are used."""
    line = line_of(row, name)
    for letter, kind in (("C", "cached"), ("F", "computed")):
        steps = [step for step in where(line, letter) if step >= min(FULL, len(line) // 2)]
        pairs = pairs_of(row["times"], name, other, steps)
        if pairs:
            yield ratio(f"{kind} step, {name} ÷ {other}", pairs, target if letter == "C" else "")


def _faster(row: Row, name: str, other: str) -> Finding:
    """How many times as fast whole runs are as another's, and how many by the blocks that ran."""
    theirs, own = ([sum(run) for run in row["times"][one]] for one in (other, name))
    blocks = {one: sum(row["blocks"][one]) for one in (other, name)}
    details = {"ideal_by_blocks": blocks[other] / blocks[name], "blocks": row["blocks"][name]}
    return measured(f"speed-up, {name} ÷ {other}", np.divide(theirs, own), median, **details)
