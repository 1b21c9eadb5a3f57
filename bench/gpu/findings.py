"""What follows from the rows of the GPU bench, whichever of them are there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.common import flat, interval, pairs_of
from bench.findings import Finding, at_most, ratio
from bench.gpu.models import SPECS, Spec

Row = dict[str, Any]
Rows = Mapping[str, Row]

#: The goals: a step where nothing is cached, and a loop's speed-up against the ideal at about 4×.
OVERHEAD, EFFICIENCY = 1.005, 0.95
#: Times that the host may wait in a step.
WAITS = {"planned": 0, "static": 0, "measured": 1, "dynamic": 1}
MIB = 2**20

#: The group of what is measured without a model.
KERNELS = "Kernels"

#: The finding of what a wrapped model's computed steps take where it is compiled.
COMPUTED = "{mode}: wrapped ÷ bare, computed steps of a plan"


def findings_of(rows: Rows) -> list[Finding]:
    """All findings, by model; rows that are missing or failed have none."""
    good = {key: row for key, row in rows.items() if "error" not in row and "skipped" not in row}
    found = []
    for spec in SPECS.values():
        own = {key.partition(": ")[2]: row for key, row in good.items() if key.startswith(f"{spec.name}: ")}
        found += [replace(finding, group=spec.title) for finding in _of_model(own, spec)]
    return [*found, *(replace(finding, group=KERNELS) for finding in _of_kernels(good))]


def _of_model(rows: Rows, spec: Spec) -> Iterator[Finding]:
    parts: dict[str, Callable[[Row], Iterator[Finding]]] = {"steps": _steps, "reads": _reads, "memory": _memory}
    for name, of in parts.items():
        if name in rows:
            yield from of(rows[name])
    for name, row in rows.items():
        if name.startswith("loop of "):
            yield from _loops(row)
    for mode in ("regional", "whole", "graphs"):
        if mode in rows:
            yield from _compiled(rows[mode], mode)
    if "peers" in rows:
        yield from _peers(rows["peers"])


def milliseconds(name: str, seconds: Sequence[float], **details: Any) -> Finding:
    """The median, with its interval."""

    def median(samples: Sequence[float]) -> float:
        return 1000 * statistics.median(samples)

    return Finding(name, median(seconds), "ms", *interval(seconds, median), details=details)


def _steps_of(line: str, letter: str) -> list[int]:
    """The steps that were computed (F) or cached (C)."""
    return [step for step, found in enumerate(line) if found == letter]


def _steps(row: Row) -> Iterator[Finding]:
    times = row["times"]
    yield milliseconds("full step, bare", flat(times["bare"]))
    for name, title in (
        ("measured", "wrapped ÷ bare, every step measured, none skipped"),
        ("planned", "wrapped ÷ bare, a plan that skips none"),
    ):
        yield ratio(title, pairs_of(times, name, "bare"), most=OVERHEAD, steps_line=row["told"][name]["steps_line"])
    yield ratio("bare ÷ bare: how far the machine lets one see", pairs_of(times, "control", "bare"))
    beyond = [1000 * (wrapped - bare) for wrapped, bare in pairs_of(times, "measured", "bare")]
    low, high = interval(beyond, statistics.median)
    yield Finding("wrapped − bare, every step measured, none skipped", statistics.median(beyond), "ms", low, high)
    for name, title in (("static", "static, Fn=0"), ("dynamic", "dynamic, Fn=1")):
        line = row["told"][name]["steps_line"]
        hits = _steps_of(line, "C")
        if not hits:
            continue
        shown = {"steps_line": line, "host_ms": 1000 * statistics.median(row["host"][name][step] for step in hits)}
        busy = [run[step] for run in times[name] for step in hits]
        yield milliseconds(f"cached step, {title}, in turn with other models", busy, **shown)
        yield milliseconds(f"cached step, {title}, alone", [row["alone"][name][step] for step in hits], **shown)
    yield milliseconds("a step of the model without blocks, in turn with other models", flat(times["rest"]))
    yield milliseconds("a step of the model without blocks, alone", row["alone"]["rest"])


def _reads(row: Row) -> Iterator[Finding]:
    bare = row["waits"]["bare"]
    if any(count is None for count in bare):
        return
    for name, most in WAITS.items():
        beyond = [count - base for count, base in zip(row["waits"][name], bare, strict=True)]
        details = {"per_step": row["waits"][name], "bare": bare, "reads": row["reads"][name]}
        yield at_most(
            f"waits of the host in a step beyond the bare model's, {name}", max(beyond), "waits", most, **details
        )


def _memory(row: Row) -> Iterator[Finding]:
    for name, told in row["told"].items():
        features = {"features": told["state_bytes"] / row["feature_bytes"]} if row["feature_bytes"] else {}
        yield Finding(f"live state, {name}", told["state_bytes"] / MIB, "MiB", details=features)
    peaks = row["peak_bytes"]
    if peaks["bare"] is not None:
        for name, peak in peaks.items():
            yield Finding(f"most memory of a run beyond weights, {name}", peak / MIB, "MiB")


def efficiency(
    name: str,
    bare: Sequence[float],
    quick: Sequence[float],
    ideal: float,
    *,
    least: float | None = None,
    by: str = "",
    **details: Any,
) -> Iterator[Finding]:
    """A speed-up, the ratio of medians, and its share of the ideal one.

    Args:
        name: of the run.
        bare: seconds of the runs without a cache.
        quick: of those with it.
        ideal: the speed-up if nothing but what was skipped took time.
        least: what the share should reach.
        by: what the ideal goes by, where it is not blocks.
    """

    def speedup(pairs: Sequence[tuple[float, float]]) -> float:
        return statistics.median(b for b, _ in pairs) / statistics.median(q for _, q in pairs)

    pairs = list(zip(bare, quick, strict=True))
    low, high = interval(pairs, speedup)
    measured = speedup(pairs)
    yield Finding(f"speed-up, {name}", measured, "×", low, high, details=details)
    shown = {"measured": measured, "ideal": ideal, **details}
    share = Finding(f"speed-up ÷ ideal{by}, {name}", measured / ideal, "×", low / ideal, high / ideal, details=shown)
    yield share if least is None else replace(share, target=f"≥ {least:g}", reached=share.value >= least)


def _loops(row: Row) -> Iterator[Finding]:
    seconds, steps = row["seconds"], row["steps"]
    yield Finding(f"loop of {steps}, bare", statistics.median(seconds["bare"]), "s")
    pairs = list(zip(seconds["measured"], seconds["bare"], strict=True))
    yield ratio(f"loop of {steps}, wrapped ÷ bare, every step measured, none skipped", pairs, most=OVERHEAD)
    rest = statistics.median(seconds["rest"]) / steps
    full = statistics.median(seconds["bare"]) / steps
    for name, computed in row["computed"].items():
        ideal = row["told"][name]["ideal_by_blocks"]
        with_rest = steps * full / (computed * full + (steps - computed) * rest)
        details = {"computed": computed, "ideal_with_rest": with_rest, "steps_line": row["told"][name]["steps_line"]}
        least = EFFICIENCY if name == "even" else None
        yield from efficiency(f"{steps} steps, {name}", seconds["bare"], seconds[name], ideal, least=least, **details)
    yield from _cached_in_loop(row)


def _cached_in_loop(row: Row) -> Iterator[Finding]:
    """What a cached step costs a loop: all that the loop takes beyond its computed steps at the bare loop's price."""
    seconds, steps, computed = row["seconds"], row["steps"], row["computed"]["even"]
    pairs = list(zip(seconds["bare"], seconds["even"], strict=True))

    def of(pairs: Sequence[tuple[float, float]]) -> float:
        bare, even = statistics.median(bare for bare, _ in pairs), statistics.median(even for _, even in pairs)
        return 1000 * float(even - computed * bare / steps) / float(steps - computed)

    name = f"cached step, static, Fn=0, in a loop of {steps}, even"
    yield Finding(name, of(pairs), "ms", *interval(pairs, of), details={"computed": computed})


