"""What ``cache-dit metrics`` found: as lines, as a Markdown table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache_dit.cli.metrics.arguments import MEASURES, Comparison
from cache_dit.metrics.averages import Mean


@dataclass(frozen=True)
class Result:
    """One metric of one comparison.

    Args:
        metric: its name, as on the command line.
        comparison: what was compared.
        value: the mean; infinite where all pairs were identical; None where nothing was measured.
        count: pairs, frames or pictures that it is of, the infinite ones included.
        infinite: how many of them are infinite, and left out of the mean.
        left_out: files without a partner.
        perf: columns out of the log.
    """

    metric: str
    comparison: Comparison
    value: float | None
    count: int
    infinite: int = 0
    left_out: int = 0
    perf: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, metric: str, comparison: Comparison, measured: tuple[float | None, int | None]) -> Result:
        """Made of what a metric returns."""
        if isinstance(measured, Mean):
            counts = (measured.compared, measured.infinite, measured.left_out)
            return cls(metric, comparison, measured.value, *counts)
        return cls(metric, comparison, measured[0], measured[1] or 0)

    @property
    def text(self) -> str:
        """The value with five decimals."""
        return "none" if self.value is None else f"{self.value:.5f}"

    @property
    def line(self) -> str:
        """``A vs B, Num: n, PSNR: 12.34567``; then the log's numbers, and in brackets what the mean leaves out."""
        count = f"{'Frames' if self.comparison.kind == 'videos' else 'Num'}: {self.count}"
        parts = [" vs ".join(self.comparison.names), count, f"{self.metric.upper()}: {self.text}"]
        parts += [f"{heading}: {number:.5f}" for heading, number in self.perf.items()]
        notes = [f"{self.infinite} identical, left out of the mean"] if self.infinite else []
        if self.infinite == self.count:
            notes = ["all identical"] if self.infinite else []
        notes += [f"files without a partner: {self.left_out}"] if self.left_out else []
        return ", ".join(parts) + (f" ({'; '.join(notes)})" if notes else "")

    @property
    def data(self) -> dict[str, Any]:
        """As plain data; an infinite value stays infinite."""
        true, test = self.comparison.true, self.comparison.test
        plain = {"config": self.comparison.config, "true": str(true), "test": str(test), "kind": self.comparison.kind}
        counts = {"n": self.count, "infinite": self.infinite, "left_out": self.left_out}
        return {**plain, "metric": self.metric, "value": self.value, **counts, **self.perf}


def best_first(results: Iterable[Result]) -> list[Result]:
    """The results of one metric, the best first; those without a value last."""

    def rank(result: Result) -> float:
        if result.value is None or math.isnan(result.value):
            return math.inf
        return -result.value if MEASURES[result.metric].descending else result.value

    return sorted(results, key=rank)


def summary(results: Sequence[Result]) -> str:
    """All lines again, metric by metric, the best first."""
    parts = []
    for metric in dict.fromkeys(result.metric for result in results):
        lines = [result.line for result in best_first(result for result in results if result.metric == metric)]
        parts.append("\n".join([f"Summary of {metric.upper()}, best first", *lines]))
    return "\n\n".join(parts)


def markdown(results: Sequence[Result]) -> str:
    """A table with a row for each configuration, the best by the first metric first; videos have rows of their own."""
    metrics = list(dict.fromkeys(result.metric for result in results))
    headings = list(dict.fromkeys(heading for result in results for heading in result.perf))
    rows: dict[tuple[str, bool], dict[str, str]] = {}
    for metric in metrics:
        for result in best_first(result for result in results if result.metric == metric):
            row = rows.setdefault((result.comparison.config, result.comparison.kind == "videos"), {})
            row[metric] = result.text
            row |= {heading: f"{number:.5f}" for heading, number in result.perf.items()}
    cells = [["Config", *(metric.upper() for metric in metrics), *headings]]
    cells.append([":--", *["--:"] * (len(cells[0]) - 1)])
    cells += [[name, *(row.get(column, "") for column in [*metrics, *headings])] for (name, _), row in rows.items()]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


def as_json(results: Sequence[Result], failed: Sequence[str]) -> str:
    """The results and what failed, as JSON. It has no infinity: such a value is null, its ``infinite`` equals ``n``."""
    rows = [result.data for result in results]
    for row in rows:
        if row["value"] is not None and not math.isfinite(row["value"]):
            row["value"] = None
    return json.dumps({"results": rows, "failed": list(failed)}, indent=2, allow_nan=False) + "\n"


def as_csv(results: Sequence[Result]) -> str:
    """The results as CSV, a line for each; an infinite value is ``inf``."""
    rows = [result.data for result in results]
    written = io.StringIO()
    fields = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(written, fields, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()
