"""What the README shows works: its Python blocks run, one after the other, as a reader would."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

import cache_dit

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_python_blocks_run_and_the_summary_says_what_happened() -> None:
    namespace: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in blocks("python"):
            exec(compile(code, str(README), "exec"), namespace)
    assert namespace["image"].size == (64, 64)
    assert "computed" in printed.getvalue()


def test_each_configuration_shown_makes_a_picture_with_fewer_blocks() -> None:
    namespace: dict[str, Any] = {}
    first, configured = blocks("python")[:2]
    exec(compile(first.split("image =")[0], str(README), "exec"), namespace)
    pipe = namespace["pipe"]
    for call in re.split(r"\n(?=# An? )", configured)[1:]:
        exec(compile(configured.split("\n\n")[0] + "\n" + call, str(README), "exec"), namespace)
        pipe("glossy 3d emoji of cuba flag", output_type="latent")
        assert cache_dit.summary(pipe, logging=False)[0].ideal_speedup > 1.2


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)[^):]*\)", README.read_text(encoding="utf-8")))))
def test_every_file_it_links_to_exists(path: str) -> None:
    assert (README.parent / path).exists()
