"""From the rows of the search to a setting of each method at each budget, from those to the best, and what follows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from bench.findings import Finding, Statistic, Values, bootstrap, found, measured, ratio_of_medians
from bench.quality.drawing import Parameters

Rows = Mapping[str, Mapping[str, Any]]

#: Whose a method is, and whose best ours is held against: peers', and what needs no cache at all.
OWNERS = ("ours", "peer", "baseline")
OTHERS = OWNERS[1:]
#: The share of a budget that a setting must reach on the search's pictures.
TOLERANCE = 0.98
#: A family that is further behind its owner's best at a budget is not drawn on the held-out pictures, in dB.
HOPELESS = 5.0
#: In dB: what a closer picture, or the very same one, counts as in a mean. Its raw sample is None where it is equal.
CEILING = 100.0
RESAMPLINGS = 10_000
#: How the groups of measured times begin, and the group of the comparison.
TIMED, COMPARED = "measured speed-up at ", "ours against the others"


def setting_text(parameters: Parameters) -> str:
    """A setting as it stands in keys: the same for equal settings."""
    return json.dumps(parameters, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def key_of(kind: str, method: str, parameters: Parameters) -> str:
    """The key of a row of the ``"search"``, or of a ``"result"``."""
    return f"{kind}/{method}/{setting_text(parameters)}"


# -- numbers of many pictures


def decibels(samples: Sequence[float | None]) -> Values:
    """PSNRs as numbers: equal pictures (None) and all above the ceiling count as the ceiling."""
    return np.array([CEILING if value is None else min(value, CEILING) for value in samples], dtype=np.float64)


mean: Statistic = partial(np.mean, axis=-1)
fifth_percentile: Statistic = partial(np.percentile, q=5, axis=-1)


def difference(
    name: str, first: Values, second: Values, statistic: Statistic, target: str, unit: str = "dB", *, together: int = 1
) -> Finding:
    """A statistic of `first` minus that of `second`, with its 95 % interval by the paired bootstrap.

    Both have the same pictures in the same order. Captions are drawn with replacement, the same for both, 10,000 times.
    """

    def of(pairs: Values) -> Values:
        return statistic(pairs[..., 0]) - statistic(pairs[..., 1])

    pairs = np.stack([first, second], axis=-1)
    low, high = bootstrap(pairs, of, draws=RESAMPLINGS, together=together)
    return replace(found(name, float(of(pairs)), unit, target), low=low, high=high)


# -- choosing


@dataclass(frozen=True)
class Entry:
    """A method at a budget, a speed-up by work: the setting that was chosen, its row of the search, and its result.

    The result is on the held-out pictures, and None while there is none.
    """

    method: str
    owner: str
    family: str
    budget: float
    parameters: Parameters
    search: Mapping[str, Any]
    result: Mapping[str, Any] | None

    @property
    def search_psnr(self) -> float:
        return float(mean(decibels(self.search["psnr"])))

    @property
    def psnr(self) -> Values:
        """Of the held-out pictures."""
        if self.result is None:
            raise ValueError(f"{self.method} has no result at {self.budget:g}×")
        return decibels(self.result["psnr"])

    @property
    def speedup(self) -> float:
        return float((self.result or {})["speedup"])

    @property
    def lpips(self) -> Values | None:
        """Of the held-out pictures, or None where it could not be computed."""
        samples = (self.result or {}).get("lpips") or [None]
        return None if None in samples else np.array(samples, dtype=np.float64)


def described(rows: Rows) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The methods that a run knew, by name, with owner, family and candidates."""
    return ((key.removeprefix("method/"), row) for key, row in rows.items() if key.startswith("method/"))


def searched(rows: Rows, method: str) -> list[Mapping[str, Any]]:
    """The rows of a method's candidates that could be drawn."""
    found = (rows.get(key_of("search", method, one)) for one in rows[f"method/{method}"]["candidates"])
    return [row for row in found if row is not None and "psnr" in row]


def chosen(rows: Rows, method: str, budget: float) -> Parameters | None:
    """The setting with the best mean PSNR among those that reach the budget on the search's pictures, or None."""
    reaching = [row for row in searched(rows, method) if row["speedup"] >= TOLERANCE * budget]
    best = max(reaching, key=lambda row: mean(decibels(row["psnr"])), default=None)
    return None if best is None else dict(best["parameters"])


def entries(rows: Rows, budgets: Sequence[float]) -> list[Entry]:
    """Every method at every budget that it reaches."""
    listed = []
    for method, row in described(rows):
        for budget in budgets:
            parameters = chosen(rows, method, budget)
            if parameters is not None:
                search, result = (rows.get(key_of(kind, method, parameters), {}) for kind in ("search", "result"))
                drawn = result if "psnr" in result else None
                listed.append(Entry(method, row["owner"], row["family"], budget, parameters, search, drawn))
    return listed


