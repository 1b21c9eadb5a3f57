"""What a bench measured: one JSON file that grows row by row, so that a run that was ended goes on where it stood."""

from __future__ import annotations

import json
import os
import subprocess
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
ROOT = Path(__file__).parent.parent
#: How this project is called beside the package cache-dit of PyPI.
OURS = "cache_dit (this project)"
#: Packages that a bench may measure with; those of `cache_dit.report.machine` come on top.
_PACKAGES = {"numpy", "pillow", "scikit-image", "torchmetrics", "lpips"}
#: What makes measurements of two runs one: rows of another machine are not added to a file.
_SAME_MACHINE = ("device", "system", "cores", "threads", "versions")
#: What a file holds; seconds come after the machine.
_KINDS = {"bench": str, "settings": dict, "machine": dict, "rows": dict, "findings": list, "seconds": (int, float)}

Row = dict[str, Any]


def row_of(findings: Iterable[Finding], **raw: Any) -> Row:
    """Raw numbers with what follows from them."""
    return {**raw, "findings": [asdict(finding) for finding in findings]}


def findings_of(rows: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """What follows from rows, by group; rows that failed have none."""
    told = [Finding(**one) for row in rows for one in row.get("findings", ())]
    groups = list(dict.fromkeys(one.group for one in told))
    return sorted(told, key=lambda one: groups.index(one.group))


def failure(error: Exception) -> str:
    """What went wrong, in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'it says nothing'}"


@dataclass
class Results:
    """The rows of one bench, raw samples too, by keys that they have in every run, and the file they are in.

    A file is gone on with only under the same settings on the same machine. ``findings`` follow from the rows, and are
    empty until the bench is through; ``seconds`` and ``commits`` are those of all runs that the rows come from, with a
    ``+`` at a commit where the code was changed since.
    """

    path: Path
    bench: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    commits: list[str] = field(default_factory=list)

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
    ) -> Results:
        """Begin a file, or go on with one that the same bench left under the same settings on the same machine.

        Raises:
            ConfigError: what is there was measured otherwise or cannot be read, or nothing can be written there.
        """
        import cache_dit
        from cache_dit.report.machine import describe_machine

        path, machine = Path(path), describe_machine(device).as_dict()
        installed = {one.name.lower(): one.version for one in metadata.distributions() if one.name}
        machine["versions"] |= {name: installed[name] for name in sorted(_PACKAGES & installed.keys())}
        machine["versions"]["cache-dit"] = cache_dit.__version__
        opened = cls(path, bench, _plain(settings, "the settings"), _plain(machine, "the machine"))
        if not fresh and path.exists():
            there = cls.load(path)
            if other := opened._unlike(there):
                raise ConfigError(f"{path} {other}: pass --fresh to throw it away, or another --out")
            opened = there
        else:
            opened.save()
        if (commit := commit_of(ROOT)) and commit not in opened.commits:
            opened.commits.append(commit)
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
            for name, kind in _KINDS.items():
                if not isinstance(data[name], kind):  # type: ignore[arg-type]
                    raise ValueError(f"its {name} is {data[name]!r}")
            named = {name: data[name] for name in _KINDS} | {"commits": data.get("commits", [])}
            return cls(path, **{**named, "findings": [Finding(**finding) for finding in data["findings"]]})
        except (ValueError, KeyError, TypeError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"{path} is not a whole file of results: {what}; measure it anew with --fresh, or pass another --out"
            ) from error

    @property
    def quick(self) -> bool:
        """Whether it only shows that the bench works: its numbers say nothing."""
        return bool(self.settings.get("quick"))

    @property
    def finished(self) -> bool:
        """Whether the bench came to its end."""
        return bool(self.findings)

    @property
    def ours(self) -> str:
        """This project with its version, as tables call it."""
        version = (self.machine.get("versions") or {}).get("cache-dit", "")
        return f"{OURS} {version}" if version[:1].isdigit() and version[:2] != "1." else OURS  # 1.x: once, a peer's

    @property
    def made_by(self) -> str:
        """What measured, for people: this project, its version, and the commit."""
        return ", ".join([self.ours, *(f"commit {commit}" for commit in self.commits)])

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Add a row, or replace it, and save. Findings speak of all rows: those that were there are dropped.

        Raises:
            ConfigError: it is no plain data, e.g. NaN or infinity.
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
        for (group, name), count in Counter((finding.group, finding.name) for finding in found).items():
            if count > 1:
                raise ConfigError(f"two findings of group {group!r} are called {name!r}: give each its name")
        self.findings = found
        self.save()

    def save(self) -> None:
        """Write the file: whole or not at all, a row to a line."""
        now = time.perf_counter()
        self.seconds += now - self._counted_to
        self._counted_to = now
        told = {"format": FORMAT, **{name: getattr(self, name) for name in ("bench", "settings", "commits", "machine")}}
        parts = {name: json.dumps(value, indent=1, ensure_ascii=False) for name, value in told.items()}
        parts["seconds"] = f"{self.seconds:.1f}"
        parts["rows"] = _block("{}", (f"{_line(key)}: {_line(row)}" for key, row in self.rows.items()))
        parts["findings"] = _block("[]", (_line(asdict(finding)) for finding in self.findings))
        text = "{\n" + ",\n".join(f'"{name}": {value}' for name, value in parts.items()) + "\n}\n"
        beside = self.path.with_name(f"{self.path.name}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, self.path)
        except OSError as error:
            if beside.is_file():
                beside.unlink()
            raise ConfigError(f"{self.path} cannot be written: {_reason(error)}; pass another --out") from error

    def _unlike(self, there: Results) -> str:
        """In what a file was measured otherwise than this would be, or nothing."""
        if there.bench != self.bench:
            return f"is of the bench {there.bench!r}, not {self.bench!r}"
        if changes := differences(there.settings, self.settings):
            return f"was measured with other settings ({'; '.join(changes)})"
        changes = machine_differences(there.machine, self.machine)
        return f"was measured elsewhere ({'; '.join(changes)})" if changes else ""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two sets of settings differ in, a line each, with dots in the names of nested ones."""
    both = [{name: _line(value) for name, value in flat_settings(one)} for one in (before, now)]
    one, other = ({name: text if len(text) <= 60 else f"{text[:57]}…" for name, text in some.items()} for some in both)
    return [
        f"{name}: {one.get(name, 'nothing')} there, {other.get(name, 'nothing')} now"
        for name in dict.fromkeys([*one, *other])
        if both[0].get(name) != both[1].get(name)
    ]


def machine_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two machines differ in, a line each: where both tell it, and without what changes from hour to hour."""
    one, other = ({name: machine.get(name) for name in _SAME_MACHINE} for machine in (before, now))
    shared = set(one["versions"] or ()) & set(other["versions"] or ())
    for machine in (one, other):
        machine["versions"] = {name: version for name, version in (machine["versions"] or {}).items() if name in shared}
    return differences(one, other)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, with dots in the names of nested ones."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


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


def commit_of(folder: Path) -> str:
    """The commit that a checkout stands on, with a ``+`` where ``src`` or ``bench`` was changed since; or nothing."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=7", "HEAD")
        return f"{commit}+" if commit and git("status", "--porcelain", "--", "src", "bench/*.py") else commit
    except OSError:
        return ""  # there is no git
