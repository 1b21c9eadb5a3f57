"""Code written for the reference runs here: its public names exist, and take what they took there.

``data/signatures.json`` lists the reference's names: of a function or class the parameters with their defaults, of a
dataclass the fields, of an enum the members.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

REFERENCE: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "signatures.json").read_text(encoding="utf-8")
)

#: What is not there yet, by the room that it will be in. A name that has arrived is to be taken off.
NOT_YET = {
    "serve": [name for name in REFERENCE if name.startswith("cache_dit.serve.")],
    "platforms": [name for name in REFERENCE if name.startswith("cache_dit.platforms.")],
    "profiler": [
        "cache_dit.ProfilerContext",
        "cache_dit.create_profiler_context",
        "cache_dit.get_profiler_output_dir",
        "cache_dit.profile_function",
        "cache_dit.set_profiler_output_dir",
    ],
    "quantize": ["cache_dit.quantize"],
    "compile": ["cache_dit.set_compile_configs"],
    "parallelism": ["cache_dit.parallelism.enable_parallelism", "cache_dit.parallelism.remove_parallelism_stats"],
}
MISSING = {name for names in NOT_YET.values() for name in names}
PRESENT = sorted(set(REFERENCE) - MISSING)


def found(name: str) -> Any:
    """What is found under a dotted name, or None."""
    path, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(path), last, None)
    except ModuleNotFoundError:
        return None


def of_kind(kind: str) -> list[str]:
    return [name for name in PRESENT if REFERENCE[name]["kind"] == kind]


def as_data(value: Any) -> Any:
    """A default as the table has it: enum members and configurations by their names."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return list(value) if isinstance(value, tuple) else value


def default_of(field: dataclasses.Field[Any]) -> Any:
    return as_data(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())


@pytest.mark.parametrize("name", sorted(MISSING))
def test_a_name_that_has_arrived_is_off_the_list(name: str):
    assert found(name) is None, f"{name} is there: take it off NOT_YET"


@pytest.mark.parametrize("name", PRESENT)
def test_a_name_of_the_reference_exists(name: str):
    assert found(name) is not None


@pytest.mark.parametrize("name", [*of_kind("function"), *of_kind("class")])
def test_a_function_or_class_takes_what_it_took_there(name: str):
    parameters = list(inspect.signature(found(name)).parameters.values())
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for place, (parameter, *default) in enumerate(REFERENCE[name]["parameters"]):
        if parameter.startswith("**"):
            assert takes_any
            continue
        assert by_position[place].name == parameter
        if default:
            assert as_data(by_position[place].default) == default[0]
    for further in by_position[len(REFERENCE[name]["parameters"]) :]:
        assert further.default is not further.empty


@pytest.mark.parametrize("name", of_kind("dataclass"))
def test_a_dataclass_has_the_fields_that_it_had_there(name: str):
    ours = {field.name: field for field in dataclasses.fields(found(name))}
    fields = REFERENCE[name]["fields"]
    positional = [field.name for field in ours.values() if field.init and not field.kw_only]
    assert positional[: len(fields)] == [field for field, _ in fields]
    assert {field: default_of(ours[field]) for field, _ in fields} == dict(fields)


@pytest.mark.parametrize("name", of_kind("enum"))
def test_an_enum_has_the_members_that_it_had_there(name: str):
    assert {member.name: as_data(member.value) for member in found(name)} == REFERENCE[name]["members"]


#: Constants that say which version this is.
OURS = ("cache_dit.version_tuple",)


@pytest.mark.parametrize("name", [name for name in of_kind("constant") if name not in OURS])
def test_a_constant_has_the_value_that_it_had_there(name: str):
    assert as_data(found(name)) == REFERENCE[name]["value"]
