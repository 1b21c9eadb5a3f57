"""A plan as a small JSON file that people can read."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from cache_dit.config.base import bad_value, unknown_key
from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.errors import ConfigError

logger = logging.getLogger(__name__)

_WIDTH = 110

_GONE = ("guard", "guard_level", "sensitivities")
"""What older files have, and nothing reads."""

_RENAMED = {"conditions": "scope"}
"""What older files call otherwise."""

_Made = TypeVar("_Made")


def plain(value: Any) -> Any:
    """Dataclasses as dicts without what is as usual, tuples as lists, infinities as text: JSON has none."""
    if isinstance(value, BranchSchedule):
        return {"mask": value.text, "rules": [rule.name for rule in value.rules]}
    if hasattr(value, "__dataclass_fields__"):
        entries = ((each, plain(getattr(value, each.name))) for each in fields(value))
        return {each.name: entry for each, entry in entries if entry != each.metadata.get("left_out")}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plan_of(cls: type[_Made], content: Mapping[str, Any]) -> _Made:
    """The plan that `plain` made these values of.

    Args:
        cls: the class of plans.
        content: the values.

    Raises:
        ConfigError: a field is missing, unknown or cannot work.
    """
    if "guard" in content:
        logger.info("cache_dit: the plan's guard is left out, as this release has none: see plan.promise(level)")
    known = {_RENAMED.get(name, name): value for name, value in content.items() if name not in _GONE}
    try:
        return _made(
            cls,
            known,
            "plan",
            scope=lambda value: _made(PlanScope, value, "scope"),
            points=lambda value: tuple(map(_point, _sequence("points", value))),
        )
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"this is no plan: {error}") from error


def _point(content: Any) -> PlanPoint:
    return _made(
        PlanPoint,
        content,
        "points",
        branches=lambda value: {
            name: _made(BranchSchedule, entry, f"branches[{name!r}]")
            for name, entry in _mapping("branches", value).items()
        },
        predicted=lambda value: _made(Quality, value, "predicted"),
        measured=lambda value: _made(Quality, value, "measured"),
    )


def _made(cls: type[_Made], content: Any, where: str, **readers: Callable[[Any], Any]) -> _Made:
    """A dataclass of its fields' values.

    Args:
        cls: its class.
        content: the values by name.
        where: what it is called in messages.
        **readers: for fields that are no plain values, what makes them.

    Raises:
        ConfigError: a field is missing, unknown or cannot work.
    """
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    for key in _mapping(where, content):
        if key not in known:
            raise unknown_key(str(key), known, where=where)
    for name, each in known.items():
        if name not in content and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{where}: the field {name!r} is missing")
    values = {
        name: readers[name](value) if name in readers and value is not None else _value(value)
        for name, value in content.items()
    }
    return cls(**values)


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _value(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(map(_value, value))
    return float(value) if value in ("inf", "-inf", "nan") else value


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise bad_value(name, value, "a mapping")
    return value


def _sequence(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise bad_value(name, value, "a list")
    return list(value)


def write(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write plain values as a JSON file: sorted keys, one branch a line."""
    Path(path).write_text(_pretty(content, "") + "\n", encoding="utf-8")


def _pretty(value: Any, indent: str) -> str:
    """JSON, broken into lines where it is long, but never inside a list of numbers or names, or a branch."""
    line = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    nested = any(isinstance(entry, (dict, list)) for entry in entries)
    if not entries or (not nested and (isinstance(value, list) or len(line) <= _WIDTH)) or "mask" in value:
        return line
    inner = indent + " "
    if isinstance(value, list):
        lines = [_pretty(entry, inner) for entry in value]
        return "[\n" + ",\n".join(inner + entry for entry in lines) + "\n" + indent + "]"
    lines = [f"{json.dumps(key)}: {_pretty(value[key], inner)}" for key in sorted(value)]
    return "{\n" + ",\n".join(inner + entry for entry in lines) + "\n" + indent + "}"


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the file that `write` wrote.

    Raises:
        ConfigError: it is missing, or has no JSON object.
    """
    name = os.fspath(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"plan={name!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise bad_value("plan", name, "a JSON file with an object")
    return content
