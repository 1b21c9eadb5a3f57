"""A plan for people: a table and a plot of its curve."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.table import Table


def rich_table(plan: Plan) -> Table:
    """The points as a table: schedule and note, predicted and measured PSNR in dB, ideal and measured speed-up."""
    from rich.table import Table

    table = Table(title=f"{plan.scope.model_class}, {plan.steps} steps", title_justify="left")
    table.add_column("full steps", justify="right")
    table.add_column("schedule", overflow="fold")
    mean = next((f"mean of {point.measured.of}, dB" for point in plan.points if point.measured), "mean, dB")
    for column in ("predicted dB", mean, "5th percentile", "lowest", "LPIPS", "ideal ×", "measured ×"):
        table.add_column(column, justify="right")
    for point in plan.points:
        chosen = " ←" if point.full_steps == plan.chosen else ""
        measured = point.measured
        table.add_row(
            f"{point.full_steps}{chosen}",
            schedule_text(point) + (f"\nnote: {point.note}" if point.note else ""),
            _number(point.predicted, lambda one: f"{one.mean:.1f}"),
            f"{measured.mean:.1f} ({measured.low:.1f} … {measured.high:.1f})" if measured else point.told,
            _number(measured, lambda one: f"{one.p5:.1f}"),
            _number(measured, lambda one: f"{one.minimum:.1f}"),
            _number(measured, lambda one: "–" if one.lpips is None else f"{one.lpips:.4f}"),
            f"{point.ideal_speedup:.2f}",
            "–" if point.measured_speedup is None else f"{point.measured_speedup:.2f}",
        )
    return table


def schedule_text(point: PlanPoint) -> str:
    """Mask and rules of a point; a rule that several gaps in a row share stands once, with their number."""
    lines = []
    for name, schedule in point.branches.items():
        gaps = zip(schedule.full, (*schedule.full[1:], len(schedule.mask)), schedule.rules, strict=True)
        rules: list[list[str | int]] = []
        for step, following, rule in gaps:
            if following == step + 1:
                continue
            if rules and rules[-1][0] == rule.name:
                rules[-1][1] = int(rules[-1][1]) + 1
            else:
                rules.append([rule.name, 1])
        shown = ", ".join(f"{rule}" if count == 1 else f"{count} × {rule}" for rule, count in rules)
        lines.append(("" if name == "*" else f"{name}: ") + schedule.text + (f"\n{shown}" if shown else ""))
    return "\n".join(lines)


def lines(plan: Plan) -> list[str]:
    """What to know besides the table: the cost, and the plan's note."""
    cost = plan.cost
    found = []
    if "uncached_runs" in cost:
        runs = cost.get("runs", {})
        kinds = ", ".join(f"{count} {kind}" for kind, count in runs.items())
        found.append(f"cost: {cost['uncached_runs']} uncached runs' time, {cost['seconds']} s ({kinds} runs)")
    if "forecast_error_db" in cost:
        left = cost["forecast_error_db"]
        found.append(f"the forecast of {cost['objective']!r} fits best, and leaves {left} dB (rms)")
    return [*found, *([f"note: {plan.note}"] if plan.note else [])]


def save_plot(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Draw PSNR over the ideal speed-up, as SVG or PNG by the file's ending.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("a plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.add_subplot()
    known = [point for point in plan.points if point.measured is not None]
    speedups = [point.ideal_speedup for point in known]
    measured = [point.measured for point in known if point.measured is not None]
    means = [one.mean for one in measured]
    spread = [[one.mean - one.low for one in measured], [one.high - one.mean for one in measured]]
    label = f"mean of {measured[0].of}, and its interval" if measured else None
    axis.errorbar(speedups, means, yerr=spread, fmt="o-", capsize=3, label=label)
    axis.plot(speedups, [one.p5 for one in measured], "v", markersize=5, label="5th percentile of these")
    forecasts = [(point.ideal_speedup, point.predicted.mean) for point in plan.points if point.predicted is not None]
    axis.plot(*zip(*forecasts, strict=True), "x--", linewidth=1, label="predicted") if forecasts else None
    for point, mean in zip(known, means, strict=True):
        place = (point.ideal_speedup, mean)
        axis.annotate(str(point.full_steps), place, textcoords="offset points", xytext=(5, 5))
    axis.set_xlabel(f"ideal speed-up (labels: full steps of {plan.steps})")
    axis.set_ylabel("PSNR to the uncached picture, dB")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(os.fspath(path))


def _number(quality: Quality | None, shown: Callable[[Quality], str]) -> str:
    return "–" if quality is None else shown(quality)
