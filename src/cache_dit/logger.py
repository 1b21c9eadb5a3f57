"""Log lines for programs around the cache. The package itself only has loggers, and leaves handlers to the program."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path

from cache_dit.envs import ENV
from cache_dit.errors import ConfigError


class NewLineFormatter(logging.Formatter):
    """Begins each line of a message of several lines as the first one, so that each can be searched for alone."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        text = super().format(record)
        head, found, _ = text.partition(message := record.message)
        return text.replace("\n", f"\n{head}") if found and "\n" in message else text


_FORMAT = NewLineFormatter("%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s", "%m-%d %H:%M:%S")


class _Stdout(logging.Handler):
    """Writes to what is the standard output at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(f"{self.format(record)}\n")


@functools.cache
def _handlers(folder: str | None) -> tuple[logging.Handler, ...]:
    handlers: list[logging.Handler] = [_Stdout()]
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        names = ("default.log", f"process.{os.getpid()}.log")
        handlers += [logging.FileHandler(Path(folder, name), encoding="utf-8", delay=True) for name in names]
    for handler in handlers:
        handler.setFormatter(_FORMAT)
    return tuple(handlers)


def init_logger(name: str) -> logging.Logger:
    """A logger that writes ``LEVEL MM-DD HH:MM:SS [file:line] message`` to the standard output, and nowhere else.

    ``init_logger("cache_dit")`` shows what this package logs.

    Args:
        name: the logger's name. The environment variable ``CACHE_DIT_LOG_LEVEL`` says from which level on it writes
            ("info"), ``CACHE_DIT_LOG_DIR`` in which folder it also writes ``default.log`` and ``process.<pid>.log``.

    Raises:
        ConfigError: the level is unknown.
    """
    logger = logging.getLogger(name)
    _set_level(logger)
    logger.propagate = False
    for handler in _handlers(ENV.CACHE_DIT_LOG_DIR):
        logger.addHandler(handler)  # once: a handler that is there already is not added again
    return logger


def _set_level(logger: logging.Logger) -> None:
    level = str(ENV.CACHE_DIT_LOG_LEVEL).upper()
    try:
        logger.setLevel(level)
    except ValueError as error:
        raise ConfigError(f"CACHE_DIT_LOG_LEVEL={level!r} is unknown: pass debug, info, warning, error") from error


def follow_environment() -> None:
    """Give the package's own loggers the level of ``CACHE_DIT_LOG_LEVEL``, where it is set; called at its import.

    An unknown level changes nothing, and is said in the log.
    """
    package = logging.getLogger(__package__)
    if "CACHE_DIT_LOG_LEVEL" not in os.environ:
        return
    try:
        _set_level(package)
    except ConfigError as error:
        package.warning("cache_dit: %s", error)


def logging_rank_0(logger: logging.Logger, msg: str, level: int = logging.INFO) -> None:
    """Log a message in the first process of a distributed run alone, or in a single one.

    Args:
        logger: the logger.
        msg: the message.
        level: its level, as in ``logging``.
    """
    import torch

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        logger.log(level, msg, stacklevel=2)
