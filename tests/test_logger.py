"""The level of the package's own loggers: that of the environment where it is set, else the program's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LINES = """
import logging
{before}
import cache_dit
for level in ("info", "warning", "error"):
    getattr(logging.getLogger("cache_dit.engine.attach.transformer"), level)(level)
"""


def said(level: str | None, before: str = "") -> list[str]:
    """What a program sees that does nothing about logging, or does ``before``."""
    environment = {name: value for name, value in os.environ.items() if name != "CACHE_DIT_LOG_LEVEL"}
    environment |= {} if level is None else {"CACHE_DIT_LOG_LEVEL": level}
    code = LINES.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        (None, ["warning", "error"]),
        ("error", ["error"]),
        ("Warning", ["warning", "error"]),
        ("critical", []),
    ],
)
def test_the_packages_loggers_take_the_level_of_the_environment(level: str | None, lines: list[str]) -> None:
    assert said(level) == lines


def test_without_it_the_programs_own_level_counts() -> None:
    quiet = "logging.getLogger('cache_dit').setLevel('ERROR')"
    assert said(None, quiet) == ["error"]
    assert said("debug", f"logging.basicConfig(format='%(message)s'); {quiet}") == ["info", "warning", "error"]


def test_an_unknown_level_is_told_and_changes_nothing() -> None:
    assert said("quiet")[1:] == ["warning", "error"]
    assert "CACHE_DIT_LOG_LEVEL='QUIET' is unknown: pass debug, info, warning, error" in said("quiet")[0]
