"""What follows from the rows: ratios at each size, fits, and where the wrapper is a hundredth of a step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.common import flat, interval, pairs_of, ratio_of_medians
from bench.findings import Finding
from bench.scaling.fit import POWERS, Fit, falls_below, fitted
from bench.scaling.measure import FEW, MANY
from bench.scaling.points import UNITS

Row = dict[str, Any]
SHARE = 0.01
#: Blocks of FLUX.2-klein-4B and of FLUX.1.
DEPTHS = (25, 57)


def findings_of(rows: Mapping[str, Row]) -> list[Finding]:
    """All findings, of whatever rows are there."""
    found = []
    for axis, own in by_axis(rows).items():
        found += [replace(finding, group=axis) for finding in _of_axis(axis, own, rows.get("python"))]
    own = [row for row in rows.values() if "axis" in row]
    if len(own) > 1:
        found += [replace(finding, group="cached step") for finding in _cached(own)]
    if "python" in rows:
        found += [replace(finding, group="Python") for finding in _python(rows["python"])]
    return found


def by_axis(rows: Mapping[str, Row]) -> dict[str, list[Row]]:
    """The rows of each axis, by size."""
    found = {axis: [row for row in rows.values() if row.get("axis") == axis] for axis in UNITS}
    return {axis: sorted(own, key=lambda row: row["value"]) for axis, own in found.items() if own}


def step_seconds(row: Row, name: str) -> float:
    """The median of a model's steps without the first: that one is computed by all."""
    return statistics.median(flat(run[1:] for run in row["times"][name]))


def skips(row: Row) -> bool:
    """Whether the threshold was met at every step but the first: else the times are not those of cached steps."""
    return set(row["lines"]["dynamic"][1:]) == {"C"}


def full_fit(axis: str, rows: Sequence[Row]) -> Fit:
    """Seconds of a bare step over what grows."""
    return fitted([row["value"] for row in rows], [step_seconds(row, "bare") for row in rows], POWERS[axis])


def cached_fit(rows: Sequence[Row], name: str = "static") -> Fit:
    """Seconds of a cached step over bytes of a feature."""
    return fitted([row["feature_bytes"] for row in rows], [step_seconds(row, name) for row in rows], (0, 1))


def python_seconds(row: Row) -> tuple[float, float]:
    """The wrapper's Python in a computed step, and in each of its blocks."""
    medians = {}
    for blocks in (FEW, MANY):
        times = row["times"][str(blocks)]
        medians[blocks] = statistics.median(flat(times["wrapped"])) - statistics.median(flat(times["bare"]))
    block = (medians[MANY] - medians[FEW]) / (MANY - FEW)
    return medians[FEW] - FEW * block, block


def _ratio(name: str, row: Row, first: str, second: str) -> Finding:
    """The ratio of the medians of the same steps, without the first step."""
    pairs = pairs_of(row["times"], first, second, list(range(1, len(row["times"][first][0]))))
    return Finding(name, ratio_of_medians(pairs), "×", *interval(pairs, ratio_of_medians))


def _of_axis(axis: str, rows: Sequence[Row], python: Row | None) -> Iterator[Finding]:
    unit = UNITS[axis]
    for row in rows:
        at = f"{row['value']} {unit}"
        yield Finding(f"full step, bare, {at}", 1000 * step_seconds(row, "bare"), "ms")
        yield _ratio(f"wrapped ÷ bare, {at}", row, "full", "bare")
        yield _ratio(f"FirstBlockCache ÷ bare, nothing cached, {at}", row, "FirstBlockCache full", "bare")
        yield _ratio(f"cached step ÷ full step, static, Fn=0, {at}", row, "static", "bare")
        if skips(row):
            yield _ratio(f"cached step ÷ full step, dynamic, Fn=1, {at}", row, "dynamic", "bare")
            yield _ratio(f"cached step, dynamic, Fn=1 ÷ FirstBlockCache, {at}", row, "dynamic", "FirstBlockCache")
    if len(rows) < 2:
        return
    fit = full_fit(axis, rows)
    terms = {f"{unit}^{power}": value for power, value in zip(fit.powers, fit.coefficients, strict=True)}
    details = {"seconds": terms, "largest_error": fit.largest}
    yield Finding(
        f"error of the fit of a full step over {unit} (root mean square)", 100 * fit.error, "%", details=details
    )
    if python is not None:
        yield _one_percent(axis, rows, fit, python)


def _one_percent(axis: str, rows: Sequence[Row], fit: Fit, python: Row) -> Finding:
    """Where the wrapper's Python is a hundredth of a full step; low and high by the largest error of the fit."""
    step, block = python_seconds(python)
    smallest, largest = rows[0]["value"], rows[-1]["value"]

    def where(factor: float) -> tuple[float, str]:
        def share(value: float) -> float:
            blocks = value if axis == "depth" else rows[0]["blocks"]
            full = fit(value) * factor
            return (step + block * blocks) / full if full > 0 else 1.0

        return falls_below(share, smallest, largest, SHARE)

    value, how = where(1.0)
    name = f"{UNITS[axis]} from which the wrapper's Python is below 1 % of a full step"
    shares = {str(row["value"]): (step + block * row["blocks"]) / step_seconds(row, "bare") for row in rows}
    found = Finding(name, value, UNITS[axis], details={"how": how, "share_at": shares, "error_of_fit": fit.error})
    found.low, found.high = where(1 + fit.largest)[0], where(1 - fit.largest)[0]
    return found


def _cached(rows: Sequence[Row]) -> Iterator[Finding]:
    for name, title in (
        ("static", "static, Fn=0"),
        ("dynamic", "dynamic, Fn=1"),
        ("FirstBlockCache", "FirstBlockCache"),
        ("rest", "a model without blocks and cache"),
    ):
        own = [row for row in rows if name != "dynamic" or skips(row)]
        if len(own) < 2:
            continue
        fit = cached_fit(own, name)
        fixed, by_byte = (*fit.coefficients, 0.0)[:2]
        details = {"error": fit.error, "largest_error": fit.largest}
        yield Finding(f"cached step, {title}: what does not grow", 1e6 * fixed, "µs", details=details)
        yield Finding(f"cached step, {title}: for each MiB of a feature", 1e6 * by_byte * 2**20, "µs", details=details)


def _python(row: Row) -> Iterator[Finding]:
    step, block = python_seconds(row)
    yield Finding("Python in a computed step", 1e6 * step, "µs")
    yield Finding("Python in a block of a computed step", 1e6 * block, "µs")
    for blocks in DEPTHS:
        name = f"full step of which the wrapper's Python is 1 %, {blocks} blocks"
        yield Finding(name, 1000 * (step + block * blocks) / SHARE, "ms")
