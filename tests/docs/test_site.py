"""The site is built strictly, and asks no other machine for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("mkdocs", reason="`make docs` installs it")
    pytest.importorskip("mkdocstrings", reason="`make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        content = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?(https?:[^\s\">]*)", content)
        loaded += re.findall(r"<link[^>]* rel=\"?(?:stylesheet|preconnect)\"?[^>]*href=\"?(https?:[^\s\">]*)", content)
        assert loaded == [], page


def test_every_formula_is_mathml(site: Path) -> None:
    contents = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    assert sum(content.count("<math ") for content in contents) > 10
    assert not any("arithmatex" in content for content in contents)


def test_the_search_box_works_from_disk(site: Path) -> None:
    """There a browser neither fetches the index nor makes a worker: both are scripts of the site instead."""
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    assert (site / "iframe-worker.js").exists()
    for page in site.rglob("*.html"):
        assert re.search(r'<script src="[./]*iframe-worker.js">', page.read_text(encoding="utf-8")), page
