"""What is found: rows of one table and of one file, and the three kinds of row that most groups are made of."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

import cache_dit
from bench.common import Size, Times, flat, interval, median_ms, median_ratio, ratio_of_medians
from cache_dit.platforms.machine import Machine

_DIGITS = {"×": 4, "features": 2, "µs": 1, "ms": 2}


@dataclass
class Finding:
    """One row of the table."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    reached: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)
    group: str = ""


def at_most(name: str, value: float, unit: str, most: float | None, **details: Any) -> Finding:
    """A number, and whether it is as small as it should be."""
    target, reached = ("", None) if most is None else (f"≤ {most:g}", value <= most)
    return Finding(name, value, unit, target=target, reached=reached, details=details)


def ratio(name: str, pairs: Sequence[tuple[float, float]], *, most: float | None = None, **details: Any) -> Finding:
    """How many times as long the first of each pair takes as the second."""
    finding = at_most(name, median_ratio(pairs), "×", most, **details)
    finding.low, finding.high = interval(pairs, median_ratio)
    finding.details |= {
        "ratio_of_medians": ratio_of_medians(pairs),
        "median_ms": [median_ms(seconds) for seconds in zip(*pairs, strict=True)],
    }
    return finding


def speedups(name: str, times: Times, wrapped: Any, *, least: float | None = None, **details: Any) -> list[Finding]:
    """The measured speed-up over the ideal one by executed blocks, and over one that knows the rest.

    Ideal by blocks: block calls without a cache over block calls with it. It takes all blocks as equal and the rest of
    the transformer as free. The other ideal counts what a step that skips blocks must still do at what it costs in a
    model that has nothing else: the embedders, the output layer, and the blocks that are never skipped.

    Args:
        name: what was run.
        times: of ``"bare"``, ``"cached"``, and ``"rest"``, the model that has only what is never skipped.
        wrapped: the cached transformer.
        least: the share of the first ideal that it should reach.
    """
    stats = cache_dit.summary(wrapped, logging=False)[0]
    line = next(iter(stats.steps_line.values()))
    computed = [letter == "F" for letter in line]
    runs = []
    for bare, quick, rest in zip(times["bare"], times["cached"], times["rest"], strict=True):
        floor = sum(b if full else r for full, b, r in zip(computed, bare, rest, strict=True))
        runs.append((sum(bare), sum(quick), floor))

    def share(samples: Sequence[Any]) -> float:
        return statistics.median(bare / quick for bare, quick, _ in samples) / stats.ideal_speedup

    def share_of_all(samples: Sequence[Any]) -> float:
        return statistics.median(floor / quick for _, quick, floor in samples)

    def step_ms(full: bool) -> float:
        return median_ms(t for row in times["cached"] for f, t in zip(computed, row, strict=True) if f is full)

    measured = statistics.median(bare / quick for bare, quick, _ in runs)
    with_rest = statistics.median(bare / floor for bare, _, floor in runs)
    by_blocks = Finding(
        f"speed-up {measured:.3f} of ideal {stats.ideal_speedup:.3f} by blocks, {name}",
        share(runs),
        "×",
        *interval(runs, share),
        details={
            "measured_speedup": measured,
            "ideal_by_blocks": stats.ideal_speedup,
            "ideal_with_rest": with_rest,
            "bare_step_ms": median_ms(flat(times["bare"])),
            "rest_step_ms": median_ms(flat(times["rest"])),
            "skipped_step_ms": step_ms(False),
            "computed_step_ms": step_ms(True),
            "steps_line": line,
            **details,
        },
    )
    if least is not None:
        by_blocks.target, by_blocks.reached = f"≥ {least:g}", by_blocks.value >= least
    title = f"speed-up {measured:.3f} of ideal {with_rest:.3f} with the rest, {name}"
    return [by_blocks, Finding(title, share_of_all(runs), "×", *interval(runs, share_of_all))]


def live_features(model: Any, size: Size) -> float:
    """The most that the latest request kept, in features, by the cache's own count."""
    return cache_dit.summary(model, logging=False)[0].peak_bytes / size.feature_bytes


def table(findings: Sequence[Finding], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("what")
    for heading in ("value", "95 % interval", "target", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    group = None
    for finding in findings:
        if finding.group != group:
            group = finding.group
            shown.add_section()
            shown.add_row(f"[bold]{group}[/]")
        digits = _DIGITS.get(finding.unit, 0)
        between = "" if finding.low is None else f"{finding.low:.{digits}f} – {finding.high:.{digits}f}"
        mark = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[finding.reached]
        shown.add_row(finding.name, f"{finding.value:.{digits}f} {finding.unit}", between, finding.target, mark)
    return shown


def save(path: Path, findings: Sequence[Finding], machine: Machine, size: Size, seconds: Mapping[str, float]) -> None:
    """Write everything as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {
        "machine": machine.as_dict(),
        "model": asdict(size),
        "seconds": {group: round(taken, 1) for group, taken in seconds.items()},
        "findings": [asdict(finding) for finding in findings],
    }
    text = json.dumps(saved, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
