"""The page on the inside lists every file of the engine, and no other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import cache_dit.caching
from tests.docs.pages import text

ENGINE = Path(cache_dit.caching.__file__).parent


def test_the_table_lists_every_file_and_folder_of_the_engine_once() -> None:
    rows = [line for line in text("engine.md").splitlines() if line.startswith("| `")]
    listed = Counter(name for row in rows for name in re.findall(r"`(\w+\.py|\w+/)`", row.split("|")[1]))
    there = [path.name + "/" * path.is_dir() for path in ENGINE.iterdir() if not path.name.startswith("__")]
    assert listed == Counter(there)
