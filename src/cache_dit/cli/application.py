"""Finds the subcommands, reads the arguments, runs one."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from cache_dit import __version__
from cache_dit.cli import commands
from cache_dit.cli.arguments import Command, Parser, UsageError
from cache_dit.errors import CacheDitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cache-dit``.

    Args:
        arguments: what was typed after the program's name; that of this process when None.

    Returns:
        The exit status: 0, or 1 where a command failed. Bad arguments end the program with status 2.
    """
    return run_one("cache-dit", "Faster inference for Diffusion Transformers.", all_commands(), arguments)


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
        command.add_arguments(parsers[command.name])
    if typed and typed[0] in by_name and by_name[typed[0]].passes_on:
        chosen = argparse.Namespace(command=typed[0], rest=typed[1:])
    else:
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


def all_commands(package: ModuleType = commands) -> list[Command]:
    """The subcommands of a package: a new file in it is found by itself.

    Args:
        package: each of its modules has a ``COMMAND``.
    """
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    ]
    return [module.COMMAND for module in modules]
