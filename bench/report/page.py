"""The results of the benches as Markdown, and as one HTML page that needs nothing but itself.

What stands where is written in ``bench/pages/NAME.md``; a bench says what its places hold. A part of such a page
(between lines ``---``) in which a place has nothing to show is left out.
"""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape, unescape
from pathlib import Path
from typing import Any

from bench.report.parts import PAGES, Chart, Part, Table, by_group, literal
from bench.results import OURS, Results, flat_settings
from cache_dit.errors import ConfigError

#: The benches that have a page, in its order: title, and the module whose ``parts`` fills it.
BENCHES = {
    "quality": ("Quality", "bench.quality.shown"),
    "overhead": ("What the cache costs", "bench.cost.beside"),
    "scaling": ("How costs grow", "bench.cost.scaling"),
    "gpu": ("On a GPU", "bench.cost.gpu"),
}
#: A line of Markdown in whose place a figure goes.
FIGURE_PLACE = re.compile(r"^\{figure: (\w+)\}$", re.MULTILINE)
#: A place in a template; with a ``?`` it shows nothing, and is there for the part around it.
_PLACE = re.compile(r"\{(\??)(\w+)\}")


@dataclass(frozen=True)
class Section:
    """One bench on the page: ``parts`` says what its template holds; no template: that in ``bench/pages``."""

    bench: str
    title: str
    parts: Callable[[Results], Mapping[str, Part]]
    template: str = ""

    def text(self, results: Results) -> tuple[str, dict[str, Chart]]:
        """Markdown with places of figures, and the charts that go there."""
        held, charts, words = self.parts(results), {}, {}
        for name, value in held.items():
            if isinstance(value, Chart):
                charts[value.name], value = value, f"{{figure: {value.name}}}"
            words[name] = (value.markdown() if isinstance(value, Table) else value or "").strip()
        parts = (self.template or (PAGES / f"{self.bench}.md").read_text(encoding="utf-8")).split("\n---\n")
        whole = [part.strip() for part in parts if all(words[name] for _, name in _PLACE.findall(part))]
        filled = (_PLACE.sub(lambda place: "" if place[1] else words[place[2]], part) for part in whole)
        return "\n\n".join(filled) + "\n", charts


def sections() -> list[Section]:
    """The section of every bench."""
    return [Section(name, title, importlib.import_module(module).parts) for name, (title, module) in BENCHES.items()]


def read_folder(folder: Path) -> tuple[list[Results], list[str]]:
    """The results in a folder, in the order of the report, and for every other JSON file a line that says why not."""
    results, unread, order = [], [], list(BENCHES)
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(Results.load(path))
        except ConfigError as error:
            unread.append(str(error))
    rank = lambda one: order.index(one.bench) if one.bench in order else len(order)  # noqa: E731
    return sorted(results, key=lambda one: (rank(one), one.path.name)), unread


Pair = tuple[Section, Results | None]


def paired(results: Sequence[Results], known: Sequence[Section], *, whole: bool = True) -> list[Pair]:
    """Each section with its results, ``whole``: or None, and results without a section with a plain one."""
    pairs: list[Pair] = []
    for section in known:
        own = [one for one in results if one.bench == section.bench]
        pairs += [(section, one) for one in own] or ([(section, None)] if whole else [])
    names = {section.bench for section in known}
    plain = lambda one: {"all": by_group(one.findings)}  # noqa: E731
    others = [one for one in results if one.bench not in names]
    return pairs + [(Section(one.bench, one.bench.capitalize(), plain, "{all}"), one) for one in others]


# -- what is said of every file


def title_of(section: Section, results: Results | None) -> str:
    """The heading; a second file of one bench is told by its name."""
    if results is None or results.path.stem == section.bench:
        return section.title
    return f"{section.title} ({results.path.name})"


def machine_text(results: Results) -> str:
    """What measured, in a line: the machine, this project with its commit, and versions."""
    from cache_dit.report.machine import Machine

    machine = dict(results.machine)
    machine["versions"] = {k: v for k, v in (machine.get("versions") or {}).items() if k != "cache-dit"}
    known = {one.name: machine.get(one.name) for one in fields(Machine)}
    if any(known[name] is None for name in ("device", "system", "cores", "threads")):
        return f"{results.made_by}; {', '.join(f'{name} {value}' for name, value in machine.items())}"
    return f"{results.made_by}; {Machine(**known)}"


