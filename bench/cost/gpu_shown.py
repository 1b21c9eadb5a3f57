"""What the bench of a GPU says."""

from __future__ import annotations

import statistics
from typing import Any

from bench.cost.gpu import KERNELS, LEFT_OUT, findings_of
from bench.models import SPECS
from bench.report.parts import PAGES, Chart, Line, Panel, Part, by_group
from bench.results import Results


def parts(results: Results) -> dict[str, Part]:
    """What the places of ``pages/gpu.md`` hold."""
    rows = {key: row for key, row in results.rows.items() if "error" not in row and "skipped" not in row}
    findings = results.findings or findings_of(results.rows)
    charts = {spec.title: chart for spec in SPECS.values() if (chart := _chart(rows, spec.name, spec.title))}
    names = [one.name for one in findings]
    missed = {one.name for one in findings if one.reached is False}
    kernels = {KERNELS: (PAGES / "kernels.md").read_text(encoding="utf-8")}
    said = {  # what is seen where there are such findings
        "if_alone": any("alone" in name for name in names),
        "if_two_waits": "waits of the host in a step beyond the bare model's, measured" in missed,
        "if_peers": any("every fourth computed" in name for name in names),
        "if_slower_compiled": "regional: wrapped ÷ bare, computed steps of a plan" in missed,
    }
    return {
        **{name: "yes" if true else "" for name, true in said.items()},
        "dtype": results.settings.get("dtype", "bfloat16"),
        "models": "\n".join(_model(name, row) for name in SPECS if (row := rows.get(f"{name}: made"))),
        "rounds": str(results.settings.get("rounds", "")) if charts else "",
        "groups": by_group(
            findings, before=kernels, after={title: f"{{figure: {one.name}}}\n" for title, one in charts.items()}
        ),
        "missing": _missing(results),
        "charts": list(charts.values()),
    }


def _model(name: str, row: dict[str, Any]) -> str:
    spec, (picture, text) = SPECS[name], SPECS[name].tokens
    size = f"{row['parameters'] / 1e9:.1f} billion parameters, {row['blocks']} blocks"
    return f"- {spec.title}: {size}, {picture} tokens of picture or video and {text} of text"


def _missing(results: Results) -> str:
    """What failed, and what did not fit: said, so that nobody takes it for measured."""
    lines = []
    for key, row in results.rows.items():
        lines += [f"- {key}: {row[why]}" for why in ("error", "skipped") if why in row]
    left: dict[str, list[str]] = {}
    for key in results.rows.get(LEFT_OUT, {}).get("keys", []):
        name, _, part = key.rpartition(": ")
        left.setdefault(f"{SPECS[name].title}: " if name in SPECS else "", []).append(part)
    return "\n".join([*lines, *(f"- {model}no time left for {', '.join(some)}" for model, some in left.items())])


def _chart(rows: dict[str, Any], name: str, title: str) -> Chart | None:
    """A point for each mask and length of the loop; on the dashed line nothing is lost."""
    from bench.report.style import SERIES, SOFT

    lines, most = [], 1.0
    chosen = [row for key, row in rows.items() if key.startswith(f"{name}: loop")]
    for colour, row in zip(SERIES, chosen, strict=False):
        seconds = {run: statistics.median(taken) for run, taken in row["seconds"].items()}
        ideal = [row["steps"] / count for count in row["computed"].values()]
        measured = [seconds["bare"] / seconds[mask] for mask in row["computed"]]
        style = {"color": colour, "marker": "o", "linestyle": ""}
        lines.append(Line(ideal, measured, f"{row['steps']} steps", style, list(row["computed"])))
        most = max(most, *ideal, *measured)
    lines.append(Line([1, most], [1, most], "ideal", {"color": SOFT, "linestyle": "--"}))
    panel = Panel("ideal speed-up, by executed blocks", "measured speed-up", lines=lines)
    alt = f"{title}: measured speed-up of whole denoising loops over the ideal one, at each mask"
    return Chart(f"bench_gpu_{name}", alt, [panel]) if chosen else None
