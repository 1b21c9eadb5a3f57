"""Draws the same pictures under several configurations, in turn, and measures each."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cache_dit.api import disable_cache, enable_cache
from cache_dit.demo.configurations import Configuration
from cache_dit.demo.fidelity import Pixels, psnr
from cache_dit.summary import CacheStats, summary

logger = logging.getLogger(__name__)


@dataclass
class Drawing:
    """One prompt under one configuration.

    Args:
        prompt: what was drawn.
        configuration: how.
        pixels: the picture, (height, width, 3) in 0 … 1.
        stats: what the cache did; for the uncached picture: every step computed.
        seconds: the time of each run, prompt to pixels.
        psnr: in dB, against the uncached picture of the prompt.
        speedup: the uncached picture's median time over this one's.
    """

    prompt: str
    configuration: Configuration
    pixels: Pixels
    stats: CacheStats
    seconds: list[float] = field(default_factory=list)
    psnr: float = float("inf")
    speedup: float = 1.0

    @property
    def median_seconds(self) -> float:
        """The median over all runs."""
        return statistics.median(self.seconds)

    @property
    def computed_steps(self) -> int:
        """Steps that were computed, over all branches of guidance."""
        return sum(line.count("F") for line in self.stats.steps_line.values())

    @property
    def steps(self) -> int:
        """Steps that would have been computed without a cache, over all branches of guidance."""
        return sum(len(line) - line.count("-") for line in self.stats.steps_line.values())


@dataclass(frozen=True)
class Settings:
    """What is drawn, and how often.

    Args:
        prompts: what to draw.
        steps: denoising steps of a picture.
        seed: of the noise that each picture begins with.
        repeats: how often each picture is drawn under each configuration.
    """

    prompts: tuple[str, ...]
    steps: int = 28
    seed: int = 0
    repeats: int = 3


@dataclass(frozen=True)
class Comparison:
    """All drawings: a row for each prompt, in it one for each configuration, the uncached one first."""

    settings: Settings
    configurations: tuple[Configuration, ...]
    rows: tuple[tuple[Drawing, ...], ...]

    def column(self, index: int) -> list[Drawing]:
        """All prompts under one configuration."""
        return [row[index] for row in self.rows]


def compare(
    pipe: Any,
    settings: Settings,
    configurations: Sequence[Configuration],
    note: Callable[[str, Configuration], None] = lambda prompt, configuration: None,
) -> Comparison:
    """Draw every prompt under every configuration.

    The runs of one prompt take turns, in an order that rotates, so that a machine that gets slower or faster meanwhile
    does so for all of them.

    Args:
        pipe: a pipeline, called with ``prompt``, ``num_inference_steps``, ``generator`` and ``output_type``.
        settings: what to draw.
        configurations: the uncached one, then others.
        note: called before each run, the two for warming up included.
    """
    runs: dict[tuple[int, int], Drawing] = {}
    order = list(range(len(configurations)))
    for index in (0, len(order) - 1):
        note("warm-up", configurations[index])
        _draw(pipe, settings.prompts[0], settings, configurations[index])
    for repeat in range(settings.repeats):
        for number, prompt in enumerate(settings.prompts):
            turn = (repeat + number) % len(order)
            for index in order[turn:] + order[:turn]:
                note(prompt, configurations[index])
                drawn = _draw(pipe, prompt, settings, configurations[index])
                _enter(runs, (number, index), drawn)
    rows = tuple(tuple(runs[number, index] for index in order) for number in range(len(settings.prompts)))
    for row in rows:
        _compare_with_first(row)
    return Comparison(settings, tuple(configurations), rows)


def _draw(pipe: Any, prompt: str, settings: Settings, configuration: Configuration) -> Drawing:
    """One run, timed; the cache is put on before and its statistics read after the clock runs."""
    disable_cache(pipe)
    if configuration.cache is not None:
        enable_cache(pipe, configuration.cache, configuration.calibrator)
    generator = torch.Generator().manual_seed(settings.seed)
    _wait_for_device(pipe)
    start = time.perf_counter()
    output = pipe(prompt, num_inference_steps=settings.steps, generator=generator, output_type="np")
    _wait_for_device(pipe)
    seconds = time.perf_counter() - start
    stats = summary(pipe.transformer, logging=False)[0]
    disable_cache(pipe)
    return Drawing(prompt, configuration, output.images[0], stats, [seconds])


def _wait_for_device(pipe: Any) -> None:
    if torch.device(pipe.device).type == "cuda":
        torch.cuda.synchronize(pipe.device)


def _enter(runs: dict[tuple[int, int], Drawing], key: tuple[int, int], drawn: Drawing) -> None:
    """Add a run to those before it, which should have given the same picture."""
    first = runs.setdefault(key, drawn)
    if first is drawn:
        return
    first.seconds += drawn.seconds
    if not np.array_equal(first.pixels, drawn.pixels):
        logger.warning("%r under %r came out differently in another run", drawn.prompt, drawn.configuration.name)


def _compare_with_first(row: Sequence[Drawing]) -> None:
    """Fidelity and speed-up against the uncached picture of the prompt, whose block count the others know."""
    uncached = row[0]
    for drawing in row[1:]:
        drawing.psnr = psnr(uncached.pixels, drawing.pixels)
        drawing.speedup = uncached.median_seconds / drawing.median_seconds
        lines = {branch: "F" * len(line) for branch, line in drawing.stats.steps_line.items()}
        blocks = drawing.stats.possible_blocks
        uncached.stats = CacheStats("no cache", steps_line=lines, executed_blocks=blocks, possible_blocks=blocks)
