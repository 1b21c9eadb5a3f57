"""The house's order: who may import whom. Imports inside functions and under TYPE_CHECKING count like all others."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cache_dit

ROOT = Path(cache_dit.__file__).parent

#: Folders and files from the lowest to the highest: each may import itself, and those before it.
ORDER = (
    *("errors", "envs", "version", "logger", "lazy", "callable_module"),
    *("platforms", "profiler"),
    "config",
    "metrics",
    *("engine/subclass", "engine/predictors", "engine/plans", "engine/policies", "engine/adapters", "engine/options"),
    *("engine/state", "engine/forward", "engine/sessions", "engine/attach", "engine"),
    "models",
    *("kernels", "attention"),
    *("parallelism", "quantization", "offload", "compile"),
    *("api", "summary", "optimize"),
    "planning",
    *("report", "demo", "generate", "serve"),
    "cli",
    *("compat", "caching", "utils", "__init__"),
)

#: Public names and the reference's paths: nothing below them imports them.
PUBLIC = ("caching", "compat", "utils", "__init__")

#: Imports that are still against the order, as (importer, imported). This list only shrinks: an entry that is not
#: needed any more fails.
AGAINST_THE_ORDER: set[tuple[str, str]] = set()

#: Modules that are still in circles. This list only shrinks.
IN_CIRCLES: set[str] = set()

#: Folders that still have more files than a reader takes in. This list only shrinks.
TOO_FULL: set[str] = set()
MOST_FILES = 14


def name_of(path: Path) -> str:
    """A module's name within the package, e.g. ``engine/plans/file``; a folder's ``__init__`` keeps its own."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """The package's modules that a file in a (sub)package imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            targets = [f"{base}.{name.name}" for name in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "cache_dit":
                yield module_of(target.split(".")[1:])


def module_of(parts: list[str]) -> str:
    """The module that is imported by a dotted path, which may end in a name of the module."""
    for end in (len(parts), len(parts) - 1):
        for name in ("/".join(parts[:end]), "/".join([*parts[:end], "__init__"])):
            if name in modules():
                return name
    raise AssertionError(f"cache_dit.{'.'.join(parts)} is imported and is no module of the package, or a name in one")


@cache
def graph() -> dict[str, frozenset[str]]:
    read = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    packages = {name: path.relative_to(ROOT.parent).parent.parts for name, path in modules().items()}
    return {name: frozenset(imported(source, packages[name])) - {name} for name, source in read.items()}


def place(module: str) -> str:
    """The entry of the order that a module falls under: the longest one that it begins with."""
    return max((one for one in ORDER if module == one or module.startswith(f"{one}/")), key=len, default="")


def against_the_order() -> set[tuple[str, str]]:
    at = {name: ORDER.index(place(name)) for name in graph()}
    return {(name, other) for name, others in graph().items() for other in others if at[name] < at[other]}


def circles() -> list[set[str]]:
    """The groups of modules of which each reaches every other."""
    reached = {name: reach(name) for name in graph()}
    found: dict[str, frozenset[str]] = {}
    for name in graph():
        found[name] = frozenset(other for other in reached[name] if name in reached[other])
    return [set(group) for group in dict.fromkeys(found.values()) if group]


def reach(name: str) -> set[str]:
    """The modules that are imported by this one, or by one that it imports, and so on."""
    seen: set[str] = set()
    new = set(graph()[name])
    while new:
        seen |= new
        new = {other for one in new for other in graph()[one]} - seen
    return seen


def test_imports_of_all_kinds_are_seen() -> None:
    source = """
import cache_dit.errors
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from cache_dit.config.cache import DBCacheConfig
def late():
    from .. import metrics
    from ..engine import options
"""
    assert list(imported(source, ("cache_dit", "models"))) == [
        "errors",
        "config/cache",
        "metrics/__init__",
        "engine/options",
    ]


def test_every_module_has_a_place_in_the_order() -> None:
    assert [name for name in modules() if not place(name)] == []


def test_imports_go_to_what_is_lower_in_the_order() -> None:
    assert against_the_order() - AGAINST_THE_ORDER == set()


def test_nothing_in_the_house_imports_its_public_names() -> None:
    up = {
        (name, other)
        for name, others in graph().items()
        for other in others
        if place(name) not in PUBLIC and place(other) in PUBLIC
    }
    assert up - AGAINST_THE_ORDER == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert [group for group in circles() if not group <= IN_CIRCLES] == []


def test_no_folder_has_more_files_than_a_reader_takes_in() -> None:
    files = Counter(name.rpartition("/")[0] for name in modules() if not name.endswith("__init__"))
    full = {folder for folder, count in files.items() if count > MOST_FILES and folder != "models/families"}
    assert full == TOO_FULL


def test_exceptions_are_taken_off_when_they_are_mended() -> None:
    assert AGAINST_THE_ORDER - against_the_order() == set()
    assert IN_CIRCLES - {name for group in circles() for name in group} == set()