def best_of_families(listed: Sequence[Entry]) -> list[Entry]:
    """Of each family the entry that was best in the search, at every budget."""
    best: dict[tuple[str, float], Entry] = {}
    for entry in listed:
        there = best.setdefault((entry.family, entry.budget), entry)
        if entry.search_psnr > there.search_psnr:
            best[entry.family, entry.budget] = entry
    return list(best.values())


def hopeful(listed: Sequence[Entry]) -> list[Entry]:
    """The best of each family at every budget, without those that the search shows to be far behind.

    Ours are measured by our best, peers by the best peer, and what needs no cache by itself: however far ahead one is,
    each owner's best is drawn.
    """
    best = best_of_families(listed)
    top: dict[tuple[str, float], float] = {}
    for one in best:
        place = one.owner, one.budget
        top[place] = max(one.search_psnr, top.get(place, one.search_psnr))
    return [one for one in best if one.search_psnr > top[one.owner, one.budget] - HOPELESS]


def best_of(listed: Sequence[Entry], budget: float, *owners: str) -> Entry | None:
    """The entry of these owners at a budget that was best in the search: no held-out picture has a say."""
    fitting = [entry for entry in listed if entry.budget == budget and entry.owner in owners and entry.result]
    return max(fitting, key=lambda entry: entry.search_psnr, default=None)


def strongest(listed: Sequence[Entry], budget: float, statistic: Statistic) -> Entry | None:
    """The entry of the others that came out best on the held-out pictures: they get the benefit of the choice."""
    others = [entry for entry in listed if entry.budget == budget and entry.owner in OTHERS and entry.result]
    return max(others, key=lambda entry: float(statistic(entry.psnr)), default=None)


# -- what follows


def findings(rows: Rows, settings: Mapping[str, Any]) -> list[Finding]:
    """The findings of all rows that are there."""
    budgets = tuple(settings["budgets"])
    listed = [entry for entry in entries(rows, budgets) if entry.result is not None]
    told: list[Finding] = []
    for budget in budgets:
        told += _against_others(listed, budget, settings["seeds"])
        told += [_timed(one) for one in (best_of(listed, budget, owner) for owner in OWNERS) if one is not None]
    for entry in sorted(listed, key=lambda entry: (entry.budget, -mean(entry.psnr))):
        psnr = entry.psnr
        details = {"owner": entry.owner, "setting": setting_text(entry.parameters), "speedup_by_work": entry.speedup}
        details |= {"p5": float(fifth_percentile(psnr)), "minimum": float(psnr.min())}
        details["equal"] = list((entry.result or {})["psnr"]).count(None)
        group = f"mean PSNR at {entry.budget:g}×"
        told.append(replace(found(entry.method, float(mean(psnr)), "dB", **details), group=group))
    return told


def _timed(entry: Entry) -> Finding:
    """The seconds of the uncached pictures over those of the same ones by a setting."""
    result = entry.result or {}
    pairs = list(zip(result["uncached"]["seconds"], result["seconds"], strict=True))
    details = {"by_work": entry.speedup, "setting": entry.parameters}
    return replace(measured(entry.method, pairs, ratio_of_medians, **details), group=f"{TIMED}{entry.budget:g}×")


def _against_others(listed: Sequence[Entry], budget: float, seeds: int) -> Iterator[Finding]:
    """Ours, as chosen by the search, minus the best of the others by the very pictures that are compared."""
    ours = best_of(listed, budget, "ours")
    title = f"ours − best other at {budget:g}×"
    for name, statistic in (("mean", mean), ("5th percentile", fifth_percentile)):
        other = strongest(listed, budget, statistic)
        if ours is not None and other is not None:
            one = difference(f"{title}, {name} PSNR", ours.psnr, other.psnr, statistic, "> 0", together=seeds)
            settings = {"ours_setting": ours.parameters, "other_setting": other.parameters}
            values = {"ours_value": float(statistic(ours.psnr)), "other_value": float(statistic(other.psnr))}
            details = {"ours": ours.method, "other": other.method, **settings, **values}
            yield replace(one, group=COMPARED, details=details)
    other = strongest(listed, budget, mean)
    if ours is not None and other is not None and ours.lpips is not None and other.lpips is not None:
        one = difference(f"{title}, mean LPIPS", ours.lpips, other.lpips, mean, "< 0", "", together=seeds)
        yield replace(one, group=COMPARED, details={"ours": ours.method, "other": other.method})
