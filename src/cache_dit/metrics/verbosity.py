"""What the metrics tell while they run: a progress bar on a terminal, and on request a line for each pair."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

from cache_dit.config.base import check_flag

logger = logging.getLogger("cache_dit.metrics")

_T = TypeVar("_T")


class _Verbosity:
    verbose = False


def set_metrics_verbose(verbose: bool) -> None:
    """Log the value of each pair and of each frame, or (the default) not. It holds for the whole process.

    Args:
        verbose: whether to. The lines go to the logger ``cache_dit.metrics``, at the level INFO.

    Raises:
        ConfigError: it is neither True nor False.
    """
    check_flag("verbose", verbose)
    _Verbosity.verbose = verbose


def get_metrics_verbose() -> bool:
    """Whether the value of each pair is logged."""
    return _Verbosity.verbose


def progress(items: Iterable[_T], *, name: str, total: int | None = None) -> Iterator[_T]:
    """The items, under a bar on stderr where that is a terminal. The bar goes when they are done.

    Args:
        items: what is worked through.
        name: what the bar is called.
        total: how many items there are; None where nobody knows.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if total == 1 or not console.is_terminal:
        yield from items
        return
    parts = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=name)
