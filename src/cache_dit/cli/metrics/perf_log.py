"""Numbers of time and work, out of the log of the runs that drew the pictures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from cache_dit.errors import ConfigError

HEADINGS = {"time": "Latency(s)", "tflops": "TFLOPs"}
"""How columns are called; other tags are called as they are."""

Perf = dict[str, dict[str, float]]
"""For each configuration the number of each tag."""


def read_perf_log(path: Path, tags: Iterable[str], names: Iterable[str]) -> Perf:
    """The numbers that a log has for configurations: of a line that has a configuration's name, each ``tag: number``.

    A name is found as a whole: ``fast`` is not found in ``fast_2``. Where several lines name a configuration, the mean
    is taken; where none does, or none has the tag, there is no entry.

    Args:
        path: the log.
        tags: what stands in front of the numbers, case does not matter; ``:`` and ``=`` may stand between.
        names: the configurations.

    Raises:
        ConfigError: the log cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the log {path}: {error.strerror or error}") from error
    patterns = {
        tag: re.compile(rf"(?<!\w){re.escape(tag)}\s*[:=]\s*([-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?)", re.IGNORECASE)
        for tag in tags
    }
    found: Perf = {}
    for name in names:
        whole = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-]|\.\d)")
        about = [line for line in lines if whole.search(line)]
        values = {
            tag: [float(m[1]) for line in about for m in pattern.finditer(line)] for tag, pattern in patterns.items()
        }
        found[name] = {tag: statistics.fmean(numbers) for tag, numbers in values.items() if numbers}
    return found


def speedups(perf: Perf) -> Perf:
    """Of each tag, its largest number ÷ a configuration's own; none where that is 0."""
    tags = {tag for numbers in perf.values() for tag in numbers}
    largest = {tag: max(numbers[tag] for numbers in perf.values() if tag in numbers) for tag in tags}
    return {name: {tag: largest[tag] / n for tag, n in numbers.items() if n > 0} for name, numbers in perf.items()}


def columns(perf: Perf, tags: Sequence[str], *, speedup: bool) -> dict[str, dict[str, float]]:
    """What is added to each configuration's results: a column for each tag that any has, and for its speed-up.

    Args:
        perf: the numbers of the log.
        tags: the order of the columns.
        speedup: whether speed-ups are columns too; where several tags were found, each names its own.
    """
    present = [tag for tag in dict.fromkeys(tags) if any(tag in numbers for numbers in perf.values())]
    faster = speedups(perf) if speedup else {}
    table: dict[str, dict[str, float]] = {}
    for name, numbers in perf.items():
        table[name] = {HEADINGS.get(tag, tag): numbers[tag] for tag in present if tag in numbers}
        for tag in present:
            if tag in faster.get(name, {}):
                heading = "SpeedUp" if len(present) == 1 else f"SpeedUp {HEADINGS.get(tag, tag)}"
                table[name][heading] = faster[name][tag]
    return table
