"""Finds the subcommands, reads the arguments, runs one."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

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
    parser = Parser(prog="cache-dit", description="Faster inference for Diffusion Transformers.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"cache-dit {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found = {command.name: command for command in all_commands()}
    parsers = {}
    for command in found.values():
        parsers[command.name] = subparsers.add_parser(
            command.name, help=command.help, description=command.help, allow_abbrev=False
        )
        command.add_arguments(parsers[command.name])
    chosen = parser.parse_args(arguments)
    try:
        return found[chosen.command].run(chosen)
    except UsageError as error:
        parsers[chosen.command].error(str(error))
    except CacheDitError as error:
        print(f"cache-dit {chosen.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"cache-dit {chosen.command}: interrupted", file=sys.stderr)
        return 130


def all_commands() -> list[Command]:
    """The subcommands: a new file in ``commands`` is found by itself."""
    modules = [
        importlib.import_module(f"{commands.__name__}.{found.name}")
        for found in pkgutil.iter_modules(commands.__path__)
    ]
    return [module.COMMAND for module in modules]
