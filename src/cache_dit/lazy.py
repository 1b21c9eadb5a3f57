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
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """What a package's ``__init__`` binds to ``__getattr__`` and ``__dir__``.

    Args:
        package: the package's ``__name__``.
        places: where its names are: a module below the package (``"config.cache"``), or a class in one
            (``"config.cache:CacheType"``, whose attributes are meant), and the names found there.
        modules: modules and packages below it that are attributes of it, imported or not.
        gone: names that it had, each with where the text is that says what to use instead (``"config.base:TEXT"``).
    """
    place = {name: f"{where}{'.' if ':' in where else ':'}{name}" for where, names in places.items() for name in names}

    def found(where: str) -> Any:
        module, _, path = where.partition(":")
        return attrgetter(path)(importlib.import_module(f"{package}.{module}"))

    def load(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in place:
            return found(place[name])
        raise AttributeError(found(gone[name]) if name in gone else f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *place, *modules})

    return load, names
