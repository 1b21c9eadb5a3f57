"""All results as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bench.report import facts, inline
from bench.report.files import paired, sections
from bench.report.section import FIGURE_PLACE, Drawn, Section, findings_by_group
from bench.results import Results

#: The page may load nothing, wherever it is opened.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def save_report(
    path: Path,
    results: Sequence[Results],
    *,
    unread: Iterable[str] = (),
    known: Iterable[Section] | None = None,
    whole: bool = True,
) -> None:
    """Write the page.

    Args:
        path: the file; its folder is made.
        results: what to show.
        unread: lines on files that could not be read.
        known: the benches' sections; None: all that there are.
        whole: whether benches without results are told of.
    """
    pairs = paired(results, sections() if known is None else known, whole=whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(pairs, list(unread)), encoding="utf-8")


def page(pairs: Sequence[tuple[Section, Results | None]], unread: Sequence[str] = ()) -> str:
    """The page's text."""
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    numbered = [(f"bench-{number}", section, results) for number, (section, results) in enumerate(pairs, start=1)]
    shown = "\n".join(_section(anchor, section, results) for anchor, section, results in numbered)
    left_out = "".join(f'<p class="warning">Left out: {escape(line)}</p>\n' for line in unread)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cache-dit: what was measured</title>
<style>
{css}</style>
</head>
<body>
<main>
<h1>What was measured</h1>
<p class="lead">What the cache costs, what it saves, and what it does to pictures: each part with the machine that
measured it and the command that repeats it.</p>
{_overview(numbered)}
{left_out}{shown}
</main>
</body>
</html>
"""


def _overview(numbered: Sequence[tuple[str, Section, Results | None]]) -> str:
    heads = ("what", "state", "targets reached", "took")
    rows = []
    for anchor, section, results in numbered:
        cells = (facts.status(results), facts.targets(results), facts.duration(results))
        title = f'<a href="#{anchor}">{escape(facts.title(section, results))}</a>'
        rows.append(f'<tr><th scope="row">{title}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"""<nav aria-label="Parts"><div class="scroll"><table class="overview"><thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody></table></div></nav>"""


def _section(anchor: str, section: Section, results: Results | None) -> str:
    heading = f'<section id="{anchor}">\n<h2>{escape(facts.title(section, results))}</h2>'
    command = f"<code>{escape(section.repeat)}</code>"
    if results is None:
        return f'{heading}\n<p class="warning">Not run. To run it: {command}</p>\n</section>'
    warning = facts.warning(results)
    parts = [
        heading,
        f'<p class="small">{escape(facts.machine_text(results))}; took {facts.duration(results)}</p>',
        f'<p class="warning">{escape(warning)}</p>' if warning else "",
        _body(anchor, section, results),
        _all_findings(results),
        _settings(results),
        f'<p class="repeat">To repeat it: {command}</p>',
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _body(anchor: str, section: Section, results: Results) -> str:
    """The section's text with its figures: in their places, or at the end."""
    text = section.text(results)
    drawn = {one.name: _figure(anchor, one) for one in section.figures(results)}
    pieces = FIGURE_PLACE.split(text)  # text, name, text, name, … text
    made = [inline.html(pieces[0])]
    for name, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        made += [drawn.pop(name, ""), inline.html(piece)]
    return "\n".join([*made, *drawn.values()])


def _figure(anchor: str, drawn: Drawn) -> str:
    unique = Drawn(f"{anchor}-{drawn.name}", drawn.alt, drawn.figure)
    return f'<figure><div class="scroll">{inline.picture(unique)}</div></figure>'


def _all_findings(results: Results) -> str:
    if not results.findings:
        return ""
    return _details(f"All {len(results.findings)} findings", inline.html(findings_by_group(results.findings)))


def _settings(results: Results) -> str:
    rows = [("results", results.path.name), *facts.settings_rows(results)]
    versions = results.machine.get("versions")
    rows += [(f"version of {name}", str(version)) for name, version in (versions or {}).items()]
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    table = f'<div class="scroll"><table class="settings"><tbody>{body}</tbody></table></div>'
    return _details("Settings and versions", table)


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"