def _duration(results: Results) -> str:
    minutes = results.seconds / 60
    if minutes < 2:
        return f"{results.seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _setting(name: str, value: Any) -> str:
    words = {None: "–", True: "yes", False: "no"}
    values = value if isinstance(value, list) else [value]
    if len(values) > 12 or any(isinstance(one, (list, Mapping)) for one in values):
        return literal(f"{name} {len(values)} of them, in the file")
    said = (words[one] if one is None or isinstance(one, bool) else str(one) for one in values)
    return literal(f"{name} {', '.join(said)}")


# -- Markdown


def anchor(title: str) -> str:
    """As the site makes it of a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def overview(pairs: Sequence[Pair]) -> str:
    """A line for each section, which links to it: how far it came, how many targets are reached, how long it took."""
    lines = ["| what | command | state | targets reached | took |", "| --- | --- | --- | ---: | ---: |"]
    for section, results in pairs:
        title, state, reached, took = title_of(section, results), "not run", "", ""
        if results is not None:
            judged = [one.reached for one in results.findings if one.reached is not None]
            state = ("" if results.finished else "not ") + "finished" + (", quick" if results.quick else "")
            reached, took = f"{sum(judged)} of {len(judged)}" if judged else "", _duration(results)
        cells = (f"[{literal(title)}](#{anchor(title)})", f"`cache-dit bench {section.bench}`", state, reached, took)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def section_markdown(section: Section, results: Results | None) -> tuple[str, dict[str, Chart]]:
    """A section under its heading, with places of figures, and the charts that go there."""
    title = f"## {literal(title_of(section, results))}\n"
    command = f"```bash\ncache-dit bench {section.bench}\n```\n"
    if results is None:
        return f"{title}\n**Not run.**\n\n{command}", {}
    warnings = ["A quick run: it shows that the bench works, and its numbers say nothing."] * results.quick
    warnings += [f"The run was not finished; rows so far: {len(results.rows)}."] * (not results.finished)
    text, charts = section.text(results)
    parts = [title, f"*{literal(machine_text(results))}.*\n"]
    parts += [f"**{literal(' '.join(warnings))}**\n"] if warnings else []
    settings = "; ".join(_setting(*one) for one in flat_settings(results.settings))
    return "\n".join([*parts, text, f"Settings: {settings}. Data: `{results.path.name}`.\n", command]), charts


# -- HTML


def save_report(
    path: Path,
    results: Sequence[Results],
    *,
    unread: Iterable[str] = (),
    known: Sequence[Section] | None = None,
    whole: bool = True,
) -> None:
    """Write the page; ``unread``: lines on files that could not be read; ``whole``: also of benches without results."""
    pairs = paired(results, sections() if known is None else known, whole=whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(pairs, list(unread)), encoding="utf-8")


def page(pairs: Sequence[Pair], unread: Sequence[str] = ()) -> str:
    """The page's text: the Markdown of the overview and all sections, with its figures inside."""
    texts, figures = [f"# What was measured\n\n{overview(pairs)}"], {}
    texts += [f"**Left out: {literal(line)}**\n" for line in unread]
    for number, (section, results) in enumerate(pairs):
        text, charts = section_markdown(section, results)
        texts.append(FIGURE_PLACE.sub(lambda place, number=number: f"FIGURE-{number}-{place[1]}", text))
        figures |= {f"FIGURE-{number}-{name}": picture(chart) for name, chart in charts.items()}
    made = html("\n".join(texts))
    for place, figure in figures.items():
        made = made.replace(f"<p>{place}</p>", figure)
    frame, css = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
    return frame.format(title=f"{OURS}: what was measured", css=css, body=made)


def html(markdown: str) -> str:
    """Markdown as HTML: tags in it are text, tables may be scrolled, and pictures, which would be loaded, are links."""
    from markdown_it import MarkdownIt

    made: str = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(markdown)
    made = made.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    return re.sub(r"<h2>(.*?)</h2>", lambda head: f'<h2 id="{anchor(unescape(head[1]))}">{head[1]}</h2>', made)


def picture(chart: Chart) -> str:
    """A figure in the page, by an address that holds it."""
    from bench.report.style import svg

    data = base64.b64encode(svg(chart.figure()).encode()).decode()
    return f'<figure class="scroll"><img alt="{escape(chart.alt)}" src="data:image/svg+xml;base64,{data}"></figure>'
