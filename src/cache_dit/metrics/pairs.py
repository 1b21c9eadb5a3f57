"""Which file is compared with which: the files of two folders, by name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_dit.errors import ConfigError
from cache_dit.metrics.pictures import SUFFIXES

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
"""The files in a folder that are videos; case does not matter."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Pairs:
    """The pairs of files of two folders, or of two files.

    Args:
        pairs: the paths (true, test), in the natural order of the first.
        only_true: files of the first folder without a partner in the second.
        only_test: files of the second folder without a partner in the first.

    ``len(pairs) + len(only_true)`` is the number of files in the first folder, ``len(pairs) + len(only_test)`` that in
    the second.
    """

    pairs: tuple[tuple[Path, Path], ...]
    only_true: tuple[Path, ...] = ()
    only_test: tuple[Path, ...] = ()

    @property
    def left_out(self) -> int:
        """How many files have no partner."""
        return len(self.only_true) + len(self.only_test)


def picture_pairs(true: PathLike, test: PathLike) -> Pairs:
    """The pictures of two folders that belong together, or two picture files.

    Folders are read with all folders below them. A file's partner has the same path below its folder; of those left,
    the same file name, where no other on either side has it. A file without a partner is left out, and counted.

    Raises:
        ConfigError: a path does not exist, one is a file and one a folder, a folder has no picture, or no file has a
            partner.
    """
    return _pairs(Path(true), Path(test), SUFFIXES, "pictures")


def video_pairs(true: PathLike, test: PathLike) -> Pairs:
    """As `picture_pairs`, for videos."""
    return _pairs(Path(true), Path(test), VIDEO_SUFFIXES, "videos")


def find_pictures(folder: PathLike) -> list[Path]:
    """The pictures of a folder and the folders below it, in natural order: by the last number in their names.

    Raises:
        ConfigError: there is no such folder, or it has no picture.
    """
    return _find(Path(folder), SUFFIXES, "pictures")


def find_videos(folder: PathLike) -> list[Path]:
    """As `find_pictures`, for videos."""
    return _find(Path(folder), VIDEO_SUFFIXES, "videos")


def natural_key(path: Path) -> tuple[int, str]:
    """What paths are sorted by: the last number in the file's name, -1 where there is none, then the whole path."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.as_posix())


def _pairs(true: Path, test: Path, suffixes: Sequence[str], what: str) -> Pairs:
    for path in (true, test):
        if not path.exists():
            raise ConfigError(f"{path} does not exist: pass a file or a folder of {what}")
    if true.is_dir() != test.is_dir():
        folder, file = (true, test) if true.is_dir() else (test, true)
        raise ConfigError(f"{folder} is a folder and {file} a file: pass two folders or two files")
    if not true.is_dir():
        return Pairs(((true, test),))
    ours, theirs = _find(true, suffixes, what), _find(test, suffixes, what)
    partner = _partners(ours, theirs, true, test)
    if not partner:
        raise ConfigError(
            f"no file in {true} ({len(ours)} {what}) has a partner of the same name in {test} ({len(theirs)} {what}); "
            f"the first of each are {ours[0].name} and {theirs[0].name}"
        )
    taken = set(partner.values())
    return Pairs(
        tuple((path, partner[path]) for path in ours if path in partner),
        tuple(path for path in ours if path not in partner),
        tuple(path for path in theirs if path not in taken),
    )


def _partners(ours: list[Path], theirs: list[Path], true: Path, test: Path) -> dict[Path, Path]:
    below = {path.relative_to(test): path for path in theirs}
    partner = {path: below[path.relative_to(true)] for path in ours if path.relative_to(true) in below}
    taken = set(partner.values())
    ours, theirs = [path for path in ours if path not in partner], [path for path in theirs if path not in taken]
    counts, other_counts = Counter(path.name for path in ours), Counter(path.name for path in theirs)
    named = {path.name: path for path in theirs}
    return partner | {p: named[p.name] for p in ours if counts[p.name] == other_counts[p.name] == 1}


def _find(folder: Path, suffixes: Sequence[str], what: str) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}: pass a folder of {what}")
    found = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    if not found:
        raise ConfigError(f"{folder} has no {what} in it: expected files that end in {', '.join(suffixes)}")
    return sorted(found, key=natural_key)
