"""A package's public names, each imported when it is asked for (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any


def lazy_names(
    package: str,
    places: Mapping[str, Sequence[str]],
    modules: Sequence[str] = (),
    gone: Mapping[str, str] = MappingProxyType({}),
    root: str | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a package's ``__init__`` binds to ``__getattr__`` and ``__dir__``.

    Args:
        package: the package's ``__name__``.
        places: where its names are: a module below the package (``"config.cache"``), or a class in one
            (``"config.cache:CacheType"``, whose attributes are meant), and the names found there. ``"old=new"`` takes
            one under another name, ``"*"`` whatever public name else is asked for.
        modules: modules and packages below it that are attributes of it, imported or not.
        gone: names that it had, each with where the text is that says what to use instead (``"config.base:TEXT"``).
        root: the package that ``places``, ``modules`` and ``gone`` are below; None: ``package``.
    """
    root = root or package
    place: dict[str, str] = {}
    further = [where for where, names in places.items() if "*" in names]
    for where, names in places.items():
        for old, _, new in (name.partition("=") for name in names):
            if old != "*":
                place[old] = f"{where}{'.' if ':' in where else ':'}{new or old}"

    def found(where: str) -> Any:
        module, _, path = where.partition(":")
        return attrgetter(path)(importlib.import_module(f"{root}.{module}"))

    def load(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{root}.{name}")
        if name in place:
            return found(place[name])
        for where in further:
            if not name.startswith("_") and hasattr(module := importlib.import_module(f"{root}.{where}"), name):
                return getattr(module, name)
        raise AttributeError(found(gone[name]) if name in gone else f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        others = (dir(importlib.import_module(f"{root}.{where}")) for where in further)
        return sorted({*vars(sys.modules[package]), *place, *modules}.union(*others))

    return load, listed
