"""Timing where a device works beside the host: by events in its stream, or by the host's clock where it is the host."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import track

from bench.peers.cost import CLOCKS, Times


class Clock(Protocol):
    """Stamps in the order of a device's work; what lies between two of them is read after ``wait``."""

    name: str

    def stamp(self) -> Any:
        """A mark after all work that was given to the device so far."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks."""

    def wait(self) -> None:
        """Wait until the device has done its work."""


class HostClock:
    """The host's clock, for a device that is the host.

    Args:
        name: ``"wall"``, or ``"processor"`` for the time that this process computed.
    """

    def __init__(self, name: str = "wall") -> None:
        self.name = name
        self._now = CLOCKS[name]

    def stamp(self) -> float:
        return self._now()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        pass


class EventClock:
    """CUDA events on the current stream."""

    name = "events"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_for(device: torch.device, host: str = "wall") -> Clock:
    """Events on CUDA, elsewhere the host's clock."""
    return EventClock(device) if device.type == "cuda" else HostClock(host)


def interleaved(
    calls: Mapping[str, Callable[[int], Any]], steps: int, runs: int, clock: Clock, *, warm_up: int = 1, what: str = ""
) -> Times:
    """Seconds of each call's every step in every run; all make a step, in random order, before any makes the next.

    The host does not wait between steps: as in a denoising loop, it may run ahead of the device.

    Args:
        calls: what to call, with the number of the step.
        steps: steps of a run.
        runs: how many are kept.
        clock: reads the times.
        warm_up: runs before these.
        what: names the progress bar.
    """
    order, names = random.Random(0), list(calls)
    times: Times = {name: [] for name in names}
    hidden = not Console().is_terminal
    for run in track(range(warm_up + runs), what, transient=True, refresh_per_second=1, disable=hidden):
        marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}
        for step in range(steps):
            order.shuffle(names)
            for name in names:
                start = clock.stamp()
                calls[name](step)
                marks[name].append((start, clock.stamp()))
        clock.wait()
        if run >= warm_up:
            for name in names:
                times[name].append([clock.seconds(*pair) for pair in marks[name]])
    return times


def alone(call: Callable[[int], Any], steps: int, clock: Clock) -> list[float]:
    """Wall seconds of each step where nothing runs ahead: from an idle device until it is idle again."""
    seconds = []
    for step in range(steps):
        clock.wait()
        start = time.perf_counter()
        call(step)
        clock.wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def host(call: Callable[[int], Any], steps: int, clock: Clock) -> list[float]:
    """Wall seconds until each call returns: what the host needs to give the device its work."""
    seconds = []
    for step in range(steps):
        clock.wait()
        start = time.perf_counter()
        call(step)
        seconds.append(time.perf_counter() - start)
    clock.wait()
    return seconds
