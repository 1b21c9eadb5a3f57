"""What subcommands are made of, and the types of their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn


class UsageError(Exception):
    """An argument cannot work, as only the command itself can tell; ends the program like argparse's own errors."""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Args:
        name: as it is typed.
        help: one line for ``cache-dit --help``.
        add_arguments: declares its arguments on its parser.
        run: does it, and gives the exit status.
        passes_on: whether it has subcommands of its own. Then it declares no arguments, and ``run`` finds all that was
            typed after its name in ``arguments.rest``.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    passes_on: bool = False


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that says what is wrong in one line, without a page of usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with status 2."""
        line = " ".join(message.split())
        print(f"{self.prog}: error: {line} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def whole_number(minimum: int, maximum: int = 2**63 - 1) -> Callable[[str], int]:
    """A type for ``add_argument``: a whole number of at least ``minimum``, and of at most ``maximum``."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        if number > maximum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {maximum}, got {text!r}")
        return number

    return convert


def text(value: str) -> str:
    """A type for ``add_argument``: text that is not empty."""
    if not value.strip():
        raise argparse.ArgumentTypeError("expected some text, got none")
    return value.strip()
