"""What a user asks for, in three stages: a dataclass, laid over another (`modifier.overlay`), checked once as a whole.

Files and flat names (`loading`, `section`, `options`) end in the same dataclasses. No torch in here.
"""

from cache_dit.config.cache import BasicCacheConfig, CacheType, DBCacheConfig, block_range, cache_type
from cache_dit.config.calibrator import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.config.extra import ExtraCacheConfig
from cache_dit.config.loading import (
    load_attn_backend_config,
    load_cache_config,
    load_configs,
    load_options,
    load_parallelism_config,
    load_quantize_config,
)
from cache_dit.config.masks import steps_mask
from cache_dit.config.modifier import ParamsModifier
from cache_dit.config.parallelism import ParallelismBackend, ParallelismConfig
from cache_dit.config.prune import DBPruneConfig

__all__ = [
    "BasicCacheConfig",
    "CacheType",
    "CalibratorConfig",
    "DBCacheConfig",
    "DBPruneConfig",
    "DMDCalibratorConfig",
    "ExtraCacheConfig",
    "FoCaCalibratorConfig",
    "HermiteCalibratorConfig",
    "NewtonCalibratorConfig",
    "ParallelismBackend",
    "ParallelismConfig",
    "ParamsModifier",
    "TaylorSeerCalibratorConfig",
    "block_range",
    "cache_type",
    "load_attn_backend_config",
    "load_cache_config",
    "load_configs",
    "load_options",
    "load_parallelism_config",
    "load_quantize_config",
    "steps_mask",
]
