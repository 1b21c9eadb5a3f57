"""Measured over ideal speed-up of whole loops."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from bench.report.style import SERIES, SOFT

Row = dict[str, Any]


def loops_figure(rows: Mapping[str, Row], name: str) -> Figure:
    """A point for each mask and length of the loop; on the dashed line nothing is lost."""
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axes = figure.subplots()
    most = 1.0
    chosen = {key: row for key, row in rows.items() if key.startswith(f"{name}: loop") and "error" not in row}
    for colour, row in zip(SERIES, chosen.values(), strict=False):
        seconds = {run: statistics.median(taken) for run, taken in row["seconds"].items()}
        ideal = [row["told"][mask]["ideal_by_blocks"] for mask in row["computed"]]
        measured = [seconds["bare"] / seconds[mask] for mask in row["computed"]]
        axes.plot(ideal, measured, "o", color=colour, label=f"{row['steps']} steps")
        for mask, x, y in zip(row["computed"], ideal, measured, strict=True):
            axes.annotate(mask, (x, y), textcoords="offset points", xytext=(6, -8), fontsize=8, color=SOFT)
        most = max(most, *ideal, *measured)
    axes.plot([1, most], [1, most], color=SOFT, linestyle="--", label="ideal")
    axes.set(xlabel="ideal speed-up, by executed blocks", ylabel="measured speed-up")
    axes.legend()
    return figure
