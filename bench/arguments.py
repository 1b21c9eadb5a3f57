"""The arguments that every bench takes, and the results file that they mean."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.results import Results
from cache_dit.cli.arguments import whole_number
from cache_dit.errors import MissingDependencyError

ROOT = Path(__file__).parent.parent
#: Results that are committed, and those of quick runs with all reports, which are not.
COMMITTED, BUILT = ROOT / "bench" / "results", ROOT / "build" / "bench"


def add_common(parser: argparse.ArgumentParser, *, out: Path) -> None:
    """Declare what every bench takes.

    Args:
        parser: the bench's.
        out: the committed results file, e.g. ``COMMITTED / "quality.json"``; a quick run saves under the same name in
            ``build/bench``.
    """
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it works, says nothing")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"results file (default {short(out)}, --quick: {short(_quick(out))})"
    )
    parser.add_argument("--fresh", action="store_true", help="throw away what a run before left in the results file")
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), default=1, help="processor threads (default %(default)s)"
    )
    parser.add_argument(
        "--clock", choices=("wall", "processor"), default="processor", help="what time is (default %(default)s)"
    )
    parser.set_defaults(committed_out=out)


def out_of(arguments: argparse.Namespace) -> Path:
    """The results file that was asked for."""
    if arguments.out is not None:
        return Path(arguments.out)
    return _quick(arguments.committed_out) if arguments.quick else Path(arguments.committed_out)


def opened(
    arguments: argparse.Namespace,
    bench: str,
    settings: Mapping[str, Any],
    *,
    device: str = "cpu",
    versions: Mapping[str, str] | None = None,
) -> Results:
    """The results to add rows to; sets torch's threads, and says how many rows are there already.

    Args:
        arguments: with those of `add_common`.
        bench: the bench's name.
        settings: plain data, of which every change makes other measurements; ``quick``, ``threads`` and ``clock`` are
            added.
        device: where the models run.
        versions: of further packages, e.g. peers.
    """
    import torch
    from rich.console import Console

    torch.set_num_threads(arguments.threads)
    common = {"quick": arguments.quick, "threads": arguments.threads, "clock": arguments.clock}
    path = out_of(arguments)
    found = Results.open(path, bench, {**common, **settings}, fresh=arguments.fresh, device=device, versions=versions)
    if found.rows:
        console = Console()
        note = f"going on with {short(path)}; rows so far: {len(found.rows)} (--fresh measures them anew)"
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    return found


def need_matplotlib() -> None:
    """Raise unless figures can be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("a report needs matplotlib: pip install 'cache-dit[bench]'")


def _quick(out: Path) -> Path:
    return BUILT / out.name


def short(path: Path) -> Path:
    """A path as it is typed in the repository's folder."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
