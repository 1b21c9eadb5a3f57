"""The mean of a metric over pairs of pictures or of frames, with the counts that belong to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cache_dit.errors import ConfigError
from cache_dit.metrics.pairs import Pairs, PathLike, picture_pairs, video_pairs
from cache_dit.metrics.pictures import Pixels, Source, check_same_size, is_path, read_picture
from cache_dit.metrics.verbosity import get_metrics_verbose, logger, progress
from cache_dit.metrics.video import frame_count, frames

if TYPE_CHECKING:
    from typing_extensions import Self

Metric = Callable[[Pixels, Pixels], float]
"""A number for two pictures of the same size, (H, W, 3)."""


class Mean(tuple["float | None", "int | None"]):
    """``(value, n)``, as every metric returns it, and what else there is to say about it.

    ``value`` is the mean of the finite values; ``n`` counts all that were compared, the infinite ones too. Where all of
    several are infinite there is no mean, and it is ``(None, None)``; one pair alone has its own value, whatever it is.

    Attributes:
        compared: pairs of pictures or frames that were compared.
        infinite: how many of them have an infinite value, as the PSNR of identical pictures is. ``value`` is the mean
            of the ``compared - infinite`` others.
        left_out: files that were not compared, having no partner.
    """

    compared: int
    infinite: int
    left_out: int

    def __new__(cls, value: float | None, n: int | None, *, infinite: int = 0, left_out: int = 0) -> Self:
        """Made as ``(value, n)``; ``compared`` is ``n``, or where that is None the number of infinite values."""
        made = super().__new__(cls, (value, n))
        made.compared = infinite if n is None else n
        made.infinite = infinite
        made.left_out = left_out
        return made

    def __getnewargs__(self) -> tuple[float | None, int | None]:
        return (self[0], self[1])  # for copies and pickles, which would pass one tuple

    @property
    def value(self) -> float | None:
        """The mean; infinite, not None, where all values are infinite; None where nothing was measured."""
        return math.inf if self[0] is None and self.infinite else self[0]


def mean_over_pairs(
    metric: Metric, true: Source, test: Source, *, name: str, read: Callable[[Source], Pixels] = read_picture
) -> Mean:
    """The mean of a metric over two folders' pairs of pictures (see `picture_pairs`), or its value for two pictures.

    Args:
        metric: the number for two pictures.
        true, test: two files, two folders, or two pictures in memory.
        name: the metric's name, for the bar and the log.
        read: how a picture is read.

    Raises:
        ConfigError: something cannot be read or has no partner, or two pictures differ in size.
    """
    if not (is_path(true) and is_path(test)):
        one, other = read(true), read(test)
        check_same_size(one, other, where=name)
        return Mean(value := metric(one, other), 1, infinite=int(math.isinf(value)))
    found = picture_pairs(cast(PathLike, true), cast(PathLike, test))

    def values() -> Iterator[float]:
        for one_path, other_path in progress(found.pairs, name=name, total=len(found.pairs)):
            one, other = read(one_path), read(other_path)
            check_same_size(one, other, where=f"{one_path} and {other_path}")
            value = metric(one, other)
            _tell(f"{one_path} vs {other_path}, {name}: {value:.5f}")
            yield value

    return _mean(values(), found, name, "pictures")


def mean_over_frames(metric: Metric, true: PathLike, test: PathLike, *, name: str) -> Mean:
    """The mean of a metric over all frames of two videos, or of two folders' pairs of videos (see `video_pairs`).

    Frames are decoded as they are compared: a few are in memory at a time, however long the videos are.

    Args:
        metric: the number for two frames.
        true, test: two files or two folders.
        name: the metric's name, for the bar and the log.

    Raises:
        MissingDependencyError: PyAV is not installed.
        ConfigError: something cannot be read or has no partner, or two videos differ in size or in length.
    """
    found = video_pairs(true, test)

    def values() -> Iterator[float]:
        for one_path, other_path in found.pairs:
            both = progress(_frame_pairs(one_path, other_path), name=name, total=frame_count(one_path))
            for number, (one, other) in enumerate(both):
                value = metric(one, other)
                del one, other  # or they stay in memory while the next two are decoded
                _tell(f"{one_path} vs {other_path}, frame {number}, {name}: {value:.5f}")
                yield value

    return _mean(values(), found, name, "frames")


def _frame_pairs(true: Path, test: Path) -> Iterator[tuple[Pixels, Pixels]]:
    ours, theirs = frames(true), frames(test)
    both = 0
    while True:
        one, other = next(ours, None), next(theirs, None)
        if one is None or other is None:
            break
        if not both:
            check_same_size(one, other, where=f"{true} and {test}")
        both += 1
        yield one, other
    counts = [both + (first is not None) + sum(1 for _ in rest) for first, rest in ((one, ours), (other, theirs))]
    if counts[0] != counts[1]:
        raise ConfigError(
            f"{true} has {counts[0]} frames and {test} has {counts[1]}: videos of different length cannot be compared"
        )


def _mean(values: Iterable[float], found: Pairs, name: str, what: str) -> Mean:
    """The mean, exactly rounded, without keeping more than the numbers."""
    listed = list(values)
    finite = [value for value in listed if not math.isinf(value)]
    infinite = len(listed) - len(finite)
    if infinite and len(listed) > 1:
        logger.info("%s: %d of %d pairs of %s are identical, left out of the mean", name, infinite, len(listed), what)
    for paths, where in ((found.only_true, "first"), (found.only_test, "second")):
        if paths:
            logger.warning(
                "%s: files of the %s folder without a partner, left out: %d (%s%s)",
                *(name, where, len(paths), ", ".join(str(path) for path in paths[:3])),
                ", …" if len(paths) > 3 else "",
            )
    if len(listed) == infinite == 1:
        return Mean(listed[0], 1, infinite=1, left_out=found.left_out)
    value = math.fsum(finite) / len(finite) if finite else None
    return Mean(value, len(listed) if finite else None, infinite=infinite, left_out=found.left_out)


def _tell(line: str) -> None:
    if get_metrics_verbose():
        logger.info("%s", line)
