"""What a user asks for: dataclasses that check what they are given. Nothing in here imports torch."""

from cache_dit.config.cache import BasicCacheConfig, CacheType, DBCacheConfig, block_range, cache_type
from cache_dit.config.calibrator import CalibratorConfig, TaylorSeerCalibratorConfig
from cache_dit.config.modifier import ParamsModifier

__all__ = [
    "BasicCacheConfig",
    "CacheType",
    "CalibratorConfig",
    "DBCacheConfig",
    "ParamsModifier",
    "TaylorSeerCalibratorConfig",
    "block_range",
    "cache_type",
]