def _compiled(row: Row, mode: str) -> Iterator[Finding]:
    times, lines = row["times"], {name: told["steps_line"] for name, told in row["told"].items()}
    yield milliseconds(f"{mode}: full step, bare", flat(times["bare"]), warm_up_seconds=row["warm_up_seconds"])
    pairs = pairs_of(times, "static", "bare", _steps_of(lines["static"], "F"))
    yield ratio(COMPUTED.format(mode=mode), pairs, most=OVERHEAD)
    for name, title in (("static", "static, Fn=0"), ("dynamic", "dynamic, Fn=1")):
        hits = [run[step] for run in times.get(name, ()) for step in _steps_of(lines[name], "C")]
        if hits:
            yield milliseconds(f"{mode}: cached step, {title}", hits, steps_line=lines[name])
    yield Finding(f"{mode}: graph breaks", row["compilations"]["breaks"], "breaks", details=row["compilations"])
    yield at_most(f"{mode}: graphs compiled after the warm-up", row["recompilations"], "graphs", 0)
    loop = row["loop"]
    ideal = loop["told"]["ideal_by_blocks"]
    name = f"{mode}, {loop['steps']} steps, even"
    yield from efficiency(name, loop["seconds"]["bare"], loop["seconds"]["even"], ideal, least=EFFICIENCY)


def _peers(row: Row) -> Iterator[Finding]:
    seconds, work = row["seconds"], row["work"]
    for name in seconds:
        if name != "bare":
            ideal = work["bare"] / work[name]
            title = f"{row['steps']} steps, every fourth computed, {name}"
            yield from efficiency(title, seconds["bare"], seconds[name], ideal, by=" by work", ideal_by_work=ideal)


def _of_kernels(rows: Rows) -> Iterator[Finding]:
    for key, row in rows.items():
        if key.startswith("sum of "):
            details = {"errors": row["errors"], "compiler_failed": row["compiler_failed"], "shape": row["shape"]}
            yield ratio(f"{key}, compiled ÷ eager", pairs_of(row["times"], "compiled", "eager"), **details)
            for name in ("compiled", "eager"):
                rate = row["bytes"] / statistics.median(flat(row["times"][name])) / 1e9
                yield Finding(f"{key}, {name}: bytes of the tensors over time", rate, "GB/s")
    if "pinned" in rows:
        yield from _pinned(rows["pinned"])


def _pinned(row: Row) -> Iterator[Finding]:
    """A step sends one snapshot to the host and brings two back."""
    times = row["times"]
    for name, title in (("device", "on the device"), ("pinned", "in pinned memory")):
        yield milliseconds(f"a step that keeps one snapshot and reads two, {title}", flat(times[name]))
    yield ratio("snapshots in pinned memory ÷ on the device, that step", pairs_of(times, "pinned", "device"))
    rate = 3 * row["bytes"] / statistics.median(flat(times["pinned"])) / 1e9
    yield Finding("snapshots in pinned memory: bytes sent and brought over time", rate, "GB/s")
    waits = row["waits"]["pinned"]
    yield at_most("waits of the host, snapshots in pinned memory", waits, "waits", 0, same_result=row["same"])
