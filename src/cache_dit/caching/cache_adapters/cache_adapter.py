"""The class form of ``enable_cache``, for code that calls that."""

from __future__ import annotations

from typing import Any, TypeVar

from cache_dit.api import enable_cache

Cacheable = TypeVar("Cacheable")


class CachedAdapter:
    """Puts a cache on: ``CachedAdapter.apply(pipe)`` and ``CachedAdapter()(pipe)`` are ``enable_cache(pipe)``."""

    @classmethod
    def apply(cls, pipe: Cacheable, **context_kwargs: Any) -> Cacheable:
        """Put a cache on, as ``cache_dit.enable_cache`` does.

        Args:
            pipe: a pipeline, a ``BlockAdapter`` or a transformer.
            **context_kwargs: the other arguments of ``enable_cache``.

        Returns:
            ``pipe`` itself.

        Raises:
            CacheDitError: as ``enable_cache``.
        """
        return enable_cache(pipe, **context_kwargs)

    def __call__(self, pipe: Cacheable, **context_kwargs: Any) -> Cacheable:
        """The same as ``apply``."""
        return self.apply(pipe, **context_kwargs)
