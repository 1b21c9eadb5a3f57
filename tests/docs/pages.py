"""Reading the documentation's pages: their fenced blocks, in order, with what comments say about them.

Comments are not shown on the site. ``<!-- setup: NAME -->`` gives a page the names that a function of `setups` makes;
``<!-- not run: WHY -->`` in front of a block says that it cannot run here; ``<!-- output -->`` in front of a text block
says that the Python block before it prints this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.parent.name != "_includes")

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n+)?```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: the file, from the documentation's folder.
        line: the line on which its code begins.
        language: as the fence says.
        title: as the fence says, e.g. a file's name.
        mark: the comment in front of it, or "".
        code: what stands in it.
    """

    page: str
    line: int
    language: str
    title: str
    mark: str
    code: str

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"docs/{self.page}:{self.line}"

    @property
    def not_run(self) -> bool:
        """Whether a comment says that it cannot run here."""
        return self.mark.startswith("not run:")


def text(page: str) -> str:
    """A page's Markdown."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """A page's blocks, in order."""
    content = text(page)
    found = []
    for match in _FENCE.finditer(content):
        title = re.search(r'title="([^"]*)"', match["options"])
        line = content.count("\n", 0, match.start("code")) + 1
        found.append(
            Block(page, line, match["language"], title[1] if title else "", match["mark"] or "", match["code"])
        )
    return found


def setup_name(page: str) -> str | None:
    """The name of the setup that a page asks for."""
    found = re.search(r"^<!-- setup: (\w+) -->$", text(page), re.M)
    return found[1] if found else None
