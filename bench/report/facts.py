"""What is said of every results file: how far it came, what measured it, and with which settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from bench.report.section import Section
from bench.results import Results
from cache_dit.report.machine import Machine


def title(section: Section, results: Results | None) -> str:
    """The heading; a second file of one bench is told by its name."""
    second = results is not None and results.path.stem != section.bench
    return f"{section.title} ({results.path.name})" if second else section.title


def machine_text(results: Results) -> str:
    """The machine and its versions in a line."""
    known = {field.name: results.machine.get(field.name) for field in fields(Machine)}
    if any(known[name] is None for name in ("device", "system", "cores", "threads", "versions")):
        return ", ".join(f"{name} {value}" for name, value in results.machine.items())
    return str(Machine(**known))


def status(results: Results | None) -> str:
    """How far a bench came."""
    if results is None:
        return "not run"
    state = "finished" if results.finished else "not finished"
    return f"{state}, quick" if results.quick else state


def warning(results: Results) -> str:
    """What a reader must know before the numbers, or nothing."""
    said = []
    if results.quick:
        said.append("A quick run: it shows that the bench works, and its numbers say nothing.")
    if not results.finished:
        said.append(f"The run was not finished; rows so far: {len(results.rows)}.")
    return " ".join(said)


def targets(results: Results | None) -> str:
    """How many targets are reached, of all."""
    judged = [] if results is None else [one.reached for one in results.findings if one.reached is not None]
    return f"{sum(judged)} of {len(judged)}" if judged else ""


def duration(results: Results | None) -> str:
    """How long was measured."""
    if results is None:
        return ""
    minutes = results.seconds / 60
    if minutes < 2:
        return f"{results.seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def settings_rows(results: Results) -> Iterator[tuple[str, str]]:
    """The settings, one by one, with dots in the names of nested ones."""
    yield from _rows(results.settings, "")


def _rows(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, _listed(value)
        else:
            yield prefix + name, _word(value)


def _listed(values: list[Any]) -> str:
    if len(values) > 12 or any(isinstance(value, (list, Mapping)) for value in values):
        return f"{len(values)} of them, in the file"
    return ", ".join(map(_word, values))


def _word(value: Any) -> str:
    return {None: "–", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
