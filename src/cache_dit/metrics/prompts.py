"""Prompts and the pictures that were made from them, for the metrics that compare the two."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, Union, cast

from cache_dit.errors import ConfigError
from cache_dit.metrics.averages import Mean
from cache_dit.metrics.pairs import find_pictures
from cache_dit.metrics.pictures import SUFFIXES, Pixels, Source, is_path, read_picture
from cache_dit.metrics.verbosity import get_metrics_verbose, logger, progress

Prompts: TypeAlias = Union[str, "os.PathLike[str]", Sequence[str]]
"""A text file with one prompt in each line, or the prompts themselves."""

Pictures: TypeAlias = Union[str, "os.PathLike[str]", Sequence[Source]]
"""A folder of pictures, one picture's file, or several files or pictures in memory."""

Score = Callable[[str, Pixels], float]
"""A number for a prompt and a picture (H, W, 3)."""


def read_prompts(prompts: Prompts) -> list[str]:
    """The prompts of a file, line by line (empty lines at its end are none), or of a list.

    Raises:
        ConfigError: there is no such file, it is not UTF-8, or there is no prompt.
    """
    if isinstance(prompts, (str, os.PathLike)):
        path = Path(prompts)
        if not path.is_file():
            raise ConfigError(
                f"prompts={os.fspath(prompts)!r} is no file: pass a text file with one prompt in each line, or a list "
                "of prompts"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a text file in UTF-8: {error}") from error
    else:
        lines = list(prompts)
        if not all(map(_is_text, lines)):
            raise ConfigError(
                "prompts are strings; pass a text file with one prompt in each line, or a list of prompts"
            )
    if not lines:
        raise ConfigError(f"there is no prompt in {prompts!r}: expected one for each picture")
    return [line.strip() for line in lines]


def mean_over_prompts(score: Score, prompts: Prompts, pictures: Pictures, *, name: str) -> Mean:
    """The mean of a score over prompts and pictures, the first with the first and so on.

    The two may be passed the other way round, where it is plain which is which: pictures are a folder or a picture's
    file, prompts are neither.

    Args:
        score: the number for a prompt and its picture.
        prompts: a file or a list.
        pictures: a folder, read with all folders below it in natural order (see `find_pictures`), a file, or a list.
        name: the score's name, for the bar and the log.

    Raises:
        ConfigError: something cannot be read, or there are not as many prompts as pictures.
    """
    texts, sources = read_both(prompts, pictures)
    values = []
    for text, source in progress(zip(texts, sources, strict=True), name=name, total=len(texts)):
        value = score(text, read_picture(source))
        if get_metrics_verbose():
            logger.info("%s vs %r, %s: %.5f", source if is_path(source) else "picture", text, name, value)
        values.append(value)
    return Mean(math.fsum(values) / len(values), len(values))


def read_both(prompts: Prompts, pictures: Pictures) -> tuple[list[str], list[Source]]:
    """The prompts and the pictures, equally many, whichever way round they were passed; see `mean_over_prompts`."""
    if _are_pictures(prompts) and not _are_pictures(pictures):
        prompts, pictures = cast(Prompts, pictures), cast(Pictures, prompts)
    texts = read_prompts(prompts)
    if isinstance(pictures, (str, os.PathLike)):
        path = Path(pictures)
        sources: list[Source] = [path] if path.is_file() else list(find_pictures(path))
    else:
        sources = list(pictures)
    if len(texts) != len(sources):
        raise ConfigError(f"there are {len(texts)} prompts and {len(sources)} pictures: expected one prompt for each")
    return texts, sources


def _is_text(given: object) -> bool:
    return isinstance(given, str)


def _are_pictures(given: Prompts | Pictures) -> bool:
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        return path.is_dir() or path.suffix.lower() in SUFFIXES
    return bool(len(given)) and not isinstance(given[0], str)
