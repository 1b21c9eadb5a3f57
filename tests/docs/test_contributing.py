"""The tree in CONTRIBUTING is that of the package, in the order in which it imports."""

from __future__ import annotations

import re
from pathlib import Path

import cache_dit
from tests.docs.pages import DOCS
from tests.test_imports import ORDER

PACKAGE = Path(cache_dit.__file__).parent
TEXT = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def shown() -> list[str]:
    """The folders of the tree, below the package, in order."""
    rows = re.findall(r"^( +)(\w+)/", TEXT, re.M)
    names = [f"engine/{name}" if len(indent) == 4 else name for indent, name in rows]
    assert names
    return names


def test_it_has_every_folder_and_no_other() -> None:
    there = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")}
    nested = {name for name in there if "/" in name and not name.startswith("engine/")}
    assert set(shown()) == there - nested - {"."}


def test_its_order_is_that_of_the_imports() -> None:
    ranks = [ORDER.index(name) for name in shown() if name != "engine"]
    assert ranks == sorted(ranks)


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:src|tests|tools|bench)/[\w/.]*)`", TEXT) + re.findall(r"\]\(([\w/.]+)\)", TEXT)
    assert [path for path in named if not (DOCS.parent / path).exists()] == []
