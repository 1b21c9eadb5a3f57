"""``cache-dit models``: the model families that can be cached."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 200
"""Characters per line where the output is no terminal, so that no name is cut."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``cache-dit models``."""
    parser.add_argument("--json", action="store_true", help="print the table as data, one object per record")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from cache_dit.models import table

    if arguments.json:
        import json

        print(json.dumps(table(), indent=2))
        return 0
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(_rich_table(table()))
    return 0


def _rich_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    shown = Table()
    for heading in ("Family", "Transformers", "Blocks", "Pattern", "CFG", "Cache", "Presets"):
        shown.add_column(heading, overflow="fold")
    for row in rows:
        shown.add_row(
            "\n".join([row["family"], *row["aliases"]]),
            "\n".join(row["transformers"]),
            "\n".join(row["blocks"]),
            "\n".join(pattern.removeprefix("Pattern_") for pattern in row["patterns"]),
            "2 calls" if row["separate_cfg"] else "",
            "yes" if row["cache"] else "no",
            "\n".join(row["presets"]),
        )
    return shown
