"""``cache-dit bench overhead``: what the cache costs: time when nothing is cached, cached steps, live state, waits."""

from __future__ import annotations

import argparse

from bench.arguments import COMMITTED, add_common, opened
from cache_dit.cli.arguments import Command, UsageError, whole_number

#: Characters per line where the output is no terminal.
_WIDTH = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``cache-dit bench overhead``."""
    add_common(parser, out=COMMITTED / "overhead.json")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="some groups; --list shows all")
    parser.add_argument("--list", action="store_true", help="print the groups' names and do nothing")
    parser.add_argument("--runs", type=whole_number(1), help="runs of all steps of our own groups")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, save."""
    from dataclasses import replace

    from rich.console import Console

    from bench.findings import table
    from bench.overhead.common import QUICK, Size
    from bench.overhead.run import NAMES, findings_of, measure, settings_of

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    if arguments.list:
        console.print("\n".join(NAMES))
        return 0
    for name in arguments.only or ():
        if name not in NAMES:
            raise UsageError(f"no group is called {name!r}: it is one of {', '.join(NAMES)}")
    size = QUICK if arguments.quick else Size()
    size = replace(size, clock=arguments.clock, runs=arguments.runs or size.runs)
    groups = [name for name in NAMES if name in (arguments.only or NAMES)]
    results = opened(arguments, "overhead", settings_of(size))
    missing = measure(results, size, groups, threads=arguments.threads, shown=console.is_terminal)
    found = findings_of(results.rows)
    tokens = f"{size.image_tokens} image and {size.text_tokens} text tokens"
    model = f"FLUX, hidden {size.hidden}, {size.double} + {size.single} blocks, {tokens}"
    console.print(table(found, f"{model}; {size.runs} runs of {size.steps} steps, {size.clock} time"))
    results.finish(found)
    for version, why in missing.items():
        line = f"cache-dit {version} was not measured: {why.splitlines()[0]}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


COMMAND = Command(
    "overhead", "what the cache costs: time, live state, host reads, graph breaks, beside all peers", add_arguments, run
)
