"""The documentation's numbers are measured: what stands in a figure's place on a page is made from its data."""

from __future__ import annotations

import pytest

from tests.docs.pages import DOCS, PAGES
from tools.docs.report import FIGURES, filled, measured, places


@pytest.mark.parametrize("page", [page for page in PAGES if places(DOCS / page)])
def test_every_figure_on_a_page_says_what_its_data_says(page: str) -> None:
    missing = [name for name in places(DOCS / page) if not measured(name) or not (FIGURES / f"{name}.svg").exists()]
    assert not missing, f"not measured yet: {', '.join(missing)}"
    assert (DOCS / page).read_text(encoding="utf-8") == filled(DOCS / page), "run python -m tools.docs.figures --draw"
