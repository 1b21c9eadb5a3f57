"""The errors this package raises: one tree, so that `except CacheDitError` catches all of them."""

from __future__ import annotations


class CacheDitError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(CacheDitError, ValueError):
    """An option has an unknown name, or a value that cannot work."""


class UnsupportedModelError(CacheDitError, ValueError):
    """The model has no record here, or its blocks cannot be intercepted; a `BlockAdapter` may describe it."""


class PatternMismatchError(CacheDitError, ValueError):
    """A block takes or returns something else than its `ForwardPattern` says."""


class MissingDependencyError(CacheDitError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class MissingModelError(CacheDitError, FileNotFoundError):
    """The weights of a model are not where they should be."""


class SessionError(CacheDitError, RuntimeError):
    """A request was used in a way that its session does not allow."""
