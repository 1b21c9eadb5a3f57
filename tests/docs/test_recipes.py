"""The recipes run: on pipelines of the classes that they show, with small random models in place of the weights."""

from __future__ import annotations

from typing import Any

import pytest

import cache_dit
from tests.docs import stand_ins
from tests.docs.pages import DOCS, blocks


def test_each_recipe_caches_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a threshold decides, a random model may move too much for it: then that is the reason that is told."""
    stand_ins.install(monkeypatch)
    namespace: dict[str, Any] = {}
    for block in blocks("recipes.md"):
        exec(compile("\n" * (block.line - 1) + block.code, str(DOCS / block.page), "exec"), namespace)
        for stats in cache_dit.summary(namespace["pipe"], logging=False):
            assert stats.steps_line, block.place
            measured = not stats.reason or "residual_diff_threshold" in stats.reason
            assert stats.cached_steps or measured, f"{block.place}: {stats.reason}"
            if "static" in block.code or "preset" in block.code:
                assert stats.cached_steps, f"{block.place}: {stats.reason}"
