"""Views of a cache, one per chain of blocks (contexts) and one per transformer (managers), and calibrators."""

from cache_dit.caching.cache_contexts.cache_context import CachedContext, PrunedContext
from cache_dit.caching.cache_contexts.cache_manager import (
    CachedContextManager,
    ContextManager,
    PrunedContextManager,
    make_manager,
)
from cache_dit.caching.cache_contexts.calibrators import Calibrator, CalibratorBase, TaylorSeerCalibrator
from cache_dit.config import (
    BasicCacheConfig,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    ExtraCacheConfig,
    FoCaCalibratorConfig,
    TaylorSeerCalibratorConfig,
)

__all__ = [
    "BasicCacheConfig",
    "CachedContext",
    "CachedContextManager",
    "Calibrator",
    "CalibratorBase",
    "CalibratorConfig",
    "ContextManager",
    "DBCacheConfig",
    "DBPruneConfig",
    "DMDCalibratorConfig",
    "ExtraCacheConfig",
    "FoCaCalibratorConfig",
    "PrunedContext",
    "PrunedContextManager",
    "TaylorSeerCalibrator",
    "TaylorSeerCalibratorConfig",
    "make_manager",
]
