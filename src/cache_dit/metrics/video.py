"""Videos as every metric reads them: one frame after the other, so that no more than one is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dit.errors import ConfigError, MissingDependencyError
from cache_dit.metrics.pairs import PathLike
from cache_dit.metrics.pictures import Pixels

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


def frames(path: PathLike) -> Iterator[Pixels]:
    """The frames of a video's first stream, uint8 of shape (H, W, 3), RGB. None is kept when the next is asked for.

    Args:
        path: any video that FFmpeg can read.

    Raises:
        MissingDependencyError: PyAV is not installed.
        ConfigError: there is no such file, it cannot be read, or it has no frame.
    """
    import_av()
    from av.error import FFmpegError

    count = 0
    try:
        with _opened(path) as container:
            for frame in container.decode(_stream(container, path)):
                count += 1
                yield frame.to_ndarray(format="rgb24")
    except FFmpegError as error:
        raise ConfigError(f"{path} cannot be read as a video, after {count} frames: {error}") from error
    if not count:
        raise ConfigError(f"{path} has no frame")


def frame_count(path: PathLike) -> int | None:
    """How many frames a video says it has, without decoding it; None where it does not say.

    Raises:
        MissingDependencyError: PyAV is not installed.
        ConfigError: there is no such file, or it cannot be read.
    """
    import_av()
    from av.error import FFmpegError

    try:
        with _opened(path) as container:
            return _stream(container, path).frames or None
    except FFmpegError as error:
        raise ConfigError(f"{path} cannot be read as a video: {error}") from error


def import_av() -> None:
    """Raise `MissingDependencyError` unless PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("videos need PyAV: pip install 'cache-dit[metrics]'") from error


def _opened(path: PathLike) -> InputContainer:
    import av

    if not Path(path).is_file():
        raise ConfigError(f"{path} {'is a folder' if Path(path).exists() else 'does not exist'}: pass a video's file")
    return av.open(str(path), mode="r")


def _stream(container: InputContainer, path: PathLike) -> VideoStream:
    if not container.streams.video:
        raise ConfigError(f"{path} has no video stream")
    return container.streams.video[0]
