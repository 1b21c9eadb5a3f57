"""What the package and its command line cost before anything is asked of them: neither torch nor diffusers."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cache_dit
from cache_dit.cli.application import COMMANDS

HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "rich", "yaml")
#: Processor time of `--help`, of which the start of Python is the most; the modules that it takes are counted too.
SECONDS, MODULES = 1.0, 200


def child(code: str) -> dict[str, Any]:
    """The heavy modules that some code loads in a new interpreter, how many it loads in all, and its processor time."""
    told = f"""
import json, sys, time
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"heavy": heavy, "modules": len(sys.modules), "seconds": time.process_time()}}))
"""
    return json.loads(run(code + told).splitlines()[-1])


def run(code: str) -> str:
    """The standard output of some code in a new interpreter, where warnings are errors as they are here."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import cache_dit",
        "import cache_dit.engine, cache_dit.cli, cache_dit.metrics, cache_dit.report, cache_dit.compat",
        "from cache_dit import CacheDitError, init_logger",
    ],
)
def test_an_import_loads_nothing_heavy(code: str) -> None:
    loaded = child(code)
    assert loaded["heavy"] == []
    assert loaded["modules"] < MODULES


def test_configurations_are_made_without_torch() -> None:
    code = "import cache_dit, cache_dit.config; cache_dit.DBCacheConfig(steps_computation_mask=[1, 0])"
    assert child(code)["heavy"] == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command.name, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy_and_is_there_at_once(arguments: list[str]) -> None:
    code = f"""
import contextlib
from cache_dit.cli import main
with contextlib.suppress(SystemExit):
    main({arguments!r})
"""
    loaded = child(code)
    assert loaded["heavy"] == []
    assert loaded["modules"] < MODULES
    assert loaded["seconds"] < SECONDS


# -- the table of names


def typed_names() -> dict[str, str]:
    """The names that type checkers are told of, with the module of each; constants have none."""
    tree = ast.parse(Path(cache_dit.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for statement in block.body:
        if isinstance(statement, ast.ImportFrom) and statement.module != "cache_dit":  # whose are modules
            found.update(dict.fromkeys((alias.name for alias in statement.names), statement.module))
        for target in getattr(statement, "targets", ()):
            found.update(dict.fromkeys((name.id for name in ast.walk(target) if isinstance(name, ast.Name)), ""))
    return found


def test_type_checkers_are_told_of_every_name_and_of_the_place_where_it_is() -> None:
    typed = typed_names()
    assert {*typed, "__version__", "version_tuple", "REFERENCE_API"} == set(cache_dit.__all__)
    for name, module in typed.items():
        if module and name != "summary":  # a module that can be called, see below
            assert getattr(cache_dit, name) is getattr(importlib.import_module(module), name)


def test_every_name_is_in_dir_and_another_is_an_attribute_error() -> None:
    assert set(cache_dit.__all__) <= set(dir(cache_dit))
    with pytest.raises(AttributeError, match="has no attribute 'enable_caches'"):
        _ = cache_dit.enable_caches
