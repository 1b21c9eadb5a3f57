"""How full and cached steps cost as tokens, depth, width and batch grow: the rows, what follows, and what is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.cost.ours import empty_steps, python_seconds
from bench.cost.steps import ALWAYS, NEVER, line_of, quiet, seconds_of, static, threshold, watched
from bench.findings import Finding, found, measured, pairs_of, ratio_of_medians
from bench.measures import Subject, by_name, time_of
from bench.models import Size, drifting, make_transformer
from bench.report.parts import Chart, Line, Panel, Part, Table
from bench.results import Results
from bench.timer import HostClock

Row = dict[str, Any]

BASE = Size(hidden=256, double=1, single=2, image_tokens=256, text_tokens=64, steps=4)
QUICK_BASE = Size(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=3)
#: Blocks of the models that have nothing but the wrapper, and steps of the run whose first steps are measured:
#: neighbours so much alike that a threshold is met.
FEW, MANY, LONG = 3, 51, 100
#: Blocks of FLUX.2-klein-4B and of FLUX.1.
DEPTHS = (25, 57)


@dataclass(frozen=True)
class Axis:
    """What grows while the others stay.

    Args:
        unit: that it is told in.
        field: of the size; "": the batch. Of the depth it is the double-stream blocks, with twice as many others.
        values, quick: those that are measured.
    """

    unit: str
    field: str
    values: tuple[int, ...]
    quick: tuple[int, ...]


AXES = {
    "tokens": Axis("tokens", "image_tokens", (64, 144, 256, 576, 1024), (16, 32, 64)),
    "depth": Axis("blocks", "double", (1, 2, 4, 8), (1, 2)),
    "width": Axis("channels", "hidden", (64, 128, 256, 512, 768), (64, 128, 192)),
    "batch": Axis("samples", "", (1, 2, 4, 8), (1, 2)),
}
#: By name: whose cache, with what options. Those that end in "full" never skip, the others from the second step on.
CACHES = {
    "full": ("cache_dit", threshold(NEVER)),
    "static": ("cache_dit", static([1] + [0] * (LONG - 1))),
    "dynamic": ("cache_dit", threshold(ALWAYS)),
    "FirstBlockCache full": ("FirstBlockCacheConfig", {"threshold": NEVER}),
    "FirstBlockCache": ("FirstBlockCacheConfig", {"threshold": 1e9}),
}


@dataclass(frozen=True)
class Point:
    """One model and its input, on its axis."""

    axis: str
    size: Size
    batch: int = 1

    @property
    def value(self) -> int:
        """Where on its axis it is: tokens of text too, and all blocks."""
        tokens = self.size.image_tokens + self.size.text_tokens
        return {"tokens": tokens, "depth": self.size.blocks, "width": self.size.hidden, "batch": self.batch}[self.axis]

    @property
    def key(self) -> str:
        return f"{self.axis}: {self.value}"


def points(*, quick: bool = False) -> list[Point]:
    """All that are measured."""
    base, chosen = QUICK_BASE if quick else BASE, []
    for name, axis in AXES.items():
        for value in axis.quick if quick else axis.values:
            grown = {axis.field: value} if axis.field else {}
            grown |= {"single": 2 * value} if axis.field == "double" else {}
            chosen.append(Point(name, replace(base, **grown), 1 if axis.field else value))
    return chosen


@torch.no_grad()
def run(
    chosen: Iterable[Point], results: Results, *, runs: int, calls: int, device: torch.device, clock: HostClock
) -> None:
    """Make the rows that are not there yet."""
    with quiet("cache_dit"):  # that nothing was skipped is the point of some rows
        results.row("python", lambda: _python_row(calls, device, clock))
        for point in chosen:
            results.row(point.key, lambda point=point: _row(point, runs, device, clock))


def _python_row(calls: int, device: torch.device, clock: HostClock) -> Row:
    """Seconds of each step of models whose blocks do nothing, bare and with a plan that computes all, by depth."""
    state, masks = torch.randn(1, 4, 8, device=device), {"wrapped": [1] * calls + [0]}
    return {"times": {str(blocks): empty_steps(blocks, state, calls, clock, masks, {}) for blocks in (FEW, MANY)}}


def _row(point: Point, runs: int, device: torch.device, clock: HostClock) -> Row:
    """Seconds of each step, in turn: bare, with each cache, and of models without what is skipped."""
    size = point.size
    given = drifting(replace(size, steps=LONG), [1.0] * point.batch)[: size.steps]
    on = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in one.items()} for one in given]
    subject = Subject(make_transformer(size).to(device), on, clock, runs, point.batch * size.feature_bytes)
    caches = {name: by_name(*one) for name, one in CACHES.items()}
    row = time_of(subject, caches, watched=watched(point.key))
    lines = {name: line_of(row, name) for name in ("full", "static", "dynamic")}
    described = {"axis": point.axis, "value": point.value, "size": asdict(size), "blocks": size.blocks}
    held = {"batch": point.batch, "feature_bytes": subject.feature_bytes}
    return {**described, **held, "lines": lines, "times": row["times"]}


# -- what follows


def by_axis(rows: Mapping[str, Row]) -> dict[str, list[Row]]:
    """The rows of each axis, by size."""
    own = {axis: [row for row in rows.values() if row.get("axis") == axis] for axis in AXES}
    return {axis: sorted(some, key=lambda row: row["value"]) for axis, some in own.items() if some}


def later(row: Row) -> list[int]:
    """The steps but the first: that one is computed by all."""
    return list(range(1, len(row["times"]["bare"][0])))


def step_seconds(row: Row, name: str) -> float:
    """The median of a model's steps without the first."""
    return float(np.median(seconds_of(row["times"], name, later(row))))


