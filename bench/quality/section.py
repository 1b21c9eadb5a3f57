"""What the bench of quality says: in the report, and on the documentation's page of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.findings import interval_text
from bench.quality.choose import HOPELESS, TOLERANCE, Entry, best_of, described, entries, method_key, searched
from bench.quality.fidelity import CEILING
from bench.quality.findings import TIMED, findings
from bench.quality.plots import has_lpips, lpips_figure, lpips_of, psnr_figure
from bench.report.section import Drawn, Section, markdown_table
from bench.results import Results
from cache_dit.demo.plans import demo_plan, steps_planned

_OWNERS = {"ours": "ours", "peer": "peer", "baseline": "no cache"}


def _entries(results: Results) -> list[Entry]:
    """What has a result on the held-out pictures."""
    budgets = tuple(results.settings["budgets"])
    return [entry for entry in entries(results.rows, budgets) if entry.result is not None]


def text(results: Results) -> str:
    """How it was measured, the comparison, the settings that won, and what was not run."""
    listed = _entries(results)
    parts = [_method(results)]
    if listed:
        names = ("bench_quality_psnr", *(["bench_quality_lpips"] if any(map(has_lpips, listed)) else []))
        parts += [_conclusions(results), *(f"{{figure: {name}}}\n" for name in names)]
        parts += ["### Everyone's best at each budget\n", *_tables(results, listed)]
        parts += [_timing(results)]
    parts += [_search(results), _environments(results), _not_run(results)]
    return "\n".join(part for part in parts if part)


def figures(results: Results) -> Iterator[Drawn]:
    """PSNR and, where it was computed, LPIPS over the speed-up."""
    listed = _entries(results)
    if listed:
        yield from psnr_figure(listed)
        yield from lpips_figure(listed)


def _method(results: Results) -> str:
    settings = results.settings
    budgets = ", ".join(f"{budget:g}×" for budget in settings["budgets"])
    captions = f"{settings['search_captions']} caption{'' if settings['search_captions'] == 1 else 's'}"
    missing = results.rows.get("metrics", {}).get("lpips_missing", "")
    lpips = f" LPIPS is missing: {missing}." if missing else ""
    return (
        f"Every method draws the same pictures with the demo model ({settings['steps']} steps, two branches of "
        f"guidance, float32, CPU), and each picture is compared with the one that the same pipeline draws without a "
        f"cache: PSNR in float64 on unrounded pixels, SSIM, LPIPS with AlexNet. Work is the multiply-adds that run "
        f"inside the blocks; speed-up by work is the uncached run's over the method's, the same rule for all. Each "
        f"method has up to {settings['candidates']} settings; each is tried on {captions}, "
        f"and at each budget ({budgets}) the one with the best mean PSNR is taken among those whose speed-up by work "
        f"is at least {TOLERANCE:g} of it. Of methods that differ in their predictor alone the best in the search goes "
        f"on, unless it is more than {HOPELESS:g} dB behind its owner's best (ours, or a peer's). What is shown is the "
        f"result on {settings['pictures']} pictures of other captions, whose speed-up is told "
        f"beside it. A PSNR above {CEILING:g} dB, or of the very same picture, counts as {CEILING:g} dB.{lpips}"
        f"{_planned(results)}\n"
    )


def _planned(results: Results) -> str:
    """What the plans cost to find: that search is not among the candidates."""
    steps = results.settings["steps"]
    if method_key("plan") not in results.rows or steps not in steps_planned():
        return ""
    cost = demo_plan(steps).cost
    prompts = cost["prompts"]
    return (
        f" `plan` is the demo model's plan, which was searched beforehand with {prompts['search']} captions of its own "
        f"and judged on {prompts['held_out']} more, in the time of {cost['uncached_runs']:.0f} uncached runs; the "
        f"others' settings took no search but the one counted here."
    )


def _conclusions(results: Results) -> str:
    """Ours beside the best of the others, a row for each budget and statistic."""
    rows = []
    for finding in findings(results.rows, results.settings):
        if finding.group == "ours against the others":
            details = finding.details
            digits = 2 if finding.unit else 4
            mark = "yes" if finding.reached else "**no**"
            shown = (finding.name, f"{finding.value:+.{digits}f} {finding.unit}".strip(), interval_text(finding))
            rows.append((*shown, details["ours"], details["other"], mark))
    if not rows:
        return ""
    heads = ("difference", "value", "95 % interval", "ours", "other", "ahead")
    introduction = (
        "### Ours beside the best of the others\n\n"
        "Our configuration is the one that was best in the search; of the others, each statistic takes whichever came "
        "out best on the held-out pictures, fewer steps included. Intervals by the paired bootstrap over captions, "
        "10,000 resamplings.\n"
    )
    return f"{introduction}\n{markdown_table(heads, rows)}"


def _tables(results: Results, listed: list[Entry]) -> Iterator[str]:
    heads = ("method", "whose", "setting", "speed-up", "PSNR mean", "5th %", "least", "SSIM", "LPIPS")
    for budget in results.settings["budgets"]:
        there = sorted((one for one in listed if one.budget == budget), key=lambda one: -one.psnr.mean)
        best = best_of(listed, budget, "ours")
        if there:
            table = markdown_table(heads, [_row(entry, entry is best) for entry in there], left=3)
            yield f"**{budget:g}× and more**\n\n{table}"


def _row(entry: Entry, best: bool) -> tuple[str, ...]:
    result, psnr, lpips = entry.result or {}, entry.psnr, lpips_of(entry)
    name = f"**{entry.method}**" if best else entry.method
    ssim = sum(result["ssim"]) / len(result["ssim"])
    numbers = (f"{result['speedup']:.2f}×", f"{psnr.mean:.1f}", f"{psnr.p5:.1f}", f"{psnr.minimum:.1f}", f"{ssim:.3f}")
    return (
        name,
        _OWNERS[entry.owner],
        short_setting(entry.parameters),
        *numbers,
        "–" if lpips is None else f"{lpips:.3f}",
    )


def short_setting(parameters: dict[str, Any]) -> str:
    """A setting for people: `name value` pairs."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in parameters.items()) or "–"


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(bit in (0, 1) for bit in value):
        return "".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _timing(results: Results) -> str:
    rows = []
    for finding in findings(results.rows, results.settings):
        if finding.group.startswith(TIMED):
            by_work = f"{finding.details['by_work']:.2f}×"
            row = (finding.group.removeprefix(TIMED), finding.name, f"{finding.value:.2f}×", interval_text(finding))
            rows.append((*row, by_work))
    if not rows:
        return ""
    introduction = (
        "### Measured time\n\nThe best of ours and of the others, in turns with the uncached pipeline: its median time "
        f"over theirs ({results.settings['clock']} time, text encoders and decoder included).\n"
    )
    return (
        f"{introduction}\n{markdown_table(('budget', 'method', 'measured', '95 % interval', 'by work'), rows, left=2)}"
    )


