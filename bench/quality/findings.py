"""What the rows say: every method at every budget, and ours beside the best of the others."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bench.findings import Finding
from bench.quality.choose import Entry, Rows, best_of, entries, setting_text
from bench.quality.statistics import Statistic, decibels, difference, fifth_percentile, mean

#: Whose best ours is held against: peers', and what needs no cache at all.
OTHERS = ("peer", "baseline")
#: How the groups of measured times begin.
TIMED = "measured speed-up at "
#: What is compared, and which direction is better.
_STATISTICS: tuple[tuple[str, Statistic], ...] = (("mean", mean), ("5th percentile", fifth_percentile))


def findings(rows: Rows, settings: Mapping[str, Any]) -> list[Finding]:
    """The findings of all rows that are there."""
    budgets = tuple(settings["budgets"])
    listed = [entry for entry in entries(rows, budgets) if entry.result is not None]
    found: list[Finding] = []
    for budget in budgets:
        found += _against_others(listed, budget, settings["seeds"])
    for budget in budgets:
        found += _timing(rows, budget)
    ordered = sorted(listed, key=lambda entry: (entry.budget, -entry.psnr.mean))
    found += [_of_entry(entry) for entry in ordered]
    return found


def strongest(listed: list[Entry], budget: float, statistic: Statistic) -> Entry | None:
    """The entry of the others that came out best on the held-out pictures: they get the benefit of the choice."""
    others = [entry for entry in listed if entry.budget == budget and entry.owner in OTHERS and entry.result]
    return max(others, key=lambda entry: float(statistic(_psnr(entry))), default=None)


def _psnr(entry: Entry) -> Any:
    return decibels((entry.result or {})["psnr"])


def _against_others(listed: list[Entry], budget: float, seeds: int) -> Iterator[Finding]:
    """Ours, as chosen by the search, minus the best of the others by the very pictures that are compared."""
    ours = best_of(listed, budget, "ours")
    for name, statistic in _STATISTICS if ours is not None else ():
        other = strongest(listed, budget, statistic)
        if ours is None or other is None:
            continue
        value, low, high = difference(_psnr(ours), _psnr(other), statistic, per_caption=seeds)
        details = {
            "ours": ours.method,
            "ours_setting": ours.parameters,
            "ours_value": float(statistic(_psnr(ours))),
            "other": other.method,
            "other_setting": other.parameters,
            "other_value": float(statistic(_psnr(other))),
        }
        title = f"ours − best other at {budget:g}×, {name} PSNR"
        yield Finding(title, value, "dB", low, high, "> 0", value > 0, details, "ours against the others")
    yield from _lpips(ours, strongest(listed, budget, mean), budget, seeds)


def _lpips(ours: Entry | None, other: Entry | None, budget: float, seeds: int) -> Iterator[Finding]:
    """The difference in mean LPIPS, where it could be computed: below 0 is better."""
    if ours is None or other is None or ours.result is None or other.result is None:
        return
    samples = [np.array(entry.result["lpips"], dtype=object) for entry in (ours, other) if entry.result]
    if any(value is None for values in samples for value in values):
        return
    first, second = (values.astype(np.float64) for values in samples)
    value, low, high = difference(first, second, mean, per_caption=seeds)
    details = {"ours": ours.method, "other": other.method}
    title = f"ours − best other at {budget:g}×, mean LPIPS"
    yield Finding(title, value, "", low, high, "< 0", value < 0, details, "ours against the others")


def _timing(rows: Rows, budget: float) -> Iterator[Finding]:
    """How many times as fast as the uncached pipeline the best were, in turns with it."""
    row = rows.get(timing_key(budget))
    for name, timed in (row or {}).get("methods", {}).items():
        pairs = np.array([timed["uncached"], timed["cached"]])
        value = statistics.median(timed["uncached"]) / statistics.median(timed["cached"])
        draws = np.random.default_rng(0).integers(pairs.shape[1], size=(1000, pairs.shape[1]))
        low, high = np.percentile(np.median(pairs[0][draws], axis=1) / np.median(pairs[1][draws], axis=1), (2.5, 97.5))
        details = {"by_work": timed["speedup"], "setting": timed["parameters"]}
        group = f"{TIMED}{budget:g}×"
        yield Finding(name, value, "×", float(low), float(high), details=details, group=group)


def timing_key(budget: float) -> str:
    return f"timing/{budget:g}"


def _of_entry(entry: Entry) -> Finding:
    psnr = entry.psnr
    details = {
        "owner": entry.owner,
        "setting": setting_text(entry.parameters),
        "speedup_by_work": (entry.result or {})["speedup"],
        "p5": psnr.p5,
        "minimum": psnr.minimum,
        "equal": psnr.equal,
    }
    return Finding(entry.method, psnr.mean, "dB", details=details, group=f"mean PSNR at {entry.budget:g}×")
