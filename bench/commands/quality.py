"""``cache-dit bench quality``: how close the pictures are at which speed-up, by every method, ours and others."""

from __future__ import annotations

import argparse
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from bench.arguments import COMMITTED, add_common, opened
from cache_dit.cli.arguments import Command, UsageError, whole_number

if TYPE_CHECKING:
    from bench.quality.method import Method

#: What a run of nothing but the mechanism makes do with.
_QUICK = {"pictures": 2, "seeds": 1, "search_captions": 1, "candidates": 2, "steps": 6, "budgets": (1.5, 2.0)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``cache-dit bench quality``."""
    add_common(parser, out=COMMITTED / "quality.json")
    number = whole_number(1)
    parser.add_argument(
        "--only", nargs="+", metavar="METHOD", help="some methods; * stands for anything, e.g. 'even mask*'"
    )
    parser.add_argument("--list", action="store_true", help="print the methods' names and do nothing")
    parser.add_argument("--pictures", type=number, metavar="N", help="held-out pictures (default 64)")
    parser.add_argument("--seeds", type=number, metavar="N", help="noises of each caption, among them (default 1)")
    parser.add_argument("--search-captions", type=whole_number(1, 8), metavar="N", help="of the search (default 6)")
    parser.add_argument("--candidates", type=number, metavar="N", help="of a method, at most (default 28)")
    parser.add_argument("--processes", type=whole_number(1, 256), default=1, help="that draw at a time (default 1)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, save."""
    from rich.console import Console

    from bench.findings import table
    from bench.quality.findings import findings
    from bench.quality.jobs import Setup
    from bench.quality.masks import BUDGETS, CANDIDATES
    from bench.quality.methods import methods
    from bench.quality.pictures import held_out_pictures, search_pictures
    from bench.quality.run import Plan
    from bench.quality.run import run as measure

    console = Console()
    if arguments.list:
        for name, method in methods().items():
            console.print(f"{method.owner:<9} {name}", highlight=False, markup=False, soft_wrap=True)
        return 0
    default = {
        "pictures": 64,
        "seeds": 1,
        "search_captions": 6,
        "candidates": CANDIDATES,
        "steps": 28,
        "budgets": BUDGETS,
    }
    asked = _QUICK if arguments.quick else default
    settings = {name: getattr(arguments, name, None) or value for name, value in asked.items()}
    chosen = _some(methods(), arguments.only, quick=arguments.quick)
    try:
        held_out = held_out_pictures(settings["pictures"], settings["seeds"])
    except ValueError as error:
        raise UsageError(str(error)) from error
    results = opened(arguments, "quality", settings)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            methods=chosen,
            setup=Setup(settings["steps"], arguments.clock, arguments.threads, Path(folder)),
            budgets=tuple(settings["budgets"]),
            search=search_pictures(settings["search_captions"]),
            held_out=held_out,
            candidates=settings["candidates"],
            processes=arguments.processes,
            timed_pictures=1 if arguments.quick else 3,
            timed_runs=1 if arguments.quick else 3,
        )
        measure(results, plan)
    found = findings(results.rows, results.settings)
    console.print(table(found, f"Quality: {settings['pictures']} pictures of {settings['steps']} steps"))
    results.finish(found)
    return 0


def _some(known: dict[str, Method], patterns: list[str] | None, *, quick: bool) -> dict[str, Method]:
    """The methods that were asked for; a quick run without names leaves out those that need another environment."""
    if patterns is None:
        return {name: method for name, method in known.items() if not quick or method.environment == "here"}
    found = {
        name: method
        for name, method in known.items()
        if any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)
    }
    for pattern in patterns:
        if not any(fnmatchcase(name.lower(), pattern.lower()) for name in found):
            raise UsageError(f"no method is called {pattern!r}; --list shows all")
    return found


COMMAND = Command(
    "quality", "how close pictures are to the uncached ones at which speed-up, beside all peers", add_arguments, run
)
