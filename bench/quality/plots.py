"""Closeness over speed-up: ours, the others, and fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bench.quality.choose import OWNERS, Entry, best_of, best_of_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.report.section import Drawn

#: What is drawn of an entry.
Value = Callable[[Entry], float]


def psnr_figure(listed: list[Entry]) -> Iterator[Drawn]:
    """Mean and 5th percentile of PSNR over the speed-up by work."""
    values: list[tuple[str, Value]] = [
        ("PSNR, mean (dB)", lambda entry: entry.psnr.mean),
        ("PSNR, 5th percentile (dB)", lambda entry: entry.psnr.p5),
    ]
    alt = "Two plots of PSNR over speed-up: our best settings, each of our other rules, every peer, and fewer steps"
    yield _drawn("bench_quality_psnr", alt, listed, values)


def lpips_figure(listed: list[Entry]) -> Iterator[Drawn]:
    """Mean LPIPS over the speed-up by work, where it was computed; lower is closer."""
    listed = list(filter(has_lpips, listed))
    if listed:
        alt = "A plot of LPIPS over speed-up: our best settings, each of our other rules, every peer, and fewer steps"
        yield _drawn("bench_quality_lpips", alt, listed, [("LPIPS (AlexNet), mean", lambda one: lpips_of(one) or 0.0)])


def has_lpips(entry: Entry) -> bool:
    """Whether it could be computed."""
    return lpips_of(entry) is not None


def lpips_of(entry: Entry) -> float | None:
    """The mean over the held-out pictures, or None."""
    samples = (entry.result or {}).get("lpips") or [None]
    return None if None in samples else sum(samples) / len(samples)


def _drawn(name: str, alt: str, listed: list[Entry], values: list[tuple[str, Value]]) -> Drawn:
    import matplotlib.pyplot as plt

    import bench.report.style  # noqa: F401 - sets matplotlib up
    from bench.report.section import Drawn

    figure, axes = plt.subplots(1, len(values), figsize=(5.0 * len(values) + 2.4, 4.2), squeeze=False)
    for axis, (label, value) in zip(axes[0], values, strict=True):
        _curves(axis, listed, value)
        axis.set_xlabel("speed-up by work")
        axis.set_ylabel(label)
        axis.set_xscale("log")
        ticks = sorted({entry.budget for entry in listed})
        axis.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axis.minorticks_off()
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0)
    figure.tight_layout()
    return Drawn(name, alt, figure)


def _curves(axis: Axes, listed: list[Entry], value: Value) -> None:
    from bench.report.style import COMPUTED, SERIES, SOFT

    budgets = sorted({entry.budget for entry in listed})
    best = [found for budget in budgets if (found := best_of(listed, budget, "ours"))]
    listed = best_of_families(listed)
    families = {owner: sorted({one.family for one in listed if one.owner == owner}) for owner in OWNERS}
    label = "ours, other settings"
    for family in families["ours"]:
        _line(axis, _of(listed, family), value, label=label, color=SOFT, alpha=0.4, linewidth=1.0, marker=".", zorder=1)
        label = "_"
    for number, family in enumerate(families["peer"]):
        style = {"color": SERIES[1 + number % (len(SERIES) - 2)], "linestyle": "-" if number < 8 else ":"}
        _line(axis, _of(listed, family), value, label=family, marker="o", markersize=4, linewidth=1.2, **style)
    for family in families["baseline"]:
        _line(axis, _of(listed, family), value, label=family, color=SOFT, linestyle="--", marker="s", markersize=4)
    _line(axis, best, value, label="ours, best", color=COMPUTED, linewidth=2.4, marker="o", zorder=5)


def _of(listed: list[Entry], family: str) -> list[Entry]:
    return [entry for entry in listed if entry.family == family]


def _line(axis: Axes, line: list[Entry], value: Value, **style: Any) -> None:
    line = sorted(line, key=_speedup)
    axis.plot([_speedup(entry) for entry in line], [value(entry) for entry in line], **style)


def _speedup(entry: Entry) -> float:
    return float((entry.result or {})["speedup"])
