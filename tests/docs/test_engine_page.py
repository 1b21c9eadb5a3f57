"""The page on the inside lists every file of the engine, folder by folder, in the order of their imports."""

from __future__ import annotations

import re
from pathlib import Path

import cache_dit
from tests.docs.pages import text
from tests.test_imports import ORDER

PACKAGE = Path(cache_dit.__file__).parent


def rows() -> dict[str, list[str]]:
    """The files that the page's table names, by folder."""
    table = [line.split("|") for line in text("engine.md").splitlines() if line.startswith("| `engine/")]
    return {row[1].strip(" `"): re.findall(r"`(\w+\.py)`", row[3]) for row in table}


def test_the_table_lists_every_file_of_the_engine_once() -> None:
    folders = [
        PACKAGE / "engine",
        *(path for path in (PACKAGE / "engine").iterdir() if (path / "__init__.py").exists()),
    ]
    there = {
        f"{folder.relative_to(PACKAGE).as_posix()}/": sorted(
            path.name for path in folder.glob("*.py") if path.name != "__init__.py"
        )
        for folder in folders
    }
    assert {folder: sorted(files) for folder, files in rows().items()} == there


def test_the_folders_stand_in_the_order_of_their_imports() -> None:
    places = [ORDER.index(folder.strip("/")) for folder in rows() if folder != "engine/"]
    assert places == sorted(places)
