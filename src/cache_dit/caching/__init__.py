"""The cache: when a step is computed, how a skipped one is filled, and how both come onto a model."""

from cache_dit.caching.adapter import BlockAdapter, FakeDiffusionPipeline
from cache_dit.caching.api import (
    disable_cache,
    enable_cache,
    get_adapter,
    refresh_context,
    strify,
    summary,
    supported_pipelines,
)
from cache_dit.caching.masks import steps_mask
from cache_dit.caching.pattern import ForwardPattern
from cache_dit.caching.session import session
from cache_dit.caching.stats import CacheStats

__all__ = [
    "BlockAdapter",
    "CacheStats",
    "FakeDiffusionPipeline",
    "ForwardPattern",
    "disable_cache",
    "enable_cache",
    "get_adapter",
    "refresh_context",
    "session",
    "steps_mask",
    "strify",
    "summary",
    "supported_pipelines",
]
