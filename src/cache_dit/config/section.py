"""A mapping of options and where it stands, so that every error in a file names the file and the line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache_dit.config.base import bad_value, unknown_key
from cache_dit.errors import ConfigError

if TYPE_CHECKING:
    from yaml import Node

# YAML 1.1 reads 1e-8, without a point, as text.
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True)
class Section:
    """A mapping of options, of a dict or of a YAML file.

    Args:
        values: the options by name.
        name: what it is called in messages, e.g. `"cache_config"`.
        file: the file it comes from; None for a dict.
        node: its YAML node, where there is one.
        line: where it begins in the file, from 1.
    """

    values: Mapping[str, Any]
    name: str
    file: str | None = None
    node: Node | None = None
    line: int = 1

    def refusal(self, message: object, key: str | None = None) -> ConfigError:
        """The error that says `message` of the option `key`, or of the whole section, and where it stands."""
        if self.file is None:
            return ConfigError(str(message))
        line = self.line if key is None else self._find(key)[1]
        return ConfigError(f"{self.file}, line {line}: {message}")

    @contextmanager
    def naming(self, key: str | None = None) -> Iterator[None]:
        """Make a `ConfigError` raised inside say where `key`, or the section, stands."""
        try:
            yield
        except ConfigError as error:
            if self.file is None:
                raise
            raise self.refusal(error, key) from error

    def check_keys(self, known: Iterable[str]) -> None:
        """Raise `ConfigError` for the first key that is not `known`."""
        known = list(known)
        for key in self.values:
            if key not in known:
                raise self.refusal(unknown_key(str(key), known, where=self.name), key)

    def given(self, key: str) -> Any:
        """The value of an option; None where it was not given."""
        value = self.values.get(key)
        return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value

    def sources(self, names: Mapping[str, str]) -> dict[str, str]:
        """For each field that some key of this section sets, that key.

        Args:
            names: the keys that may be used, each with the field that it sets; several may set the same.

        Raises:
            ConfigError: two keys set the same field.
        """
        found: dict[str, str] = {}
        for key, field in names.items():
            if key not in self.values or (field in found and self.given(key) is None):
                continue
            if field in found and self.given(found[field]) is not None:
                raise self.refusal(f"{self.name}: {found[field]} and {key} mean the same: expected one of them", key)
            found[field] = key
        return found

    def child(self, key: str) -> Section:
        """The mapping at `key`, empty where it is null.

        Raises:
            ConfigError: there is something else than a mapping.
        """
        node, line = self._find(key)
        return self._nested(self.values[key], key, node, line, key)

    def children(self, key: str) -> list[Section]:
        """The mappings of the list at `key`, each empty where it is null.

        Raises:
            ConfigError: there is something else than a list of mappings.
        """
        entries = self.values[key]
        if not isinstance(entries, (list, tuple)):
            raise self.refusal(bad_value(key, entries, "a list of sections"), key)
        parent, line = self._find(key)
        nodes = [None] * len(entries) if parent is None else parent.value
        return [
            self._nested(entry, f"{key}[{index}]", node, line if node is None else _line(node), key)
            for index, (entry, node) in enumerate(zip(entries, nodes, strict=True))
        ]

    def _nested(self, values: Any, name: str, node: Node | None, line: int, key: str) -> Section:
        if values is None:
            values, node = {}, None
        if not isinstance(values, Mapping):
            raise self.refusal(bad_value(name, values, "a mapping of options"), key)
        return Section(values, name, self.file, node, line)

    def _find(self, key: str) -> tuple[Node | None, int]:
        """The node of an option's value, and the line of its key; the section's own line where it cannot be told."""
        for name, value in reversed(getattr(self.node, "value", [])):  # what came in by `<<` stands before the rest
            if name.value == str(key):
                return value, _line(name)
        return None, self.line


def read_section(path_or_dict: str | os.PathLike[str] | Mapping[str, Any]) -> Section:
    """The whole of a YAML file, or of a dict, as a section.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is no YAML, holds no mapping, or holds a key twice; or neither a path nor a dict was passed.
    """
    if isinstance(path_or_dict, Mapping):
        return Section(path_or_dict, "configuration")
    if not isinstance(path_or_dict, (str, os.PathLike)):
        raise bad_value("path_or_dict", path_or_dict, "the path of a YAML file, or a dict")
    file = os.fspath(path_or_dict)
    with open(file, "rb") as stream:
        values, node = _parse(stream.read(), file)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file}: expected a mapping of options, e.g. 'cache_config:', not {values!r}")
    return Section(values, "configuration", file, node)


def _parse(content: bytes, file: str) -> tuple[Any, Node | None]:
    """What a YAML document says, and its nodes, which know their lines."""
    import yaml

    try:
        loader = yaml.SafeLoader(content)
        try:
            node = loader.get_single_node()
            _refuse_repeated(node, file, set())
            return (None, None) if node is None else (loader.construct_document(node), node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or an encoding that cannot be
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from error


def _refuse_repeated(node: Node | None, file: str, seen: set[int]) -> None:
    """Raise `ConfigError` for a mapping with the same key twice, of which YAML would quietly take the last."""
    if node is None or id(node) in seen or isinstance(node.value, str):
        return
    seen.add(id(node))
    keys: set[str] = set()
    for entry in node.value:
        key, value = entry if isinstance(entry, tuple) else (None, entry)
        if key is not None and isinstance(key.value, str):
            if key.value in keys:
                raise ConfigError(f"{file}, line {_line(key)}: {key.value!r} is given twice")
            keys.add(key.value)
        _refuse_repeated(value, file, seen)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
