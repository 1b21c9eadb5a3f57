"""Full and cached steps over what grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.report.style import CACHED, COMPUTED, SERIES, SOFT
from bench.scaling.findings import full_fit, skips, step_seconds
from bench.scaling.points import UNITS

Row = dict[str, Any]


def axis_figure(axis: str, rows: Sequence[Row]) -> Figure:
    """Medians of each kind of step, and the fit of a full one."""
    figure = Figure(figsize=(7.6, 3.6), layout="constrained")
    axes = figure.subplots()
    xs = [row["value"] for row in rows]
    kinds = (
        ("bare", "full step", COMPUTED, rows),
        ("static", "cached, static Fn=0", CACHED, rows),
        ("dynamic", "cached, dynamic Fn=1", SERIES[2], [row for row in rows if skips(row)]),
        ("FirstBlockCache", "cached, FirstBlockCache", SERIES[3], rows),
    )
    for name, label, colour, own in kinds:
        seconds = [1000 * step_seconds(row, name) for row in own]
        axes.plot(
            [row["value"] for row in own], seconds, "o", color=colour, label=label, linestyle="-" * (name != "bare")
        )
    fit, dense = full_fit(axis, rows), np.geomspace(min(xs), max(xs), 100)
    curve = np.array([1000 * fit(x) for x in dense])
    axes.plot(dense[curve > 0], curve[curve > 0], color=SOFT, linestyle="--", label="fit of a full step")
    axes.set(xscale="log", yscale="log", xlabel=UNITS[axis], ylabel="milliseconds a step")
    axes.set_xticks(xs, [str(x) for x in xs])
    axes.minorticks_off()
    figure.legend(loc="outside right upper")
    return figure
