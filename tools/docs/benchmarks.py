"""The page ``docs/benchmarks.md`` and its figures, made of ``bench/results`` by ``python -m tools.docs.benchmarks``."""

from __future__ import annotations

import re
from pathlib import Path

from bench.arguments import COMMITTED
from bench.report import facts
from bench.report.files import paired, read_folder, sections
from bench.report.section import FIGURE_PLACE, Drawn, Section, literal, markdown_table
from bench.results import Results
from tools.docs.report import DOCS, FIGURES

PAGE = DOCS / "benchmarks.md"

_HEAD = """\
<!-- made by python -m tools.docs.benchmarks -->
# Benchmarks

What the cache costs, what it saves, and what it does to pictures. Every number below comes from a file in
`bench/results`, which also holds the raw samples; the command of a section measures it anew on your machine, prints a
table, and writes a report to `build/bench`.
"""

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
    """The page's text.

    Args:
        folder: where the results lie.
    """
    pairs = _pairs(folder)
    parts = [_HEAD, _overview(pairs), *(_section(section, results) for section, results in pairs), _COMPARE]
    return "\n".join(parts)


def draw(folder: Path = COMMITTED, figures: Path = FIGURES) -> None:
    """Draw the page's figures, and remove those that it no longer has.

    Args:
        folder: where the results lie.
        figures: where the drawings go.
    """
    from bench.report import style

    figures_of = ((pair, one) for pair in _pairs(folder) if pair[1] for one in pair[0].figures(pair[1]))
    drawn = {_file(one, *pair): one.figure for pair, one in figures_of}
    for old in figures.glob("bench_*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for name, figure in drawn.items():
        style.save(figure, figures / f"{name}.svg")


def _pairs(folder: Path) -> list[tuple[Section, Results | None]]:
    return paired(read_folder(folder)[0], sections())


def _overview(pairs: list[tuple[Section, Results | None]]) -> str:
    rows = (
        (
            f"[{literal(facts.title(section, results))}](#{_anchor(facts.title(section, results))})",
            f"`{section.repeat}`",
            facts.status(results),
            facts.targets(results),
            facts.duration(results),
        )
        for section, results in pairs
    )
    return markdown_table(("what", "command", "state", "targets reached", "took"), rows, left=3)


def _section(section: Section, results: Results | None) -> str:
    title = f"## {literal(facts.title(section, results))}\n"
    command = f"```bash\n{section.repeat}\n```\n"
    if results is None:
        return f"{title}\n**Not run.**\n\n{command}"
    parts = [title, f"*{literal(facts.machine_text(results))}.*\n"]
    if warning := facts.warning(results):
        parts.append(f"**{literal(warning)}**\n")
    parts.append(_with_figures(section, results))
    settings = "; ".join(f"{literal(name)} {literal(value)}" for name, value in facts.settings_rows(results))
    parts.append(f"Settings: {settings}. Data: `bench/results/{results.path.name}`.\n")
    return "\n".join([*parts, command])


def _with_figures(section: Section, results: Results) -> str:
    """The section's text with its figures: in their places, or at the end."""
    import matplotlib.pyplot as plt

    links = {}
    for one in section.figures(results):
        links[one.name] = f"![{literal(one.alt)}](figures/{_file(one, section, results)}.svg)"
        plt.close(one.figure)
    text = FIGURE_PLACE.sub(lambda place: links.pop(place[1], ""), section.text(results).strip())
    return "\n\n".join([text, *links.values()]) + "\n"


def _file(drawn: Drawn, section: Section, results: Results | None) -> str:
    """The name of a drawing: a second file of one bench has its own."""
    second = results is not None and results.path.stem != section.bench
    name = drawn.name.removeprefix("bench_")
    return f"bench_{results.path.stem}_{name}" if second else f"bench_{name}"


def _anchor(title: str) -> str:
    """As the site makes it of a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


if __name__ == "__main__":
    draw()
    PAGE.write_text(page(), encoding="utf-8")
