"""What the report says of a CUDA GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.gpu.findings import findings_of
from bench.gpu.models import SPECS
from bench.gpu.plan import LEFT_OUT
from bench.report.section import Drawn, Section, findings_table

if TYPE_CHECKING:
    from bench.results import Results


def _text(results: Results) -> str:
    findings = results.findings or findings_of(results.rows)
    intro = (
        "Transformers of the sizes that people run, with random weights and in "
        f"{results.settings.get('dtype', 'bfloat16')}: their blocks cost what those of the checkpoints cost. Steps are "
        "timed by events in the device's stream; bare and wrapped models take turns. A wait is counted where torch "
        "says that the host waited for the device. *Ideal* is the speed-up if nothing but blocks took time; *even* is "
        "a plan of evenly spaced computed steps, of which all steps are about 3.9 times as many.\n"
    )
    parts = [intro, _models(results)]
    for group in dict.fromkeys(finding.group for finding in findings):
        table = findings_table(finding for finding in findings if finding.group == group)
        figure = _figure_name(group)
        place = f"\n{{figure: {figure}}}\n" if figure in _drawable(results) else ""
        parts.append(f"### {group}\n\n{table}{place}")
    parts.append(_missing(results))
    return "\n".join(part for part in parts if part)


def _models(results: Results) -> str:
    lines = []
    for spec in SPECS.values():
        row = results.rows.get(f"{spec.name}: made", {})
        if "parameters" in row:
            picture, text = spec.tokens
            lines.append(
                f"- {spec.title}: {row['parameters'] / 1e9:.1f} billion parameters, {row['blocks']} blocks, {picture} "
                f"tokens of picture or video and {text} of text\n"
            )
    return "".join(lines)


def _missing(results: Results) -> str:
    """What failed, and what did not fit: said, so that nobody takes it for measured."""
    errors = {key: row["error"] for key, row in results.rows.items() if "error" in row}
    skipped = {key: row["skipped"] for key, row in results.rows.items() if "skipped" in row}
    left = results.rows.get(LEFT_OUT, {}).get("keys", [])
    lines = [f"- {key}: {reason}\n" for key, reason in (errors | skipped).items()]
    lines += [f"- {key}: there was no time left\n" for key in left]
    for key, row in results.rows.items():
        lines += [f"- {key}, {peer}: {reason}\n" for peer, reason in row.get("errors", {}).items() if ": peers" in key]
    return f"### Not run\n\n{''.join(lines)}" if lines else ""


def _figure_name(group: str) -> str:
    return next((f"gpu_{spec.name}" for spec in SPECS.values() if spec.title == group), "")


def _drawable(results: Results) -> dict[str, str]:
    """The figures that there are rows for, with their models' names."""
    return {
        f"gpu_{name}": name
        for name in SPECS
        if any(key.startswith(f"{name}: loop") and "error" not in row for key, row in results.rows.items())
    }


def _figures(results: Results) -> Iterator[Drawn]:
    from bench.gpu.plots import loops_figure

    for figure, name in _drawable(results).items():
        title = SPECS[name].title
        alt = f"{title}: measured speed-up of whole denoising loops over the ideal one, at each mask"
        yield Drawn(figure, alt, loops_figure(results.rows, name))


SECTION = Section(bench="gpu", title="On a GPU", repeat="cache-dit bench gpu", text=_text, figures=_figures)
