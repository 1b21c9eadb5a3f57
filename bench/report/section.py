"""What a bench says of its results: a section of the report and of the documentation's page of benchmarks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from bench.findings import Finding, interval_text, value_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.results import Results


#: A line of a section's text in whose place a figure goes.
FIGURE_PLACE = re.compile(r"^\{figure: (\w+)\}$", re.MULTILINE)


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Args:
        name: of its file, without an ending; no other figure of any bench has it. Letters, digits and ``_``.
        alt: what it shows, for those who do not see it.
        figure: drawn under `bench.report.style.look`.
    """

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """One bench; ``bench/NAME/section.py`` has one, under the name ``SECTION``.

    Both functions take any results of the bench: quick ones, and those that a run has not finished.

    Args:
        bench: the bench's name.
        title: the heading.
        repeat: the command that measures this, e.g. ``"cache-dit bench quality"``.
        text: Markdown: what was measured, how, tables, and what follows from the numbers. It begins with a
            paragraph; its headings are of level 3 and below; its code blocks are ``text`` or ``bash``. A line
            ``{figure: NAME}``, alone between empty ones, is a figure's place; figures without one come at the end.
        figures: what to draw.
    """

    bench: str
    title: str
    repeat: str
    text: Callable[[Results], str]
    figures: Callable[[Results], Iterable[Drawn]]


def markdown_table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> str:
    """A table; its first ``left`` columns are words, the others numbers. Cells are Markdown (see `literal`)."""
    heads = list(heads)
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    lines = [heads, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def literal(text: str) -> str:
    """Text as Markdown that shows just this."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def findings_table(findings: Iterable[Finding]) -> str:
    """Findings as a table: value, interval, target, and whether it is reached."""
    marks = {True: "reached", False: "**missed**", None: ""}
    rows = (
        [*map(literal, (one.name, value_text(one), interval_text(one), one.target)), marks[one.reached]]
        for one in findings
    )
    return markdown_table(("what", "value", "95 % interval", "target", ""), rows)


def findings_by_group(findings: Iterable[Finding]) -> str:
    """Findings as a table for each group, under its name."""
    groups = groupby(findings, key=lambda one: one.group)
    return "\n".join((f"### {literal(name)}\n\n" if name else "") + findings_table(found) for name, found in groups)
