"""What a bench says: tables and charts. A table prints on a terminal and as Markdown, a chart becomes a figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.findings import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table as RichTable

PAGES = Path(__file__).parent.parent / "pages"
#: How a marked cell looks on a terminal, by its first word.
_COLOURS = dict.fromkeys(("reached", "reaches", "better"), "green") | dict.fromkeys(
    ("missed", "misses", "worse"), "red"
)


@dataclass(frozen=True)
class Marked:
    """A cell that stands out: bold in Markdown where ``strong``, coloured by its first word on a terminal."""

    text: str
    strong: bool = True


Cell = str | Marked


@dataclass
class Table:
    """Words in the first ``left`` columns, numbers in the others; cells are plain text, whatever they hold.

    A row of one cell is a heading among the others, for a terminal, as the title is.
    """

    heads: Sequence[str]
    rows: list[Sequence[Cell]]
    left: int = 1
    title: str = ""

    def markdown(self) -> str:
        """As Markdown; nothing where there is no row."""
        if not self.rows:
            return ""
        rule = ["---"] * self.left + ["---:"] * (len(self.heads) - self.left)
        lines = [list(self.heads), rule, *([_markdown(cell) for cell in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def terminal(self) -> RichTable:
        """For ``rich``."""
        from rich.markup import escape
        from rich.table import Table as RichTable

        shown = RichTable(title=escape(self.title), title_justify="left")
        for place, head in enumerate(self.heads):
            shown.add_column(head, justify="left" if place < self.left else "right", overflow="fold")
        for row in self.rows:
            if len(row) == 1:
                shown.add_section()
                shown.add_row(f"[bold]{escape(_text(row[0]))}[/]")
            else:
                shown.add_row(*(_coloured(cell) for cell in row))
        return shown


def _text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Marked) else cell


def _markdown(cell: Cell) -> str:
    text = literal(_text(cell)).replace("|", "\\|").replace("\n", " ")
    return f"**{text}**" if isinstance(cell, Marked) and cell.strong and text else text


def _coloured(cell: Cell) -> str:
    from rich.markup import escape

    if not isinstance(cell, Marked):
        return escape(cell)
    lines = [(_COLOURS.get(line.partition(" ")[0], "bold"), line) for line in cell.text.splitlines()]
    return "\n".join(f"[{colour}]{escape(line)}[/]" for colour, line in lines)


def literal(text: str) -> str:
    """Text as Markdown that shows just this."""
    return re.sub(r"([\\`*\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def findings_table(findings: Iterable[Finding], title: str = "", *, grouped: bool = False) -> Table:
    """Findings: value, interval, target, and whether it is reached; ``grouped``: under their groups' names."""
    rows: list[Sequence[Cell]] = []
    for group, some in groupby(findings, key=lambda one: one.group):
        rows += [(group,)] if grouped else []
        for one in some:
            judged = "" if one.reached is None else "reached" if one.reached else "missed"
            mark = Marked(judged, strong=judged == "missed")
            rows.append((one.name, one.value_text, one.interval_text, one.target, mark))
    return Table(("what", "value", "95 % interval", "target", ""), rows, title=title)


def by_group(findings: Iterable[Finding]) -> str:
    """Findings as Markdown: a table for each group, under its name."""
    parts = []
    for group, some in groupby(findings, key=lambda one: one.group):
        heading = f"### {literal(group[:1].upper() + group[1:])}\n" if group else ""
        parts += [heading, findings_table(some).markdown()]
    return "\n".join(part for part in parts if part)


def pivot(findings: Iterable[Finding], columns: str, names: Mapping[str, str]) -> Table:
    """A line for each contender and a column for each value of a detail."""
    cells: dict[str, dict[str, str]] = {}
    heads: dict[str, None] = {}
    for one in findings:
        heads[one.details[columns]] = None
        between = one.interval_text
        text = f"{one.value_text} ({between})" if between else one.value_text
        cells.setdefault(one.details["who"], {})[one.details[columns]] = text
    rows = [[names.get(who, who), *(own.get(head, "–") for head in heads)] for who, own in cells.items()]
    return Table(("", *heads), rows)


# -- charts


@dataclass
class Line:
    """Points in a panel, joined or not; ``style``: as matplotlib's ``plot`` takes it."""

    xs: Sequence[float]
    ys: Sequence[float]
    label: str = ""
    style: dict[str, Any] = field(default_factory=dict)


@dataclass
class Panel:
    """Lines over something; ``log``: the logarithmic axes, e.g. ``"xy"``."""

    xlabel: str
    ylabel: str = ""
    lines: list[Line] = field(default_factory=list)
    log: str = ""
    ticks: Mapping[float, str] = field(default_factory=dict)


@dataclass
class Chart:
    """Panels, two in a row: the name of the file, which no other figure has, and what it shows, in words."""

    name: str
    alt: str
    panels: list[Panel]
    width: float = 5.2
    height: float = 4.0

    def figure(self) -> Figure:
        """Drawn, by the look of `bench.report.style`."""
        from matplotlib.figure import Figure

        import bench.report.style  # noqa: F401 - the look

        columns = min(2, len(self.panels))
        lines = -(-len(self.panels) // columns)
        legend = 2.4 * any(line.label for panel in self.panels for line in panel.lines)
        figure = Figure(figsize=(self.width * columns + legend, self.height * lines), layout="constrained")
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, panel in zip(grid, self.panels, strict=False):
            _draw(axes, panel)
        for axes in grid[len(self.panels) :]:
            axes.set_visible(False)
        if legend:
            handles = {
                label: one for axes in figure.axes for one, label in zip(*axes.get_legend_handles_labels(), strict=True)
            }
            figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        return figure


#: What a place of a page holds; nothing: the part around it is left out.
Part = str | Table | Chart | None


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    for line in panel.lines:
        axes.plot(line.xs, line.ys, label=line.label or "_", **line.style)
    if "x" in panel.log:
        axes.set_xscale("log")
    if "y" in panel.log:
        axes.set_yscale("log")
    if panel.ticks:
        axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
    if panel.log:
        axes.minorticks_off()
