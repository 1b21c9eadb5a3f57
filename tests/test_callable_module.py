"""A name that is both a module and a function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = '''
"""A module."""

from cache_dit.callable_module import make_callable


def double(value: int, *, plus: int = 0) -> int:
    """Twice a number."""
    return 2 * value + plus


make_callable(__name__, double)
'''


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package with a callable module ``double``."""
    package = tmp_path / "callable_toy"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "double.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "callable_toy"
    for known in [one for one in sys.modules if one.startswith("callable_toy")]:
        del sys.modules[known]


def test_a_callable_module_is_the_module_and_its_function(name: str):
    module = importlib.import_module(f"{name}.double")
    assert sys.modules[name].double is module
    assert module(3, plus=1) == module.double(3, plus=1) == 7
    assert inspect.ismodule(module)
    assert inspect.signature(module) == inspect.signature(module.double)
    assert module.__doc__ == "Twice a number."


def test_a_callable_module_stays_one_when_it_is_reloaded(name: str):
    module = importlib.reload(importlib.import_module(f"{name}.double"))
    assert module(2) == 4
