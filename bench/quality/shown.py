"""What the bench of quality says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bench.findings import Finding
from bench.quality import choose
from bench.quality.choose import Entry, fifth_percentile, mean
from bench.report.parts import Chart, Line, Marked, Panel, Part, Table
from bench.results import Results
from cache_dit.demo.plans import demo_plan, steps_planned


def parts(results: Results) -> dict[str, Part]:
    """What the places of ``pages/quality.md`` hold."""
    settings, rows = results.settings, results.rows
    told = results.findings or choose.findings(rows, settings)
    listed = [entry for entry in choose.entries(rows, settings["budgets"]) if entry.result is not None]
    with_lpips = [entry for entry in listed if entry.lpips is not None]
    owners = {"ours": results.ours, "peer": "peer", "baseline": "no cache"}
    captions = settings["search_captions"]
    interleaved = any(key.startswith("timing/") for key in rows)  # as once, beside the uncached pipeline
    lpips = [("LPIPS (AlexNet), mean", lambda one: float(mean(one.lpips)))]
    values = [("PSNR, mean (dB)", lambda one: float(mean(one.psnr)))]
    values += [("PSNR, 5th percentile (dB)", lambda one: float(fifth_percentile(one.psnr)))]
    return {
        "steps": str(settings["steps"]),
        "candidates": str(settings["candidates"]),
        "captions": f"{captions} caption{'' if captions == 1 else 's'}",
        "budgets": ", ".join(f"{budget:g}×" for budget in settings["budgets"]),
        "tolerance": f"{choose.TOLERANCE:g}",
        "hopeless": f"{choose.HOPELESS:g}",
        "pictures": str(settings["pictures"]),
        "ceiling": f"{choose.CEILING:g}",
        "lpips_missing": rows.get("metrics", {}).get("lpips_missing", ""),
        "plan": _planned(results),
        "compared": _compared(told),
        "psnr_chart": _chart("psnr", listed, values) if listed else None,
        "lpips_chart": _chart("lpips", with_lpips, lpips) if with_lpips else None,
        "best": "\n".join(_best(settings["budgets"], listed, owners)),
        "clock": settings["clock"],
        "interleaved": "yes" if interleaved else "",
        "apart": "" if interleaved else "yes",
        "timed": _timed(told),
        **_search(results, owners),
        "not_run": _not_run(results),
    }


def _planned(results: Results) -> str:
    """What the plans cost to find: that search is not among the candidates."""
    steps = results.settings["steps"]
    if "method/plan" not in results.rows or steps not in steps_planned():
        return ""
    cost = demo_plan(steps).cost
    prompts, runs = cost["prompts"], f"{cost['uncached_runs']:.0f} uncached runs"
    return f"{prompts['search']} captions of its own and judged on {prompts['held_out']} more, in the time of {runs}"


def _compared(told: Sequence[Finding]) -> Table:
    """Ours beside the best of the others, a row for each budget and statistic."""
    rows = []
    for one in told:
        if one.group == choose.COMPARED:
            value = f"{one.value:+.{2 if one.unit else 4}f} {one.unit}".strip()
            ahead = Marked("yes" if one.reached else "no", strong=not one.reached)
            rows.append((one.name, value, one.interval_text, one.details["ours"], one.details["other"], ahead))
    return Table(("difference", "value", "95 % interval", "ours", "other", "ahead"), rows)


def _best(budgets: Sequence[float], listed: Sequence[Entry], owners: dict[str, str]) -> Iterator[str]:
    heads = ("method", "whose", "setting", "speed-up", "PSNR mean", "5th %", "least", "SSIM", "LPIPS")
    for budget in budgets:
        there = sorted((one for one in listed if one.budget == budget), key=lambda one: -mean(one.psnr))
        best, rows = choose.best_of(listed, budget, "ours"), []
        for one in there:
            name = Marked(one.method) if one is best else one.method
            spread = (mean(one.psnr), fifth_percentile(one.psnr), one.psnr.min())
            numbers = [f"{one.speedup:.2f}×", *(f"{value:.1f}" for value in spread)]
            numbers.append(f"{mean((one.result or {})['ssim']):.3f}")
            numbers.append("–" if one.lpips is None else f"{mean(one.lpips):.3f}")
            rows.append((name, owners[one.owner], short_setting(one.parameters), *numbers))
        if rows:
            yield f"**{budget:g}× and more**\n\n{Table(heads, rows, left=3).markdown()}"


def short_setting(parameters: dict[str, Any]) -> str:
    """A setting for people: `name value` pairs."""
    pairs = (
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in parameters.items()
    )
    return ", ".join(pairs) or "–"


def _timed(told: Sequence[Finding]) -> Table:
    rows = []
    for one in told:
        if one.group.startswith(choose.TIMED):
            budget, by_work = one.group.removeprefix(choose.TIMED), f"{one.details['by_work']:.2f}×"
            rows.append((budget, one.name, f"{one.value:.2f}×", one.interval_text, by_work))
    return Table(("budget", "method", "measured", "95 % interval", "by work"), rows, left=2)


def _search(results: Results, owners: dict[str, str]) -> dict[str, Part]:
    """How much each method was searched."""
    rows, totals = [], dict.fromkeys(choose.OWNERS, 0)
    for method, row in choose.described(results.rows):
        tried = [one["speedup"] for one in choose.searched(results.rows, method)]
        reach = f"{min(tried):.2f}× – {max(tried):.2f}×" if tried else "–"
        totals[row["owner"]] += len(row["candidates"])
        rows.append((method, owners[row["owner"]], str(len(row["candidates"])), str(len(tried)), reach))
    said = ", ".join(f"{owners[owner]} {count}" for owner, count in totals.items() if count)
    heads = ("method", "whose", "candidates", "drawn", "speed-up by work")
    return {"tried": said, "search": Table(heads, rows, left=2)}


def _not_run(results: Results) -> str:
    lines = [f"- {method}: {row['not run']}" for method, row in choose.described(results.rows) if row.get("not run")]
    failed: dict[str, list[str]] = {}
    for key, row in results.rows.items():
        if "failed" in row:
            failed.setdefault(key.split("/")[1], []).append(row["failed"])
    for method, whys in failed.items():
        lines.append(f"- {method}: {len(whys)} settings failed, e.g. {whys[0].splitlines()[0]}")
    return "\n".join(lines)


# -- the figures


def _chart(name: str, listed: Sequence[Entry], values: Sequence[tuple[str, Callable[[Entry], float]]]) -> Chart:
    """Closeness over the speed-up by work: ours, the others, and fewer steps."""
    ticks = {budget: f"{budget:g}×" for budget in sorted({entry.budget for entry in listed})}
    panels = [
        Panel("speed-up by work", label, lines=list(_curves(listed, value)), log="x", ticks=ticks)
        for label, value in values
    ]
    what = "our best settings, each of our other rules, every peer, and fewer steps"
    return Chart(f"bench_quality_{name}", f"{name.upper()} over speed-up: {what}", panels, 5.0, 4.2)


def _curves(listed: Sequence[Entry], value: Callable[[Entry], float]) -> Iterator[Line]:
    from bench.report.style import COMPUTED, SERIES, SOFT

    def line(some: Sequence[Entry], label: str, **style: Any) -> Line:
        some = sorted(some, key=lambda entry: entry.speedup)
        return Line([one.speedup for one in some], [value(one) for one in some], label, style)

    budgets = sorted({entry.budget for entry in listed})
    best = [one for budget in budgets if (one := choose.best_of(listed, budget, "ours"))]
    families: dict[tuple[str, str], list[Entry]] = {}
    for one in choose.best_of_families(listed):
        families.setdefault((one.owner, one.family), []).append(one)
    of = lambda owner: sorted(family for whose, family in families if whose == owner)  # noqa: E731
    for number, family in enumerate(of("ours")):
        label = "ours, other settings" if not number else ""
        yield line(families["ours", family], label, color=SOFT, alpha=0.4, linewidth=1.0, marker=".", zorder=1)
    peers = partial(line, marker="o", markersize=4, linewidth=1.2)
    for number, family in enumerate(of("peer")):
        style = {"color": SERIES[1 + number % (len(SERIES) - 2)], "linestyle": "-" if number < 8 else ":"}
        yield peers(families["peer", family], family, **style)
    for family in of("baseline"):
        yield line(families["baseline", family], family, color=SOFT, linestyle="--", marker="s", markersize=4)
    yield line(best, "ours, best", color=COMPUTED, linewidth=2.4, marker="o", zorder=5)
