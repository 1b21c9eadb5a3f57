"""The figures: overhead and live state by contender."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from bench.findings import Finding
from bench.report.section import Drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: One panel: a bar for each contender; its value and the ends of its interval.
Bars = Mapping[str, tuple[float, float, float]]


def overhead_figure(by_model: Mapping[str, Mapping[str, Finding]]) -> Iterator[Drawn]:
    """What a step costs more when nothing is cached, a panel for each size of model."""
    if by_model:
        panels = {
            f"{model} model": {who: tuple(100 * (value - 1) for value in _ends(one)) for who, one in findings.items()}
            for model, findings in by_model.items()
        }
        alt = "Bars: how many percent longer a step takes with each cache on when nothing is cached, by model size"
        yield _panels("bench_overhead_time", alt, panels, "% longer than without a cache", "{:.2f}")


def state_figure(by_algorithm: Mapping[str, Mapping[str, Finding]]) -> Iterator[Drawn]:
    """What is alive between two steps, a panel for each algorithm."""
    if by_algorithm:
        panels = {what: {who: _ends(one) for who, one in some.items()} for what, some in by_algorithm.items()}
        alt = "Bars: features that each cache keeps alive between two steps, by algorithm"
        yield _panels("bench_overhead_state", alt, panels, "features", "{:.1f}")


def _ends(finding: Finding) -> tuple[float, float, float]:
    value = finding.value
    return value, value if finding.low is None else finding.low, value if finding.high is None else finding.high


def _panels(name: str, alt: str, panels: Mapping[str, Bars], unit: str, shown: str) -> Drawn:
    import matplotlib.pyplot as plt

    import bench.report.style  # noqa: F401 - the look

    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    longest = max(len(bars) for bars in panels.values())
    size = (4.6 * columns, lines * (0.9 + 0.28 * longest))
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    axes = [one for line in grid for one in line]
    for one, (title, bars) in zip(axes, panels.items(), strict=False):
        _bars(one, bars, shown)
        one.set_title(title, fontsize=10, loc="left")
        one.set_xlabel(unit)
    for one in axes[len(panels) :]:
        one.set_visible(False)
    return Drawn(name, alt, figure)


def _bars(axes: Axes, bars: Bars, shown: str) -> None:
    from bench.report.style import COMPUTED, INK, SOFT

    values = [value for value, _, _ in bars.values()]
    sides = [[value - low for value, low, _ in bars.values()], [high - value for value, _, high in bars.values()]]
    colours = [COMPUTED if name.startswith("ours") else SOFT for name in bars]
    drawn = axes.barh(list(bars), values, color=colours, height=0.62, xerr=sides, error_kw={"lw": 0.8, "ecolor": INK})
    axes.bar_label(drawn, [shown.format(value) for value in values], padding=4, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.grid(axis="y", visible=False)
