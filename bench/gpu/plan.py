"""The rows in the order of their importance, and a run that makes as many as its minutes allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu import compiled, kernels, loops, steps
from bench.gpu.loops import first_line
from bench.gpu.models import FLUX, KLEIN, QWEN, WAN, Spec
from bench.gpu.stage import Stage
from bench.results import Results

Row = dict[str, Any]

#: The key of the row that tells what did not fit.
LEFT_OUT = "not run"

#: What may go wrong with one row without the others being touched: memory, the compiler, and diffusers with either.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError, OSError)


@dataclass(frozen=True)
class Item:
    """A row to make.

    Args:
        key: of the row.
        seconds: what it takes on an H200, with room; it is not begun with less left.
        make: makes it.
    """

    key: str
    seconds: float
    make: Callable[[Stage], Row]


def items(loop_lengths: Iterable[int]) -> list[Item]:
    """All rows: the claims about FLUX.1 first, then the other models, then what compiles for long."""
    short, *longer = loop_lengths
    return [
        *_first(FLUX, made=25, steps=40, reads=15, memory=15),
        _loops(FLUX, short, 60),
        _compiled(KLEIN, "regional", 40),
        Item("sum of 1", 10, lambda stage: kernels.weighted_sum(stage, 1)),
        Item("sum of 3", 10, lambda stage: kernels.weighted_sum(stage, 3)),
        Item("pinned", 10, kernels.pinned),
        Item(f"{FLUX.name}: peers", 40, lambda stage: loops.peers(stage, FLUX)),
        _compiled(FLUX, "regional", 60),
        *_first(KLEIN, made=15, steps=15, reads=10, memory=10),
        _loops(KLEIN, short, 25),
        _compiled(KLEIN, "whole", 90),
        _compiled(KLEIN, "graphs", 90),
        *_first(WAN, made=15, steps=20, reads=10, memory=10),
        _loops(WAN, short, 30),
        *_first(QWEN, made=30, steps=45, reads=15, memory=15),
        _loops(QWEN, short, 70),
        *(_loops(FLUX, length, 100) for length in longer),
        *(_compiled(spec, "regional", 60) for spec in (WAN, QWEN)),
        *(_compiled(FLUX, mode, 200) for mode in ("whole", "graphs")),
        *(_loops(spec, length, 60) for length in longer for spec in (KLEIN, WAN)),
        *(_loops(QWEN, length, 120) for length in longer),
    ]


def _first(spec: Spec, **seconds: float) -> list[Item]:
    makers = {"made": steps.made, "steps": steps.step_times, "reads": steps.host_reads, "memory": steps.memory}
    return [
        Item(f"{spec.name}: {name}", seconds[name], lambda stage, make=make: make(stage, spec))
        for name, make in makers.items()
    ]


def _loops(spec: Spec, length: int, seconds: float) -> Item:
    return Item(f"{spec.name}: loop of {length}", seconds, lambda stage: loops.loops(stage, spec, length))


def _compiled(spec: Spec, mode: str, seconds: float) -> Item:
    return Item(f"{spec.name}: {mode}", seconds, lambda stage: compiled.compiled(stage, spec, mode))


@torch.no_grad()
def run(
    stage: Stage,
    results: Results,
    minutes: float,
    *,
    only: Iterable[str] = (),
    say: Callable[[str], None] = print,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Make the rows that are not there yet, or failed, until the minutes are over.

    Args:
        stage: where.
        results: gets each row as soon as it is measured; at the end, what did not fit.
        minutes: a row is not begun where what it takes would end after these.
        only: parts of keys; where there are some, rows of other keys are left out without a word.
        say: told of each row.
        now: the time in seconds.
    """
    end, left, wanted = now() + 60 * minutes, [], tuple(only)
    for item in items(stage.size.loops):
        if wanted and not any(part in item.key for part in wanted):
            continue
        if item.key in results and "error" not in results.rows[item.key]:
            continue
        if now() + (0 if stage.size.tiny else item.seconds) > end:
            left.append(item.key)
            say(f"not run: {item.key} (about {item.seconds:.0f} s, {max(0, end - now()):.0f} s left)")
            continue
        start = now()
        row = _made(item, stage)
        results.add(item.key, {**row, "seconds_taken": now() - start})
        say(f"{item.key}: {now() - start:.1f} s{', ' + row['error'] if 'error' in row else ''}")
    stage.clear()
    left += results.rows.get(LEFT_OUT, {"keys": []})["keys"]  # of a run before that made other rows
    results.add(LEFT_OUT, {"keys": [key for key in dict.fromkeys(left) if key not in results]})


def _made(item: Item, stage: Stage) -> Row:
    try:
        row = item.make(stage)
        stage.clock.wait()  # what fails on the device fails here
    except FAILURES as error:
        row = {"error": first_line(error)}
    if "error" in row:
        stage.clear()  # outside of the handler: the error holds on to the memory that it was short of
    else:
        stage.tidy()
    return row
