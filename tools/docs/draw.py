"""Draws figures from measured data, as SVG."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bench.report import style
from bench.report.style import CACHED, COMPUTED, GRID, INK, SOFT
from tools.docs.studies import Study

Data = dict[str, Any]

_SPEEDUP = "ideal speed-up"


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that is the same for the same data."""
    for axis in figure.axes:
        if axis.get_xlabel() == _SPEEDUP:
            axis.margins(x=0.12)
            axis.set_xlim(left=1)
    style.save(figure, path)


def settings(path: Path, data: Data, baseline: Data, *, study: Study) -> None:
    """Values and steps at the left, closeness over speed-up at the right."""
    cases = data["cases"]
    rows = 0.32 * len(cases)
    measured = bool(study.value)
    heights = [2.4, rows] if measured else [rows]
    figure, left, closeness = _page(0.9 + max(sum(heights), 2.6), baseline)
    axes = left.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    if measured:
        _values(axes[0], cases[study.traced], study)
    _lines(axes[-1], [(case["label"], case["guided"]["line"]) for case in cases])
    for scale, axis in closeness.items():
        found = [case[scale] for case in cases]
        axis.vlines(
            [one["speedup"] for one in found],
            [one["worst_psnr"] for one in found],
            [one["psnr"] for one in found],
            color=COMPUTED,
            linewidth=1,
        )
        axis.plot([one["speedup"] for one in found], [one["psnr"] for one in found], "o", color=COMPUTED, markersize=5)
        for case, one in zip(cases, found, strict=True):
            place = (one["speedup"], one["psnr"])
            axis.annotate(case["label"], place, textcoords="offset points", xytext=(5, 3), color=INK, fontsize=8)
    save(figure, path)


def predictor(path: Path, data: Data, baseline: Data, name: str) -> None:
    """The errors of single predictions, and closeness over speed-up, beside reuse and Taylor of order 1."""
    found = data["predictors"]
    shown = [key for key in ("reuse", "taylor") if key != name and key in found] + [name]
    colours = {"reuse": "#c9a0a0", "taylor": "#9ec3d9"} | {name: COMPUTED}
    figure, left, closeness = _page(3.9, baseline)
    axes = left.subplots(2, 1, sharex=True, height_ratios=[2.6, 0.5])
    for key in shown:
        errors = {int(step): error for step, error in found[key]["errors"].items()}
        for index, run in enumerate(_runs(errors)):
            label = found[key]["label"] if index == 0 else None
            axes[0].plot(run, [errors[s] for s in run], "o-", color=colours[key], markersize=4, label=label)
    axes[0].set_ylabel("error of the prediction")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(loc="upper center")
    _lines(axes[1], [("", "".join("F" if bit else "C" for bit in data["mask"]))])
    for key in shown:
        _curve(closeness, found[key], colours[key])
    next(iter(closeness.values())).legend(loc="upper right")
    save(figure, path)


def comparison(path: Path, data: Data, baseline: Data) -> None:
    """All predictors over the same masks."""
    figure = plt.figure(figsize=(10, 4), layout="constrained")
    closeness = _closeness(figure, baseline)
    for number, found in enumerate(data["predictors"].values()):
        _curve(closeness, found, plt.get_cmap("tab10")(number))
    list(closeness.values())[1].legend(loc="upper right")
    save(figure, path)


def _page(height: float, baseline: Data) -> tuple[Figure, Any, dict[str, Axes]]:
    """A figure: room at the left, and at the right the axes of closeness over speed-up."""
    figure = plt.figure(figsize=(12, height), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1])
    return figure, left, _closeness(right, baseline)


def _closeness(figure: Any, baseline: Data) -> dict[str, Axes]:
    """Axes of closeness over speed-up, with guidance and without, and what fewer steps give."""
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, points, title in zip(axes, baseline["fewer_steps"].values(), ("with guidance", "without"), strict=True):
        pairs = [point["speedup"] for point in points], [point["psnr"] for point in points]
        axis.plot(*pairs, "s-", color=SOFT, markersize=3, label="fewer steps")
        axis.set_title(title, fontsize=10, color=INK)
        axis.set(xlabel=_SPEEDUP)
    axes[0].set_ylabel("PSNR, dB")
    return dict(zip(baseline["fewer_steps"], axes, strict=True))


