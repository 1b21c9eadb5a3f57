"""The cache: when a step is computed, how a skipped one is filled, and how both come onto a model."""

from cache_dit.api import (
    disable_cache,
    enable_cache,
    get_adapter,
    refresh_context,
    supported_pipelines,
)
from cache_dit.caching.block_adapters import BlockAdapterRegister
from cache_dit.caching.cache_adapters import CachedAdapter
from cache_dit.caching.cache_blocks import CachedBlocks, PrunedBlocks, UnifiedBlocks
from cache_dit.caching.cache_contexts import (
    CachedContext,
    CachedContextManager,
    ContextManager,
    PrunedContext,
    PrunedContextManager,
)
from cache_dit.caching.patch_functors import PatchFunctor
from cache_dit.config import (
    BasicCacheConfig,
    CacheType,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    FoCaCalibratorConfig,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
    block_range,
    cache_type,
    load_cache_config,
    load_configs,
    load_options,
    load_parallelism_config,
)
from cache_dit.config.masks import steps_mask
from cache_dit.engine.adapters.block_adapter import BlockAdapter, FakeDiffusionPipeline
from cache_dit.engine.adapters.inspect import Inspection, inspect
from cache_dit.engine.adapters.pattern import ForwardPattern
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.engine.policies.registry import register_policy
from cache_dit.engine.predictors.registry import register_predictor
from cache_dit.engine.sessions.session import session
from cache_dit.planning.calibrate import calibrate
from cache_dit.summary import CacheStats, strify, summary

__all__ = [
    "BasicCacheConfig",
    "BlockAdapter",
    "BlockAdapterRegister",
    "CacheStats",
    "CacheType",
    "CachedAdapter",
    "CachedBlocks",
    "CachedContext",
    "CachedContextManager",
    "CalibratorConfig",
    "ContextManager",
    "DBCacheConfig",
    "DBPruneConfig",
    "FakeDiffusionPipeline",
    "FoCaCalibratorConfig",
    "ForwardPattern",
    "Inspection",
    "ParamsModifier",
    "PatchFunctor",
    "Plan",
    "PolicyCalibration",
    "PrunedBlocks",
    "PrunedContext",
    "PrunedContextManager",
    "TaylorSeerCalibratorConfig",
    "UnifiedBlocks",
    "block_range",
    "cache_type",
    "calibrate",
    "disable_cache",
    "enable_cache",
    "get_adapter",
    "inspect",
    "load_cache_config",
    "load_configs",
    "load_options",
    "load_parallelism_config",
    "refresh_context",
    "register_policy",
    "register_predictor",
    "session",
    "steps_mask",
    "strify",
    "summary",
    "supported_pipelines",
]
