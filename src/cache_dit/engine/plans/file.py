"""A plan as a small JSON file that people can read, and as a table."""

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
from cache_dit.engine.plans.plan import BranchSchedule, Conditions, Plan, PlanPoint, Quality
from cache_dit.errors import ConfigError

logger = logging.getLogger(__name__)

_WIDTH = 110

_GONE = ("guard", "guard_level", "sensitivities")
"""What files of earlier releases have, and nothing reads."""

_Part = TypeVar("_Part")


def to_dict(plan: Plan) -> dict[str, Any]:
    """A plan as plain values; what is not given is left out."""
    content: dict[str, Any] = _plain(plan)
    content["points"] = [_point(point) for point in plan.points]
    return content


def _point(point: PlanPoint) -> dict[str, Any]:
    branches = {
        name: {"mask": schedule.text, "rules": [rule.name for rule in schedule.rules]}
        for name, schedule in point.branches.items()
    }
    return {**_plain(point), "branches": branches}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts without what is None, tuples as lists, infinities as text: JSON has none."""
    if isinstance(value, BranchSchedule):
        return None
    if hasattr(value, "__dataclass_fields__"):
        entries = ((each.name, _plain(getattr(value, each.name))) for each in fields(value))
        return {name: entry for name, entry in entries if entry is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_dict(content: Mapping[str, Any]) -> Plan:
    """The plan that `to_dict` made these values of.

    Raises:
        ConfigError: a field is missing, unknown or cannot work.
    """
    if "guard" in content:
        logger.info("cache_dit: the plan's guard is left out, as this release has none: see plan.promise(level)")
    try:
        return _made(
            Plan,
            {name: value for name, value in content.items() if name not in _GONE},
            "plan",
            conditions=lambda value: _made(Conditions, value, "conditions"),
            points=lambda value: tuple(map(_read_point, _sequence("points", value))),
        )
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"this is no plan: {error}") from error


def _read_point(content: Any) -> PlanPoint:
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


def _made(cls: type[_Part], content: Any, where: str, **readers: Callable[[Any], Any]) -> _Part:
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


def write(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan as a JSON file: sorted keys, one branch a line."""
    Path(path).write_text(_pretty(to_dict(plan), "") + "\n", encoding="utf-8")


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


def read(path: str | os.PathLike[str]) -> Plan:
    """Read the file that `write` wrote.

    Raises:
        ConfigError: it is missing or no JSON, or a field of it is missing, unknown or cannot work.
    """
    name = os.fspath(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"plan={name!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise bad_value("plan", name, "a JSON file with an object")
    try:
        return from_dict(content)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def table(plan: Plan) -> str:
    """The points of a plan in Markdown, and its note."""
    heads = ("", "full steps", "work ÷", "measured ×", "mean", "5th percentile", "minimum", "pictures", "schedule")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for point in plan.points:
        lines.append(f"| {' | '.join(_cells(plan, point))} |")
    return "\n".join([*lines, *([plan.note] if plan.note else [])])


def _cells(plan: Plan, point: PlanPoint) -> list[str]:
    quality = point.quality
    told = ["–"] * 4
    if quality is not None:
        source = "measured" if point.measured else "predicted"
        told = [f"{value:.1f}" for value in (quality.mean, quality.p5, quality.minimum)]
        told[0] += f" ({quality.low:.1f}–{quality.high:.1f})"
        told.append(f"{quality.pictures} {'held out' if quality.held_out else source}")
    measured = "–" if point.measured_speedup is None else f"{point.measured_speedup:.2f}"
    masks = "; ".join(f"{name} {schedule.text}" for name, schedule in sorted(point.branches.items()))
    chosen = "→" if point.full_steps == plan.chosen else ""
    return [chosen, f"{point.full_steps} of {point.steps}", f"{point.ideal_speedup:.2f}", measured, *told, masks]
