"""What the report says of how costs grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bench.report.section import Drawn, Section, markdown_table
from bench.scaling.findings import by_axis, cached_fit, full_fit, python_seconds, skips, step_seconds
from bench.scaling.points import UNITS

if TYPE_CHECKING:
    from bench.results import Results

Row = dict[str, Any]
HEADS = ("full step", "cached, static Fn=0", "cached, dynamic Fn=1", "FirstBlockCache", "Python's share of a full step")

#: How it is known from where on the wrapper is a hundredth of a step.
_HOW = {
    "below": "Its share of a full step is below 1 % at every size, from",
    "measured": "Its share of a full step falls below 1 % at",
    "extrapolated": "Its share of a full step falls below 1 %, by the fit, outside of what was measured, at",
    "never": "Its share of a full step stays above 1 % up to",
}


def _text(results: Results) -> str:
    rows = results.rows
    axes = by_axis(rows)
    parts = [
        "A random FLUX transformer on one device; of tokens, depth, width and batch one grows and the others stay. "
        "Bare and wrapped models take their steps in turn. Times are medians in milliseconds; a cached step with Fn=0 "
        "runs no block, with Fn=1, as with FirstBlockCache, the first one.\n"
    ]
    for axis, own in axes.items():
        parts.append(f"### {axis.capitalize()}\n\n{_table(axis, own, rows.get('python'))}")
        if len(own) > 1:
            parts.append(f"{{figure: scaling_{axis}}}\n\n{_fit_text(axis, own)}")
    parts.append(_conclusion(results))
    return "\n".join(parts)


def _table(axis: str, rows: Sequence[Row], python: Row | None) -> str:
    lines = []
    for row in rows:
        shown = [_ms(row, "bare"), _ms(row, "static"), _ms(row, "dynamic") if skips(row) else "–"]
        share = "–" if python is None else f"{100 * _share(row, python):.3g} %"
        lines.append((f"{row['value']}", *shown, _ms(row, "FirstBlockCache"), share))
    return markdown_table((UNITS[axis], *HEADS), lines)


def _ms(row: Row, name: str) -> str:
    return f"{1000 * step_seconds(row, name):.3g}"


def _share(row: Row, python: Row) -> float:
    step, block = python_seconds(python)
    return (step + block * row["blocks"]) / step_seconds(row, "bare")


def _fit_text(axis: str, rows: Sequence[Row]) -> str:
    fit = full_fit(axis, rows)
    unit = {0: "", 1: f" · {UNITS[axis]}", 2: f" · {UNITS[axis]}²"}
    terms = " + ".join(
        f"{1000 * value:.3g}{unit[power]}" for power, value in zip(fit.powers, fit.coefficients, strict=True)
    )
    return (
        f"A full step, in milliseconds: {terms}. The fit is off by {100 * fit.error:.2g} % (root mean square), at most "
        f"by {100 * fit.largest:.2g} %.\n"
    )


def _conclusion(results: Results) -> str:
    rows = [row for row in results.rows.values() if "axis" in row]
    lines = []
    if len(rows) > 1:
        fit = cached_fit(rows)
        fixed, by_byte = (*fit.coefficients, 0.0)[:2]
        lines.append(
            f"Over all sizes a cached step with Fn=0 takes {1000 * fixed:.3g} ms and {1000 * by_byte * 2**20:.3g} ms "
            f"for each MiB of a feature; the fit is off by {100 * fit.error:.2g} % (root mean square)."
        )
    if "python" in results.rows:
        step, block = python_seconds(results.rows["python"])
        lines.append(
            f"The wrapper's own Python takes {1e6 * step:.3g} µs in a computed step and {1e6 * block:.2g} µs more in "
            "each of its blocks, whatever the size of the model."
        )
    for finding in results.findings:
        if "how" in finding.details:
            lines.append(f"{_HOW[finding.details['how']]} {finding.value:.3g} {finding.unit}.")
    return "### What follows\n\n" + "".join(f"- {line}\n" for line in lines)


def _figures(results: Results) -> Iterator[Drawn]:
    from bench.scaling.plots import axis_figure

    for axis, rows in by_axis(results.rows).items():
        if len(rows) > 1:
            alt = f"Seconds of full and cached steps over {UNITS[axis]}, on logarithmic scales, with the fit"
            yield Drawn(f"scaling_{axis}", alt, axis_figure(axis, rows))


SECTION = Section(
    bench="scaling",
    title="How costs grow",
    repeat="cache-dit bench scaling",
    text=_text,
    figures=_figures,
)
