"""``cache-dit bench report``: one page of all results of a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.arguments import BUILT, COMMITTED, need_matplotlib, short
from cache_dit.cli.arguments import Command, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    out = BUILT / "report.html"
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=COMMITTED,
        metavar="FOLDER",
        help=f"where the results files lie (default {short(COMMITTED)})",
    )
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help=f"the page (default {short(out)})")
    parser.add_argument("--open", action="store_true", help="open the page in the browser when it is ready")


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    need_matplotlib()
    from rich.console import Console

    from bench.report.files import read_folder
    from bench.report.page import save_report

    if not arguments.folder.is_dir():
        raise UsageError(f"argument FOLDER: {arguments.folder} is no folder: pass one with results files")
    console = Console()
    results, unread = read_folder(arguments.folder)
    for line in unread:
        console.print(f"left out: {line}", highlight=False, markup=False, soft_wrap=True)
    path = arguments.out.resolve()
    save_report(path, results, unread=unread)
    console.print(f"the report: {path}", highlight=False, markup=False, soft_wrap=True)
    if arguments.open:
        import webbrowser

        webbrowser.open(path.as_uri())
    return 0


COMMAND = Command("report", "Make one page of all results of a folder.", add_arguments, run)