def _curve(closeness: dict[str, Axes], found: Data, colour: Any) -> None:
    for scale, axis in closeness.items():
        points = [case[scale]["speedup"] for case in found["cases"]], [case[scale]["psnr"] for case in found["cases"]]
        axis.plot(*points, "o-", color=colour, markersize=5, label=found["label"])


def change(path: Path, baseline: Data) -> None:
    """How the blocks' residual moves."""
    changes = baseline["residual_changes"]
    figure = plt.figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(changes) + 1), [100 * value for value in changes], "o-", color=COMPUTED, markersize=4)
    axis.set(xlabel="step", ylabel="change, %")
    axis.set_ylim(bottom=0)
    save(figure, path)


def chain(path: Path, blocks: int = 12, front: int = 1, back: int = 1, line: str = "") -> None:
    """A computed and a cached step as chains of blocks, and the steps of a run."""
    figure = plt.figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set(xlim=(-3.2, 18.6), ylim=(-0.4, 6.3))
    for y, title, computed in ((4.4, "a computed step", True), (2.3, "a cached step", False)):
        axis.text(-0.5, y + 0.4, title, ha="right", va="center", color=INK)
        for index in range(blocks):
            runs = computed or index < front or index >= blocks - back
            style = {"facecolor": COMPUTED if runs else "white", "edgecolor": COMPUTED if runs else GRID}
            axis.add_patch(Rectangle((index * 1.15, y), 0.85, 0.8, linewidth=1.2, **style))
    for start, count, name in ((0, front, "F"), (front, blocks - front - back, "M"), (blocks - back, back, "B")):
        middle = (start + count / 2) * 1.15 - 0.15
        axis.text(middle, 5.6, name, ha="center", va="center", color=INK, fontsize=13, fontweight="bold")
    anchor, end = front * 1.15 - 0.15, (blocks - back) * 1.15 - 0.15
    axis.text(14.1, 4.8, "what M adds is kept", va="center", color=COMPUTED)
    axis.annotate(
        "", (end, 2.7), (anchor, 2.7), arrowprops={"arrowstyle": "->", "color": CACHED, "linewidth": 2}, zorder=3
    )
    axis.text(14.1, 2.7, "what M would add is predicted", va="center", color="#a8761a")
    axis.text(-0.5, 0.5, "the steps of a picture", ha="right", va="center", color=INK)
    _cells(axis, line, left=0, width=blocks * 1.15 / max(len(line), 1), bottom=0.0, height=1.0)
    axis.text(14.1, 0.5, f"{line.count('F')} computed, {line.count('C')} cached", va="center", color=INK)
    save(figure, path)


def _values(axis: Axes, case: Data, study: Study) -> None:
    found = case["guided"]
    diffs = {int(step): diff for step, diff in found["diffs"].items()}
    axis.plot(list(diffs), list(diffs.values()), color=SOFT, linewidth=0.8, zorder=1)
    for letter, colour, name in (("F", COMPUTED, "computed"), ("C", CACHED, "cached"), ("P", CACHED, "pruned")):
        steps = [step for step in diffs if found["line"][step] == letter]
        if steps:
            axis.scatter(steps, [diffs[step] for step in steps], color=colour, s=28, label=name, zorder=2)
    if study.compares:
        axis.axhline(case["threshold"], color=INK, linewidth=1, linestyle="--", label=case["label"])
    axis.set_ylabel(study.value, fontsize=9)
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left")


def _lines(axis: Axes, lines: list[tuple[str, str]]) -> None:
    """Rows of cells: tall and blue computed, low and amber cached."""
    for row, (_, line) in enumerate(lines):
        _cells(axis, line, left=-0.5, width=1, bottom=-row, height=0.7)
    axis.set_yticks([0.35 - row for row in range(len(lines))], [label for label, _ in lines])
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.set_ylim(0.1 - len(lines) + 0.7, 0.9)
    axis.set_xlim(-0.8, len(lines[0][1]) - 0.2)
    axis.set_xlabel("step")
    axis.grid(False)
    axis.spines["left"].set_visible(False)


def _cells(axis: Axes, line: str, *, left: float, width: float, bottom: float, height: float) -> None:
    for step, letter in enumerate(line):
        share, colour = {"F": (1.0, COMPUTED), "P": (0.6, CACHED), "C": (0.4, CACHED)}.get(letter, (0.1, GRID))
        axis.add_patch(
            Rectangle((left + step * width, bottom), 0.85 * width, share * height, color=colour, linewidth=0)
        )


def _runs(steps: Iterable[int]) -> list[list[int]]:
    """Runs of consecutive numbers."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs
