"""The results files of a folder, and the section that each bench has for its own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import bench
from bench.report.section import Section, findings_by_group
from bench.results import Results
from cache_dit.errors import ConfigError

#: In which order the report shows the benches; others come after these.
ORDER = ("quality", "overhead", "scaling", "gpu")


def sections() -> list[Section]:
    """The section of every bench that has one: a new ``bench/NAME/section.py`` is found by itself."""
    found = []
    for package in pkgutil.iter_modules(bench.__path__):
        modules = [module.name for module in _modules(package)]
        if package.name != "report" and "section" in modules:
            found.append(importlib.import_module(f"bench.{package.name}.section").SECTION)
    return sorted(found, key=lambda section: (_place(section.bench), section.bench))


def read_folder(folder: Path) -> tuple[list[Results], list[str]]:
    """The results in a folder, in the order of the report, and for every other JSON file a line that says why not."""
    results, unread = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(Results.load(path))
        except ConfigError as error:
            unread.append(str(error))
    return sorted(results, key=lambda one: (_place(one.bench), one.bench, one.path.name)), unread


def paired(
    results: Sequence[Results], known: Iterable[Section], *, whole: bool = True
) -> list[tuple[Section, Results | None]]:
    """Each section with its results; a bench without any has None, and results without a section a plain one.

    Args:
        results: as `read_folder` gives them.
        known: the sections.
        whole: whether benches without results are told of.
    """
    known = list(known)
    pairs: list[tuple[Section, Results | None]] = []
    for section in known:
        own = [one for one in results if one.bench == section.bench]
        pairs += [(section, one) for one in own] or ([(section, None)] if whole else [])
    names = {section.bench for section in known}
    return pairs + [(_plain(one.bench), one) for one in results if one.bench not in names]


def _modules(package: pkgutil.ModuleInfo) -> Iterable[pkgutil.ModuleInfo]:
    folder = Path(bench.__path__[0]) / package.name
    return pkgutil.iter_modules([str(folder)]) if package.ispkg else ()


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def _plain(name: str) -> Section:
    """The section of a bench that has none: its findings."""
    return Section(
        name,
        title=name.capitalize(),
        repeat=f"cache-dit bench {name}",
        text=lambda results: findings_by_group(results.findings),
        figures=lambda results: (),
    )
