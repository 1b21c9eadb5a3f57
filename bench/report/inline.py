"""Figures and Markdown as parts of a page that loads nothing."""

from __future__ import annotations

import re
from html import escape

from markdown_it import MarkdownIt

from bench.report import style
from bench.report.section import Drawn

#: The figures' colours, as the page names them: so that they follow its light and its dark form.
_VARIABLES = {
    style.INK: "--ink",
    style.SOFT: "--soft",
    style.GRID: "--line",
    style.COMPUTED: "--computed",
    style.CACHED: "--cached",
    "#000000": "--ink",
    "#ffffff": "--paper",
}


def picture(drawn: Drawn) -> str:
    """A figure as an SVG element whose ids no other on the page has."""
    text = style.svg(drawn.figure)
    text = re.sub(r"^.*?(?=<svg\b)|<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{drawn.name}-", text)
    for colour, variable in _VARIABLES.items():
        text = re.sub(rf"(?<=[:\s\"]){colour}\b", f"var({variable})", text)
    width, height = (72 * inches for inches in drawn.figure.get_size_inches())
    head = f'<svg role="img" aria-label="{escape(drawn.alt)}" viewBox="0 0 {width:g} {height:g}" '
    head += f'style="max-width: {width:g}pt">'
    return re.sub(r"<svg\b[^>]*>", lambda _: head, text, count=1).replace("xlink:href", "href").strip()


def html(markdown: str) -> str:
    """Markdown as HTML: tags in it are text, tables may be scrolled, and pictures, which would be loaded, are links."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    made: str = reader.render(markdown)
    return made.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
