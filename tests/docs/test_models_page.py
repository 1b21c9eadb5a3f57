"""The page of supported models says what the records say."""

from __future__ import annotations

from cache_dit.models.unsupported import UNSUPPORTED
from tools.docs.models import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.docs.models"


def test_every_class_that_is_refused_is_on_the_page() -> None:
    assert [name for name in UNSUPPORTED if f"`{name}`" not in page()] == []
