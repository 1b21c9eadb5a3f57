"""The figures of a comparison: over all prompts, as text for people, and as data."""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cache_dit.demo.compare import Comparison, Drawing
from cache_dit.demo.fidelity import AMPLIFICATION
from cache_dit.report.machine import Machine


@dataclass(frozen=True)
class ColumnFigures:
    """One configuration over all prompts.

    Args:
        name: the configuration.
        computed_steps: how many steps were computed, the fewest and the most over the prompts.
        steps: how many steps there were.
        executed_blocks, possible_blocks: sums over the prompts.
        median_seconds: the median over the prompts' median times.
        speedup, ideal_speedup: geometric means over the prompts.
        psnr: the median over the prompts in dB; infinite for equal pictures.
        worst_psnr: the smallest of them.
    """

    name: str
    computed_steps: tuple[int, int]
    steps: int
    executed_blocks: int
    possible_blocks: int
    median_seconds: float
    speedup: float
    ideal_speedup: float
    psnr: float
    worst_psnr: float


def column_figures(comparison: Comparison) -> list[ColumnFigures]:
    """The figures of each configuration, in their order."""
    return [
        _figures(configuration.name, comparison.column(index))
        for index, configuration in enumerate(comparison.configurations)
    ]


def _figures(name: str, drawings: list[Drawing]) -> ColumnFigures:
    computed = [drawing.computed_steps for drawing in drawings]
    return ColumnFigures(
        name=name,
        computed_steps=(min(computed), max(computed)),
        steps=drawings[0].steps,
        executed_blocks=sum(drawing.stats.executed_blocks for drawing in drawings),
        possible_blocks=sum(drawing.stats.possible_blocks for drawing in drawings),
        median_seconds=statistics.median(drawing.median_seconds for drawing in drawings),
        speedup=statistics.geometric_mean(drawing.speedup for drawing in drawings),
        ideal_speedup=statistics.geometric_mean(drawing.stats.ideal_speedup for drawing in drawings),
        psnr=statistics.median(drawing.psnr for drawing in drawings),
        worst_psnr=min(drawing.psnr for drawing in drawings),
    )


def decibels(psnr: float) -> str:
    """A PSNR for people."""
    return "equal" if math.isinf(psnr) else f"{psnr:.1f} dB"


def times(factor: float) -> str:
    """A speed-up for people."""
    return f"{factor:.2f}×"


def steps_text(figures: ColumnFigures) -> str:
    """The computed steps of all steps for people: one number, or the fewest and the most."""
    fewest, most = figures.computed_steps
    return f"{fewest if fewest == most else f'{fewest}–{most}'} of {figures.steps}"


def rich_table(comparison: Comparison) -> Table:
    """The figures of each configuration as a table for a terminal."""
    settings = comparison.settings
    prompts = f"{len(settings.prompts)} prompt{'s' if len(settings.prompts) != 1 else ''}"
    runs = f"{settings.repeats} run{'s' if settings.repeats != 1 else ''} each"
    title = f"{prompts}, {settings.steps} steps, {runs}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("configuration", no_wrap=True)
    for heading in ("steps", "blocks", "time", "speed-up", "ideal", "PSNR", "worst"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, row in enumerate(column_figures(comparison)):
        fidelity = ("", "") if index == 0 else (decibels(row.psnr), decibels(row.worst_psnr))
        table.add_row(
            row.name,
            steps_text(row),
            f"{row.executed_blocks / row.possible_blocks:.0%}",
            f"{row.median_seconds:.2f} s",
            times(row.speedup),
            times(row.ideal_speedup),
            *fidelity,
        )
    return table


def unskipped(comparison: Comparison) -> list[str]:
    """Where nothing was skipped, one sentence for each configuration: why not."""
    reasons = {
        drawing.configuration.name: drawing.stats.reason
        for row in comparison.rows
        for drawing in row
        if drawing.stats.reason
    }
    return [f"{name}: nothing was skipped for some prompt: {reason}" for name, reason in reasons.items()]


def save_results(path: Path, comparison: Comparison, machine: Machine) -> None:
    """Write everything that was measured as JSON; a PSNR of equal pictures is null there."""
    results = {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.as_dict(),
        "settings": {**asdict(comparison.settings), "difference_amplification": AMPLIFICATION},
        "configurations": [configuration.as_dict() for configuration in comparison.configurations],
        "summary": [_finite(asdict(figures).items()) for figures in column_figures(comparison)],
        "pictures": [_finite(_picture(drawing).items()) for row in comparison.rows for drawing in row],
    }
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _picture(drawing: Drawing) -> dict[str, Any]:
    stats = drawing.stats
    return {
        "prompt": drawing.prompt,
        "configuration": drawing.configuration.name,
        "steps_line": stats.steps_line,
        "computed_steps": drawing.computed_steps,
        "steps": drawing.steps,
        "executed_blocks": stats.executed_blocks,
        "possible_blocks": stats.possible_blocks,
        "residual_diffs": stats.residual_diffs,
        "live_bytes": stats.peak_bytes,
        "seconds": [round(seconds, 4) for seconds in drawing.seconds],
        "median_seconds": drawing.median_seconds,
        "speedup": drawing.speedup,
        "ideal_speedup": stats.ideal_speedup,
        "psnr": drawing.psnr,
        "why_nothing_was_cached": stats.reason,
    }


def _finite(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isinf(value) else value for name, value in items}
