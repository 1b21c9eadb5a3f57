"""What a planning run knows so far, so that one that was broken off goes on where it stood."""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np

from cache_dit.errors import ConfigError

_FORMAT = 1


class Store:
    """Arrays and numbers by name, in a file (SQLite) that is complete after each entry, or in memory.

    A planning run asks for everything by name, in an order that depends on nothing but what it was told before: with
    the file of a run that was broken off, all up to there is answered at once.

    Args:
        path: the file, made where it is missing; None: in memory.
        settings: what the run was asked for, as JSON can hold it.

    Raises:
        ConfigError: the file is none of these, or is of a run with other settings.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, settings: dict[str, Any] | None = None) -> None:
        self.place = ":memory:" if path is None else os.fspath(path)
        try:
            self._connection = sqlite3.connect(self.place, isolation_level=None)
            self._connection.execute("CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, content BLOB)")
            known = self._read("settings")
        except sqlite3.Error as error:
            raise ConfigError(f"checkpoint={self.place!r} cannot be used: {error}; pass another path") from error
        asked = json.loads(json.dumps({"format": _FORMAT, **(settings or {})}))
        if known is None:
            self._write("settings", json.dumps(asked).encode())
        elif (before := json.loads(known)) != asked:
            different = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
            raise ConfigError(
                f"checkpoint={self.place!r} is of a planning with other {', '.join(different)}: pass what it was "
                "begun with, or another path"
            )
        #: How many answers came from the file.
        self.recalled = 0

    def array(self, name: str, make: Callable[[], Any]) -> Any:
        """The array of this name; made, and kept, where it is not known."""
        content = self._read(name)
        if content is not None:
            self.recalled += 1
            return np.load(io.BytesIO(content), allow_pickle=False)
        made = np.asarray(make())
        buffer = io.BytesIO()
        np.save(buffer, made, allow_pickle=False)
        self._write(name, buffer.getvalue())
        return made

    def data(self, name: str, make: Callable[[], Any]) -> Any:
        """The numbers of this name, as JSON holds them; made, and kept, where they are not known."""
        content = self._read(name)
        if content is not None:
            self.recalled += 1
            return json.loads(content)
        made = make()
        self._write(name, json.dumps(made).encode())
        return json.loads(json.dumps(made))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self, name: str) -> bytes | None:
        row = self._connection.execute("SELECT content FROM entries WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def _write(self, name: str, content: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (name, content))
