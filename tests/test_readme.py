"""What the README says holds: it is short, its code runs on a FLUX pipeline, its figures are the measured ones."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxPipeline

import cache_dit
from tests.docs.test_docs import known_command
from tools.docs.report import filled

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= 700


def test_its_code_caches_the_steps_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the demo model, a pipeline of the class that is shown: the weights that are named are not at hand."""
    pipe = cache_dit.demo.load_pipeline(progress=False)
    monkeypatch.setattr(FluxPipeline, "from_pretrained", lambda name, **options: pipe)
    monkeypatch.setattr(FluxPipeline, "to", lambda pipe, device: pipe)
    namespace: dict[str, Any] = {}
    printed = io.StringIO()
    (code,) = blocks("python")
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(README), "exec"), namespace)
    assert namespace["image"].size == (64, 64)
    assert printed.getvalue()
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert {line.count("F") for line in stats.steps_line.values()} == {12}
    assert {len(line) for line in stats.steps_line.values()} == {28}


def test_its_commands_are_known() -> None:
    for block in blocks("bash"):
        for line in block.splitlines():
            assert known_command(line.split("#")[0].strip()), line


def test_its_table_is_what_was_measured() -> None:
    assert filled(README) == TEXT, "run python -m tools.docs.figures --draw"


def test_the_number_of_pipelines_it_tells_is_that_of_the_records() -> None:
    assert f"[{cache_dit.supported_pipelines()[0]} pipeline names]" in TEXT


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)[^):]*\)", TEXT))))
def test_every_file_it_links_to_exists(path: str) -> None:
    assert (README.parent / path).exists()
