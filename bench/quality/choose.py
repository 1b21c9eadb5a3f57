"""From the rows of the search to one setting of each method at each budget, and from those to the best."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.quality.method import Parameters
from bench.quality.statistics import Spread, decibels, mean, spread

Rows = Mapping[str, Mapping[str, Any]]

#: Whose a method is: ours, a peer's, or what needs no cache at all.
OWNERS = ("ours", "peer", "baseline")
#: The share of a budget that a setting must reach on the search's pictures.
TOLERANCE = 0.98


def setting_text(parameters: Parameters) -> str:
    """A setting as it stands in keys: the same for equal settings."""
    return json.dumps(parameters, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def search_key(method: str, parameters: Parameters) -> str:
    return f"search/{method}/{setting_text(parameters)}"


def evaluation_key(method: str, parameters: Parameters) -> str:
    return f"result/{method}/{setting_text(parameters)}"


def method_key(method: str) -> str:
    return f"method/{method}"


@dataclass(frozen=True)
class Entry:
    """A method at a budget.

    Args:
        method, owner, family: as the method says.
        budget: the speed-up by work that was asked for.
        parameters: the setting that was chosen.
        search: its row of the search.
        result: its row on the held-out pictures, or None while there is none.
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
    def psnr(self) -> Spread:
        """Of the held-out pictures."""
        if self.result is None:
            raise ValueError(f"{self.method} has no result at {self.budget:g}×")
        return spread(self.result["psnr"])


def described(rows: Rows) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The methods that a run knew, by name, with owner, family and candidates."""
    prefix = method_key("")
    return ((key.removeprefix(prefix), row) for key, row in rows.items() if key.startswith(prefix))


def searched(rows: Rows, method: str) -> list[Mapping[str, Any]]:
    """The rows of a method's candidates that could be drawn."""
    found = (rows.get(search_key(method, one)) for one in rows[method_key(method)]["candidates"])
    return [row for row in found if row is not None and "psnr" in row]


def chosen(rows: Rows, method: str, budget: float) -> Parameters | None:
    """The setting with the best mean PSNR among those that reach the budget on the search's pictures, or None."""
    reaching = [row for row in searched(rows, method) if row["speedup"] >= TOLERANCE * budget]
    best = max(reaching, key=lambda row: mean(decibels(row["psnr"])), default=None)
    return None if best is None else dict(best["parameters"])


def entries(rows: Rows, budgets: tuple[float, ...]) -> list[Entry]:
    """Every method at every budget that it reaches."""
    found = []
    for method, row in described(rows):
        for budget in budgets:
            parameters = chosen(rows, method, budget)
            if parameters is None:
                continue
            result = rows.get(evaluation_key(method, parameters))
            usable = result if result is not None and "psnr" in result else None
            search = rows[search_key(method, parameters)]
            found.append(Entry(method, row["owner"], row["family"], budget, parameters, search, usable))
    return found


def best_of_families(listed: list[Entry]) -> list[Entry]:
    """Of each family the entry that was best in the search, at every budget."""
    best: dict[tuple[str, float], Entry] = {}
    for entry in listed:
        there = best.setdefault((entry.family, entry.budget), entry)
        if entry.search_psnr > there.search_psnr:
            best[entry.family, entry.budget] = entry
    return list(best.values())


#: A family that is further behind its owner's best at a budget is not drawn on the held-out pictures, in dB.
HOPELESS = 5.0


def hopeful(listed: list[Entry]) -> list[Entry]:
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


def best_of(listed: list[Entry], budget: float, *owners: str) -> Entry | None:
    """The entry of these owners at a budget that was best in the search: no held-out picture has a say."""
    fitting = [entry for entry in listed if entry.budget == budget and entry.owner in owners and entry.result]
    return max(fitting, key=lambda entry: entry.search_psnr, default=None)
