"""The subcommands: reads the arguments, runs one. Its module is imported then, and not before."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from cache_dit.cli.arguments import Command, Parser, UsageError
from cache_dit.errors import CacheDitError
from cache_dit.version import __version__


def _command(name: str, text: str, *, passes_on: bool = False) -> Command:
    """The subcommand whose ``add_arguments`` and ``run`` are in the module of its name in ``commands``."""

    def module() -> Any:
        return importlib.import_module(f"cache_dit.cli.commands.{name}")

    return Command(
        name,
        text,
        add_arguments=lambda parser: module().add_arguments(parser),
        run=lambda arguments: module().run(arguments),
        passes_on=passes_on,
    )


COMMANDS = (
    _command("bench", "Measure quality, speed and memory, and write a report.", passes_on=True),
    _command("demo", "Draw pictures without and with the cache, and compare them."),
    _command("env", "Show what a bug report needs: versions, devices, settings."),
    _command("metrics", "Measure how far pictures and videos are from others."),
    _command("models", "Show the model families that can be cached."),
    _command("plan", "Find the schedule that gives a quality or a speed-up."),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cache-dit``.

    Args:
        arguments: what was typed after the program's name; that of this process when None.

    Returns:
        The exit status: 0, or 1 where a command failed. Bad arguments end the program with status 2.
    """
    return run_one("cache-dit", "Faster inference for Diffusion Transformers.", COMMANDS, arguments)


def metrics_main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cache-dit-metrics-cli``, which is ``cache-dit metrics`` under the name that it had.

    Args:
        arguments: what was typed after the program's name; that of this process when None.

    Returns:
        The exit status, as that of `main`.
    """
    return main(["metrics", *(sys.argv[1:] if arguments is None else arguments)])


def run_one(prog: str, description: str, found: Sequence[Command], arguments: Sequence[str] | None = None) -> int:
    """Run one of some subcommands, as `main` does.

    Args:
        prog: what is typed before a subcommand's name.
        description: one line for ``--help``.
        found: the subcommands.
        arguments: what was typed after ``prog``; that of this process when None.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cache-dit {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    by_name = {command.name: command for command in found}
    parsers = {}
    for command in found:
        parsers[command.name] = subparsers.add_parser(
            command.name, help=command.help, description=command.help, allow_abbrev=False
        )
    named = by_name.get(typed[0]) if typed else None
    if named is not None and named.passes_on:
        chosen = argparse.Namespace(command=named.name, rest=typed[1:])
    else:
        if named is not None:
            named.add_arguments(parsers[named.name])
        chosen = parser.parse_args(typed)
    try:
        return by_name[chosen.command].run(chosen)
    except UsageError as error:
        parsers[chosen.command].error(str(error))
    except CacheDitError as error:
        print(f"{prog} {chosen.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog} {chosen.command}: interrupted", file=sys.stderr)
        return 130
