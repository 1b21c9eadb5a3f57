"""How full and cached steps cost as tokens, depth, width and batch grow: the rows, what follows, and what is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from bench.cost.settings import options_by_name, variants_of
from bench.cost.steps import expected, line_of
from bench.measures import Subject
from bench.models import Size, drifting, make_transformer
from bench.report.parts import Part, Table
from bench.results import Results, row_of
from bench.timer import HostClock, quiet

Row = dict[str, Any]

BASE = Size(hidden=256, double=1, single=2, image_tokens=256, text_tokens=64, steps=4)
QUICK_BASE = Size(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=3)
#: Steps of the run whose first steps are measured: neighbours so much alike that a threshold is met.
LONG = 100


@dataclass(frozen=True)
class Axis:
    """What grows while the others stay: a field of the size, or with none the batch; its values, and a quick run's.

    With the double-stream blocks grow twice as many others.
    """

    unit: str
    field: str
    values: Sequence[int]
    quick: Sequence[int]


TABLE = yaml.safe_load(Path(__file__).with_name("scaling.yaml").read_text(encoding="utf-8"))
AXES = {name: Axis(**told) for name, told in TABLE["axes"].items()}
VARIANTS, SHOWN = variants_of(TABLE["settings"], options_by_name(LONG)), TABLE["shown"]


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
def run(chosen: Iterable[Point], results: Results, *, runs: int, device: torch.device, clock: HostClock) -> None:
    """Make the rows that are not there yet."""
    with quiet("cache_dit"):  # that nothing was skipped is the point of some rows
        for point in chosen:
            results.row(point.key, lambda point=point: _row(point, runs, device, clock))


def _row(point: Point, runs: int, device: torch.device, clock: HostClock) -> Row:
    """Seconds of each step, in turn: bare, with each cache, and of models without what is skipped."""
    size = point.size
    given = drifting(replace(size, steps=LONG), [1.0] * point.batch)[: size.steps]
    on = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in one.items()} for one in given]
    findings, row = expected(Subject(make_transformer(size).to(device), on, clock, runs), VARIANTS)
    at = f"{point.value} {AXES[point.axis].unit}"
    findings = [replace(one, name=f"{one.name}, {at}", group=point.axis) for one in findings]
    described = {"axis": point.axis, "value": point.value, "size": asdict(size), "batch": point.batch}
    return row_of(findings, **described, lines={one: line_of(row, one) for one in row["blocks"]}, times=row["times"])


def step_ms(row: Row, name: str) -> float:
    """The median of a model's steps without the first: that one is computed by all."""
    return 1000 * float(np.median([run[1:] for run in row["times"][name]]))


def skips(row: Row) -> bool:
    """Whether the threshold was met at every step but the first: else the times are not those of cached steps."""
    return set(row["lines"]["dynamic"][1:]) == {"C"}


# -- the page


def parts(results: Results) -> dict[str, Part]:
    """What the places of ``pages/scaling.md`` hold."""
    axes = []
    for axis, told in AXES.items():
        lines = []
        own = (row for row in results.rows.values() if row.get("axis") == axis)
        for row in sorted(own, key=lambda row: row["value"]):
            shown = (f"{step_ms(row, name):.3g}" if skips(row) or name != "dynamic" else "–" for name in SHOWN)
            lines.append((str(row["value"]), *shown))
        if lines:
            axes.append(f"### {axis.capitalize()}\n\n{Table((told.unit, *TABLE['shown'].values()), lines).markdown()}")
    older = {one.name: one.value for one in results.findings if one.group == "Python"}
    names = {"step": "Python in a computed step", "block": "Python in a block of a computed step"}
    values = {place: f"{older[name]:.3g}" if name in older else "" for place, name in names.items()}
    return {"axes": "\n".join(axes), **values}
