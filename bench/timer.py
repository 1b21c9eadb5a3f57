"""The one timer, for processors and CUDA. It needs torch alone: peers are timed by it in environments of their own."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

#: Wall time is what a user waits. Processor time, with one thread, tells more on a machine that others use too.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}

#: Seconds of each model's every step in every run.
Times = dict[str, list[list[float]]]
#: What is timed: called with the number of the step.
Call = Callable[[int], Any]


class HostClock:
    """The host's clock, for a device that is the host; stamps in the order of the work, read after ``wait``."""

    def __init__(self, name: str = "wall") -> None:
        self.name = name
        self.stamp: Callable[[], Any] = CLOCKS[name]

    def seconds(self, start: Any, end: Any) -> float:
        return float(end - start)

    def wait(self) -> None:
        """Wait until the device has done its work."""


class EventClock(HostClock):
    """CUDA events on the current stream: the time between two stamps is the device's."""

    def __init__(self, device: torch.device) -> None:
        self.name, self.device, self.stamp = "events", device, self._event

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) / 1000

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_for(device: torch.device, host: str = "wall") -> HostClock:
    """Events on CUDA, elsewhere the host's clock."""
    return EventClock(device) if device.type == "cuda" else HostClock(host)


def interleaved(
    calls: Mapping[str, Call],
    steps: int,
    runs: int,
    clock: HostClock,
    *,
    warm_up: int = 1,
    idle: bool = False,
    ended: Callable[[], None] = lambda: None,
    watched: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Times:
    """Seconds of each call's every step in every run; all make a step, in random order, before any makes the next.

    The host does not wait between steps: as in a denoising loop, it may run ahead of the device.
    """
    order, names = random.Random(0), list(calls)
    times: Times = {name: [] for name in names}
    for run in watched(range(warm_up + runs)):
        marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}
        for step in range(steps):
            order.shuffle(names)
            for name in names:
                if idle:
                    clock.wait()
                start = clock.stamp()
                calls[name](step)
                marks[name].append((start, clock.stamp()))
        clock.wait()
        ended()
        if run >= warm_up:
            for name, row in marks.items():
                times[name].append([clock.seconds(*pair) for pair in row])
    return times


# -- around what is measured


def watched(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A progress bar, where the output is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not Console().is_terminal
    return lambda numbers: track(numbers, what, transient=True, refresh_per_second=1, disable=hidden)


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without a logger's warnings inside, e.g. that nothing was skipped, where that is the point."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
