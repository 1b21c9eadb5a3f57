"""Finds the benches, runs one, and writes the report of what it measured."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bench import commands
from bench.arguments import BUILT, COMMITTED, need_matplotlib, out_of
from cache_dit.cli.application import all_commands, run_one
from cache_dit.cli.arguments import Command
from cache_dit.errors import MissingDependencyError


def main(arguments: Sequence[str] | None = None, *, prog: str = "cache-dit bench") -> int:
    """Run a bench.

    Args:
        arguments: what was typed after the program's name; that of this process when None.
        prog: the program's name.

    Returns:
        The exit status, as that of `cache_dit.cli.main`.
    """
    found = [with_report(command) for command in all_commands(commands)]
    return run_one(prog, "What the cache costs and gives, on this machine.", found, arguments)


def with_report(command: Command) -> Command:
    """A bench that writes its report when it is through, if it takes the arguments that every bench takes."""

    def run(arguments: argparse.Namespace) -> int:
        status = command.run(arguments)
        measured = hasattr(arguments, "committed_out") and not getattr(arguments, "list", False)
        if measured and out_of(arguments).is_file():
            _report(out_of(arguments))
        return status

    return dataclasses.replace(command, run=run)


def report_path(results: Path) -> Path:
    """Where the report of a results file goes: beside it, but never among the committed ones."""
    folder = BUILT if results.parent.resolve() == COMMITTED else results.parent
    return folder / f"{results.stem}.html"


def _report(results: Path) -> None:
    """Write the report of one file; without matplotlib, say so: what was measured is saved."""
    from rich.console import Console

    try:
        need_matplotlib()
    except MissingDependencyError as error:
        line = f"no report: {error}; then: cache-dit bench report"
    else:
        from bench.report.page import save_report
        from bench.results import Results

        path = report_path(results)
        save_report(path, [Results.load(results)], whole=False)
        line = f"the report: {path}"
    Console().print(line, highlight=False, markup=False, soft_wrap=True)
