"""``CachedAdapter``, the class form of ``enable_cache``."""

from cache_dit.caching.cache_adapters.cache_adapter import CachedAdapter

__all__ = ["CachedAdapter"]
