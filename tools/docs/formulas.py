"""A hook of MkDocs: formulas written as $…$ and $$…$$ become MathML when the site is built, without a script."""

from __future__ import annotations

import html
import re
from typing import Any

_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])\s*</\1>', re.DOTALL
)


def on_page_content(content: str, **kwargs: Any) -> str:
    """A page's HTML with its formulas, which `pymdownx.arithmatex` has marked, as MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    block = found["block"] is not None
    latex = html.unescape(found["block"] if block else found["inline"]).strip()
    return str(convert(latex, display="block" if block else "inline"))
