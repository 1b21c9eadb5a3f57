"""``cache-dit bench check``: compares a fresh run with a committed one, and prints what moved beyond the noise."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dit.cli.arguments import Command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bench.comparison import Change, Comparison
    from bench.findings import Finding

_WIDTH = 160
"""Characters per line where the output is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from bench.comparison import TOLERANCE

    parser.add_argument("fresh", type=Path, metavar="FRESH", help="results file of a run just made")
    parser.add_argument(
        "committed", type=Path, metavar="COMMITTED", nargs="?", help="what it was before (default: bench/results)"
    )
    parser.add_argument(
        "--tolerance",
        type=_share,
        default=TOLERANCE,
        metavar="SHARE",
        help="changes up to this share are not told (default %(default)s)",
    )
    parser.add_argument("--strict", action="store_true", help="end with status 1 where something got worse")
    parser.add_argument("--json", action="store_true", help="print everything as data")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, judge."""
    from rich.console import Console

    from bench.arguments import COMMITTED
    from bench.comparison import compare
    from bench.results import Results

    fresh = Results.load(arguments.fresh)
    committed = Results.load(arguments.committed or COMMITTED / f"{fresh.bench}.json")
    comparison = compare(fresh, committed, tolerance=arguments.tolerance)
    if arguments.json:
        print(json.dumps(comparison.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console = Console()
        if not console.is_terminal:
            console.width = _WIDTH
        _print(console, comparison)
    return 1 if arguments.strict and comparison.worse else 0


def _print(console: Console, comparison: Comparison) -> None:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    if comparison.conditions:
        say("Not measured alike; committed there, fresh now:")
        for line in comparison.conditions:
            say(f"  {line}")
    if comparison.changes:
        console.print(_moved(comparison.changes))
    for title, findings in (("appeared", comparison.appeared), ("went away", comparison.gone)):
        if findings:
            console.print(_listed(title, findings))
    counts = {
        "unchanged": comparison.unchanged,
        "moved": sum(change.beyond_noise for change in comparison.changes),
        "targets newly missed": sum(change.newly_missed for change in comparison.changes),
        "targets newly reached": sum(change.newly_reached for change in comparison.changes),
        "appeared": len(comparison.appeared),
        "went away": len(comparison.gone),
    }
    say(", ".join(f"{count} {what}" for what, count in counts.items()))
    worse = len(comparison.worse)
    say(f"{worse} got worse" if worse else "nothing got worse")


def _moved(changes: Iterable[Change]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from bench.findings import interval_text, value_text

    table = Table(title="what moved", title_justify="left")
    for heading, justify in (("group", "left"), ("what", "left"), ("committed", "right"), ("fresh", "right")):
        table.add_column(heading, justify=justify, overflow="fold")
    table.add_column("", justify="left", no_wrap=True)
    colours = {"better": "green", "worse": "red", "moved": "yellow"}
    for change in changes:
        sides = (f"{value_text(side)}\n{interval_text(side)}".rstrip() for side in (change.before, change.now))
        said = [f"[{colours[change.verdict]}]{change.verdict}[/]"] if change.beyond_noise else []
        said += [f"[red]misses {escape(change.now.target)}[/]"] if change.newly_missed else []
        said += [f"[green]reaches {escape(change.now.target)}[/]"] if change.newly_reached else []
        table.add_row(*map(escape, (change.now.group, change.now.name, *sides)), "\n".join(said))
    return table


def _listed(title: str, findings: Iterable[Finding]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from bench.findings import value_text

    table = Table(title=title, title_justify="left")
    for heading in ("group", "what", "value", "target"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "value" else "left")
    for finding in findings:
        missed = " (missed)" if finding.reached is False else ""
        cells = (finding.group, finding.name, value_text(finding), f"{finding.target}{missed}")
        table.add_row(*map(escape, cells))
    return table


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to less than 1, got {text!r}")
    return share


COMMAND = Command("check", "Compare a fresh run with a committed one: what moved beyond the noise.", add_arguments, run)
