"""What a bench measured: one JSON file that grows row by row, so that a run that was ended goes on where it stood."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.findings import Finding
from cache_dit.errors import ConfigError

FORMAT = 1

#: Packages that a bench may measure with; those of `cache_dit.report.machine` come on top.
_PACKAGES = ("numpy", "pillow", "scikit-image", "torchmetrics", "lpips")

#: What makes measurements of two runs one: rows of another machine are not added to a file.
_SAME_MACHINE = ("device", "system", "cores", "threads", "versions")

Row = dict[str, Any]


@dataclass
class Results:
    """The rows of one bench, and the file they are in.

    Args:
        path: the file; saved after every row.
        bench: the bench's name.
        settings: what was asked for, as plain data; a file is gone on with only under the same.
        machine: what measured, with the versions of the packages that matter. A bench may add versions that it
            learns later, e.g. those of peers.
        rows: what was measured, raw samples too, by a key that a row has in every run.
        findings: what follows from the rows; empty until the bench is through.
        seconds: how long was measured, over all runs that the rows come from.
    """

    path: Path
    bench: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._counted_to = time.perf_counter()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        bench: str,
        settings: Mapping[str, Any],
        *,
        fresh: bool = False,
        device: str = "cpu",
        versions: Mapping[str, str] | None = None,
    ) -> Results:
        """Begin a file, or go on with one that the same bench left under the same settings on the same machine.

        Args:
            path: the file; its folder is made.
            bench: the bench's name.
            settings: plain data, of which every change makes other measurements.
            fresh: whether to throw away what is there.
            device: where the models run.
            versions: of further packages, e.g. peers.

        Raises:
            ConfigError: what is there was measured otherwise or cannot be read, or nothing can be written there.
        """
        from cache_dit.report.machine import describe_machine

        path = Path(path)
        machine = describe_machine(device).as_dict()
        machine["versions"] |= {**_installed(_PACKAGES), **(versions or {})}
        opened = cls(path, bench, _plain(settings, "the settings"), _plain(machine, "the machine"))
        if path.exists() and not fresh:
            there = cls.load(path)
            opened._check_same(there)
            return there
        opened.save()
        return opened

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Results:
        """Read a file.

        Raises:
            ConfigError: there is none, or it is not one of these.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {_reason(error)}; pass a file that a bench saved") from error
        try:
            data = json.loads(text, parse_constant=_refuse)
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}, and {FORMAT} is expected")
            findings = [Finding(**finding) for finding in data["findings"]]
            found = cls(path, data["bench"], data["settings"], data["machine"], data["rows"], findings, data["seconds"])
            found._check_kinds()
        except (ValueError, KeyError, TypeError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"{path} is not a whole file of results: {what}; measure it anew with --fresh, or pass another --out"
            ) from error
        return found

    @property
    def quick(self) -> bool:
        """Whether it only shows that the bench works: its numbers say nothing."""
        return bool(self.settings.get("quick"))

    @property
    def finished(self) -> bool:
        """Whether the bench came to its end."""
        return bool(self.findings)

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Add a row, or replace it, and save. Findings speak of all rows: those that were there are dropped.

        Args:
            key: by which the row is known in every run.
            row: plain data, without NaN and infinity.

        Raises:
            ConfigError: it cannot be written as JSON.
        """
        self.rows[key] = _plain(row, f"row {key!r}")
        self.findings = []
        self.save()

    def row(self, key: str, make: Callable[[], Mapping[str, Any]]) -> Row:
        """The row with this key: as it is in the file, or made and saved now."""
        if key not in self.rows:
            self.add(key, make())
        return self.rows[key]

    def finish(self, findings: Iterable[Finding]) -> None:
        """Save what follows from the rows: the bench is through.

        Raises:
            ConfigError: two findings of a group have one name, by which they are compared, or one is not plain data.
        """
        found = [Finding(**_plain(asdict(finding), f"finding {finding.name!r}")) for finding in findings]
        times = Counter((finding.group, finding.name) for finding in found)
        if twice := [name for name, count in times.items() if count > 1]:
            raise ConfigError(f"two findings of group {twice[0][0]!r} are called {twice[0][1]!r}: give each its name")
        self.findings = found
        self.save()

    def save(self) -> None:
        """Write the file: whole or not at all, a row to a line."""
        now = time.perf_counter()
        self.seconds += now - self._counted_to
        self._counted_to = now
        beside = self.path.with_name(f"{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(self._text(), encoding="utf-8")
            os.replace(beside, self.path)
        except OSError as error:
            if beside.is_file():
                beside.unlink()
            raise ConfigError(f"{self.path} cannot be written: {_reason(error)}; pass another --out") from error

    def _text(self) -> str:
        parts = {
            "format": str(FORMAT),
            "bench": _line(self.bench),
            "settings": json.dumps(self.settings, indent=1, ensure_ascii=False, allow_nan=False),
            "machine": json.dumps(self.machine, indent=1, ensure_ascii=False, allow_nan=False),
            "seconds": f"{self.seconds:.1f}",
            "rows": _block("{}", (f"{_line(key)}: {_line(row)}" for key, row in self.rows.items())),
            "findings": _block("[]", (_line(asdict(finding)) for finding in self.findings)),
        }
        return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "\n}\n"

    def _check_kinds(self) -> None:
        kinds = {"bench": str, "settings": dict, "machine": dict, "rows": dict, "seconds": (int, float)}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"its {name} is {getattr(self, name)!r}")

    def _check_same(self, there: Results) -> None:
        """Raise unless what is there was measured as this would be."""
        if there.bench != self.bench:
            other = f"is of the bench {there.bench!r}, not {self.bench!r}"
        elif changes := differences(there.settings, self.settings):
            other = f"was measured with other settings ({'; '.join(changes)})"
        elif changes := machine_differences(there.machine, self.machine):
            other = f"was measured elsewhere ({'; '.join(changes)})"
        else:
            return
        raise ConfigError(f"{self.path} {other}: pass --fresh to throw it away, or another --out")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two sets of settings differ in, a line each, with dots in the names of nested ones."""
    one, other = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name}: {_shown(one, name)} there, {_shown(other, name)} now"
        for name in dict.fromkeys([*one, *other])
        if one.get(name, _MISSING) != other.get(name, _MISSING)
    ]


def machine_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two machines differ in, a line each: where both tell it, and without what changes from hour to hour."""
    one, other = ({name: machine.get(name) for name in _SAME_MACHINE} for machine in (before, now))
    shared = set(one["versions"] or ()) & set(other["versions"] or ())
    for machine in (one, other):
        machine["versions"] = {name: version for name, version in (machine["versions"] or {}).items() if name in shared}
    return differences(one, other)


_MISSING = object()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "nothing"
    text = _line(settings[name])
    return text if len(text) <= 60 else text[:57] + "…"


def _plain(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """As it reads back from the file, so that a row is the same whether it was just made or not."""
    try:
        plain: dict[str, Any] = json.loads(_line(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} cannot be saved: {error}; pass plain data, and None for NaN and infinity") from error
    return plain


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _block(brackets: str, lines: Iterable[str]) -> str:
    inside = ",\n".join(lines)
    return f"{brackets[0]}\n{inside}\n{brackets[1]}" if inside else brackets


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
