"""What follows from measured steps: the same findings for every model, device and contender."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bench.findings import Finding, flat, found, measured, milliseconds, pairs_of, ratio
from bench.timer import Times

Row = Mapping[str, Any]
OVERHEAD, EFFICIENCY, SKIPPED = "wrapped ÷ bare", "speed-up ÷ ideal", "skipped step ÷ what it must do"
READS, STATE = "host reads in a step", "live state"

#: A threshold that every diff is below, and yet is measured; and one that none is.
ALWAYS, NEVER = 0.99, 1e-9


def static(mask: list[int], front: int = 0) -> dict[str, Any]:
    """The options of a plan that is made in advance."""
    return {"Fn_compute_blocks": front, "steps_computation_mask": mask, "steps_computation_policy": "static"}


def threshold(value: float, front: int = 1, **more: Any) -> dict[str, Any]:
    """The options of a decision by a threshold."""
    return {"Fn_compute_blocks": front, "residual_diff_threshold": value, **more}


def half_mask(steps: int) -> list[int]:
    """Every other step, from the first on."""
    return [1 - step % 2 for step in range(steps)]


def watched(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar, where the output is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not Console().is_terminal
    return lambda numbers: track(numbers, what, transient=True, refresh_per_second=1, disable=hidden)


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without the warnings of these loggers inside, e.g. that nothing was skipped, where that is the point."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def line_of(row: Row, name: str) -> str:
    """The steps of a run: F computed in full, C cached, by the blocks that ran."""
    blocks = row["blocks"][name]
    return "".join("F" if ran == max(blocks) else "C" for ran in blocks)


def where(line: str, letter: str) -> list[int]:
    """The steps of a letter."""
    return [step for step, one in enumerate(line) if one == letter]


def seconds_of(times: Times, name: str, steps: Sequence[int] | None = None) -> list[float]:
    """A model's seconds; None: of all steps."""
    return flat(times[name] if steps is None else [[row[step] for step in steps] for row in times[name]])


def of_time(row: Row, name: str, *, target: str = "", shown: str | None = None) -> list[Finding]:
    """The findings of one cache in a row of `bench.measures.time_of`.

    Where nothing was skipped, how long a step takes with the cache on, over one without. Else the speed-up over the
    ideal one, which takes at each step just what a model takes that has only the blocks that run, and a skipped step
    over that model's.
    """
    times, blocks, line = row["times"], row["blocks"][name], line_of(row, name)
    of = f", {name}" if shown is None else shown
    if "C" not in line:
        return [ratio(f"{OVERHEAD}{of}", pairs_of(times, name, "bare"), target, steps_line=line)]
    rest = row["rest"].get(name, "bare")
    runs = []
    for bare, quick, least in zip(times["bare"], times[name], times[rest], strict=True):
        floor = sum(b if letter == "F" else r for letter, b, r in zip(line, bare, least, strict=True))
        runs.append((sum(bare), sum(quick), floor))
    taken = np.array(runs)
    shares = taken[:, 2] / taken[:, 1]
    details = {
        "measured_speedup": float(np.median(taken[:, 0] / taken[:, 1])),
        "ideal_by_blocks": max(blocks) * len(blocks) / max(1, sum(blocks)),
        "ideal_with_rest": float(np.median(taken[:, 0] / taken[:, 2])),
        **{f"{kind}_step_ms": _milliseconds(times, *one) for kind, one in _kinds(name, rest, line).items()},
        "steps_line": line,
    }
    share = measured(f"{EFFICIENCY}{of}", shares, partial(np.median, axis=-1), "×", target, **details)
    return [share, ratio(f"{SKIPPED}{of}", pairs_of(times, name, rest, where(line, "C")))]


def _kinds(name: str, rest: str, line: str) -> dict[str, tuple[str, list[int]]]:
    all_steps = list(range(len(line)))
    return {"bare": ("bare", all_steps), "rest": (rest, all_steps), "skipped": (name, where(line, "C"))}


def _milliseconds(times: Times, name: str, steps: Sequence[int]) -> float:
    return 1000 * statistics.median(seconds_of(times, name, steps))


def of_reads(row: Row, name: str, target: str = "", bare: Sequence[int] | None = None) -> Finding:
    """The most numbers of the model's that a step of a second request reads beyond the model's own reads."""
    own = bare or [0] * len(row["model_reads"])
    waits = [reads - of_model for reads, of_model in zip(row["model_reads"], own, strict=True)]
    details = {one: row[one] for one in ("model_reads", "timestep_reads", "own_reads", "first_request")}
    return found(f"{READS}{name}", max(waits), "reads", target, in_the_run=sum(waits), **details)


def of_state(row: Row, name: str, target: str = "") -> Finding:
    """What is alive between two steps, in features: a few numbers beside them count as nothing."""
    held = row["bytes"] / row["feature_bytes"]
    finding = found(f"{STATE}{name}", held, "features", target, bytes=row["bytes"])
    return finding if not target else replace(finding, reached=held <= float(target[1:]) * EQUAL)


#: How much more may be alive and count as equal.
EQUAL = 1.01


def cached_steps(row: Row, name: str, title: str, **details: Any) -> Finding:
    """The median of a cache's skipped steps."""
    line = line_of(row, name)
    return milliseconds(title, seconds_of(row["times"], name, where(line, "C")), steps_line=line, **details)
