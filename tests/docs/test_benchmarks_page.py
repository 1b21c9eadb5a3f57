"""The page of benchmarks says what the committed results say."""

from __future__ import annotations

import re

from tools.docs.benchmarks import PAGE, page
from tools.docs.report import FIGURES


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.docs.benchmarks"


def test_its_figures_are_those_that_are_drawn() -> None:
    linked = set(re.findall(r"\(figures/(bench_\w+)\.svg\)", page()))
    assert linked == {file.stem for file in FIGURES.glob("bench_*.svg")}, "run python -m tools.docs.benchmarks"
