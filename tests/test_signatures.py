"""Code written for the reference runs here: its public names take what they took there.

``data/signatures.json`` lists the reference's names: of a function or class the parameters with their defaults, of a
dataclass the fields, of an enum the members. That each exists, ``caching/test_old_paths.py`` shows.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from typing import Any

import pytest

from tests.kit.reference import SIGNATURES, found, not_yet

PRESENT = sorted(name for name in SIGNATURES if not not_yet(name))


def of_kind(kind: str) -> list[str]:
    return [name for name in PRESENT if SIGNATURES[name]["kind"] == kind]


def as_data(value: Any) -> Any:
    """A default as the table has it: enum members and configurations by their names."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return list(value) if isinstance(value, tuple) else value


def default_of(field: dataclasses.Field[Any]) -> Any:
    return as_data(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())


@pytest.mark.parametrize("name", [*of_kind("function"), *of_kind("class")])
def test_a_function_or_class_takes_what_it_took_there(name: str):
    parameters = list(inspect.signature(found(name)).parameters.values())
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for place, (parameter, *default) in enumerate(SIGNATURES[name]["parameters"]):
        if parameter.startswith("**"):
            assert takes_any
            continue
        assert by_position[place].name == parameter
        if default:
            assert as_data(by_position[place].default) == default[0]
    for further in by_position[len(SIGNATURES[name]["parameters"]) :]:
        assert further.default is not further.empty


@pytest.mark.parametrize("name", of_kind("dataclass"))
def test_a_dataclass_has_the_fields_that_it_had_there(name: str):
    ours = {field.name: field for field in dataclasses.fields(found(name))}
    fields = SIGNATURES[name]["fields"]
    positional = [field.name for field in ours.values() if field.init and not field.kw_only]
    assert positional[: len(fields)] == [field for field, _ in fields]
    assert {field: default_of(ours[field]) for field, _ in fields} == dict(fields)


@pytest.mark.parametrize("name", of_kind("enum"))
def test_an_enum_has_the_members_that_it_had_there(name: str):
    assert {member.name: as_data(member.value) for member in found(name)} == SIGNATURES[name]["members"]


#: Constants that say which version this is.
OURS = ("cache_dit.version_tuple",)


@pytest.mark.parametrize("name", [name for name in of_kind("constant") if name not in OURS])
def test_a_constant_has_the_value_that_it_had_there(name: str):
    assert as_data(found(name)) == SIGNATURES[name]["value"]