def skips(row: Row) -> bool:
    """Whether the threshold was met at every step but the first: else the times are not those of cached steps."""
    return set(row["lines"]["dynamic"][1:]) == {"C"}


def wrapper_seconds(row: Row) -> tuple[float, float]:
    """The wrapper's Python in a computed step, and in each of its blocks."""
    return python_seconds({int(blocks): times for blocks, times in row["times"].items()}, "wrapped")


#: What is told at each size: the finding's name, which models' steps it compares, and whether only where steps skipped.
_RATIOS = (
    ("wrapped ÷ bare", "full", "bare", False),
    ("FirstBlockCache ÷ bare, nothing cached", "FirstBlockCache full", "bare", False),
    ("cached step ÷ full step, static, Fn=0", "static", "bare", False),
    ("cached step ÷ full step, dynamic, Fn=1", "dynamic", "bare", True),
    ("cached step, dynamic, Fn=1 ÷ FirstBlockCache", "dynamic", "FirstBlockCache", True),
)


def findings_of(rows: Mapping[str, Row]) -> list[Finding]:
    """All findings, of whatever rows are there."""
    told = []
    for axis, own in by_axis(rows).items():
        unit = AXES[axis].unit
        for row in own:
            at = f"{row['value']} {unit}"
            told.append(found(f"full step, bare, {at}", 1000 * step_seconds(row, "bare"), "ms"))
            for name, first, second, skipping in _RATIOS:
                if skips(row) or not skipping:
                    pairs = pairs_of(row["times"], first, second, later(row))
                    told.append(measured(f"{name}, {at}", pairs, ratio_of_medians))
        told = [one if one.group else replace(one, group=axis) for one in told]
    if "python" in rows:
        step, block = wrapper_seconds(rows["python"])
        python = [found("Python in a computed step", 1e6 * step, "µs")]
        python.append(found("Python in a block of a computed step", 1e6 * block, "µs"))
        for blocks in DEPTHS:
            name = f"full step of which the wrapper's Python is 1 %, {blocks} blocks"
            python.append(found(name, 1000 * (step + block * blocks) / 0.01, "ms"))
        told += [replace(one, group="Python") for one in python]
    return told


# -- the page

#: Models as the page calls them.
_SHOWN = {
    "bare": "full step",
    "static": "cached, static Fn=0",
    "dynamic": "cached, dynamic Fn=1",
    "FirstBlockCache": "FirstBlockCache",
}


def parts(results: Results) -> dict[str, Part]:
    """What the places of ``pages/scaling.md`` hold."""
    rows, charts, axes = results.rows, [], []
    python = wrapper_seconds(rows["python"]) if "python" in rows else None
    for axis, own in by_axis(rows).items():
        lines = []
        for row in own:
            shown = [f"{1000 * step_seconds(row, n):.3g}" if skips(row) or n != "dynamic" else "–" for n in _SHOWN]
            share = 100 * (python[0] + python[1] * row["blocks"]) / step_seconds(row, "bare") if python else None
            lines.append((str(row["value"]), *shown, "–" if share is None else f"{share:.3g} %"))
        heads = (AXES[axis].unit, *_SHOWN.values(), "Python's share of a full step")
        axes.append(f"### {axis.capitalize()}\n\n{Table(heads, lines).markdown()}")
        if len(own) > 1:
            charts.append(_chart(axis, own))
            axes.append(f"{{figure: {charts[-1].name}}}\n")
    values = {one.name: one.value for one in results.findings or findings_of(rows)}
    names = {"step": "Python in a computed step", "block": "Python in a block of a computed step"}
    told = {place: f"{values[name]:.3g}" if name in values else "" for place, name in names.items()}
    return {"axes": "\n".join(axes), "charts": charts, **told}


def _chart(axis: str, rows: Sequence[Row]) -> Chart:
    """Medians of each kind of step."""
    from bench.report.style import CACHED, COMPUTED, SERIES

    lines = []
    for (name, label), colour in zip(_SHOWN.items(), (COMPUTED, CACHED, SERIES[2], SERIES[3]), strict=True):
        own = [row for row in rows if name != "dynamic" or skips(row)]
        style = {"color": colour, "marker": "o", "linestyle": "-"}
        lines.append(Line([row["value"] for row in own], [1000 * step_seconds(row, name) for row in own], label, style))
    ticks = {row["value"]: str(row["value"]) for row in rows}
    panel = Panel(AXES[axis].unit, "milliseconds a step", lines=lines, log="xy", ticks=ticks)
    alt = f"Seconds of full and cached steps over {AXES[axis].unit}, on logarithmic scales"
    return Chart(f"bench_scaling_{axis}", alt, [panel], 5.2, 3.6)
