"""What is found: rows of one table and of one file, and the two kinds of row that most groups are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from bench.common import interval, median_ms, median_ratio, ratio_of_medians

_DIGITS = {"×": 4, "features": 2, "µs": 1, "ms": 2, "dB": 2, "GiB": 2, "s": 2}


@dataclass
class Finding:
    """One row of the table."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    reached: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)
    group: str = ""


def at_most(name: str, value: float, unit: str, most: float | None, **details: Any) -> Finding:
    """A number, and whether it is as small as it should be."""
    target, reached = ("", None) if most is None else (f"≤ {most:g}", value <= most)
    return Finding(name, value, unit, target=target, reached=reached, details=details)


def ratio(name: str, pairs: Sequence[tuple[float, float]], *, most: float | None = None, **details: Any) -> Finding:
    """How many times as long the first of each pair takes as the second."""
    finding = at_most(name, median_ratio(pairs), "×", most, **details)
    finding.low, finding.high = interval(pairs, median_ratio)
    finding.details |= {
        "ratio_of_medians": ratio_of_medians(pairs),
        "median_ms": [median_ms(seconds) for seconds in zip(*pairs, strict=True)],
    }
    return finding


def value_text(finding: Finding) -> str:
    """A finding's value, with as many digits as its unit deserves."""
    return f"{_number(finding.value, finding.unit)} {finding.unit}".rstrip()


def interval_text(finding: Finding) -> str:
    """A finding's interval, or nothing."""
    if finding.low is None or finding.high is None:
        return ""
    return f"{_number(finding.low, finding.unit)} – {_number(finding.high, finding.unit)}"


def _number(value: float, unit: str) -> str:
    if unit in _DIGITS:
        return f"{value:.{_DIGITS[unit]}f}"
    return f"{value:.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def table(findings: Sequence[Finding], title: str) -> Table:
    """Findings as a table for a terminal, group by group."""
    shown = Table(title=escape(title), title_justify="left")
    shown.add_column("what")
    for heading in ("value", "95 % interval", "target", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    group = None
    for finding in findings:
        if finding.group != group:
            group = finding.group
            shown.add_section()
            shown.add_row(f"[bold]{escape(group)}[/]")
        mark = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[finding.reached]
        cells = (finding.name, value_text(finding), interval_text(finding), finding.target)
        shown.add_row(*map(escape, cells), mark)
    return shown
