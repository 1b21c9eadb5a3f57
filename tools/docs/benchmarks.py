"""The page ``docs/benchmarks.md`` and its figures, made of ``bench/results`` by ``python -m tools.docs.benchmarks``."""

from __future__ import annotations

from pathlib import Path

from bench.commands import COMMITTED
from bench.report import style
from bench.report.page import FIGURE_PLACE, Pair, overview, paired, read_folder, section_markdown, sections
from bench.report.parts import literal
from tools.docs.report import DOCS, FIGURES

PAGE = DOCS / "benchmarks.md"
#: What a person concludes from the figures; the page begins with it.
CONCLUSIONS = DOCS / "_includes" / "benchmarks_conclusions.md"

_HEAD = """\
<!-- made by python -m tools.docs.benchmarks -->
# Benchmarks

What the cache costs, what it saves, and what it does to pictures. Every number below comes from a file in
`bench/results`, which also holds the raw samples. Each section names the commit that measured it; its command measures
it anew on your machine, prints a table, and writes a report to `build/bench`.
"""

_MEASURED = "## What was measured\n"

_COMPARE = """\
## Comparing two runs

```bash
cache-dit bench check FRESH.json # against the committed file of the same bench
```

tells what moved: where the intervals of a finding do not meet and it changed by more than 2 %, and which targets are
newly missed or reached. With `--strict` it ends with status 1 where something got worse. What the two machines,
versions and settings differ in is said first.
"""


def page(folder: Path = COMMITTED) -> str:
    """The page's text, of the results in a folder."""
    pairs = paired(read_folder(folder)[0], sections())
    conclusions = CONCLUSIONS.read_text(encoding="utf-8")
    return "\n".join([_HEAD, conclusions, _MEASURED, overview(pairs), *map(_section, pairs), _COMPARE])


def _section(pair: Pair) -> str:
    text, charts = section_markdown(*pair)
    links = {name: f"![{literal(one.alt)}](figures/{_file(name, pair)}.svg)" for name, one in charts.items()}
    return FIGURE_PLACE.sub(lambda place: links[place[1]], text)


def draw(folder: Path = COMMITTED, figures: Path = FIGURES) -> None:
    """Draw the page's figures, and remove those that it no longer has."""
    drawn = {}
    for pair in paired(read_folder(folder)[0], sections()):
        drawn |= {_file(name, pair): one for name, one in section_markdown(*pair)[1].items()}
    for old in figures.glob("bench_*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for name, chart in drawn.items():
        style.save(chart.figure(), figures / f"{name}.svg")


def _file(name: str, pair: Pair) -> str:
    """The name of a drawing: a second file of one bench has its own."""
    section, results = pair
    second = results is not None and results.path.stem != section.bench
    return f"bench_{results.path.stem}_{name.removeprefix('bench_')}" if second and results else name


if __name__ == "__main__":
    draw()
    PAGE.write_text(page(), encoding="utf-8")