def _search(results: Results) -> str:
    """How much each method was searched."""
    rows = []
    for method, row in described(results.rows):
        tried = searched(results.rows, method)
        reach = (
            f"{min(one['speedup'] for one in tried):.2f}× – {max(one['speedup'] for one in tried):.2f}×"
            if tried
            else "–"
        )
        rows.append((method, _OWNERS[row["owner"]], str(len(row["candidates"])), str(len(tried)), reach))
    if not rows:
        return ""
    heads = ("method", "whose", "candidates", "drawn", "speed-up by work")
    totals = {shown: sum(int(row[2]) for row in rows if row[1] == shown) for shown in _OWNERS.values()}
    said = ", ".join(f"{owner} {count}" for owner, count in totals.items() if count)
    return f"### The search\n\nSettings that were tried: {said}.\n\n{markdown_table(heads, rows, left=2)}"


def _environments(results: Results) -> str:
    """How far the uncached pictures of other environments are from ours."""
    found = {}
    for method, row in described(results.rows):
        for one in searched(results.rows, method)[:1] if row["environment"] != "here" else ():
            closeness = one["uncached"].get("psnr_to_ours")
            found[row["environment"]] = "the very same" if closeness is None else f"{closeness:.0f} dB from ours"
    lines = [
        f"- {name}: its uncached pictures, which its own are compared with, are {far}" for name, far in found.items()
    ]
    return "### Other environments\n\n" + "\n".join(lines) + "\n" if lines else ""


def _not_run(results: Results) -> str:
    lines = [f"- {method}: {row['not run']}" for method, row in described(results.rows) if row.get("not run")]
    failed: dict[str, list[str]] = {}
    for key, row in results.rows.items():
        if "failed" in row:
            failed.setdefault(key.split("/")[1], []).append(row["failed"])
    lines += [
        f"- {method}: {len(whys)} settings failed, e.g. {whys[0].splitlines()[0]}" for method, whys in failed.items()
    ]
    return "### Not run\n\n" + "\n".join(lines) + "\n" if lines else ""


SECTION = Section("quality", "Quality", "cache-dit bench quality", text, figures)
