"""cache_dit: a cache for Diffusion Transformers, put on with one line: ``cache_dit.enable_cache(pipe)``."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import cache_dit.compat as _compat  # noqa: F401
from cache_dit.caching import (
    BlockAdapter,
    CacheStats,
    ForwardPattern,
    Inspection,
    PatchFunctor,
    Plan,
    PolicyCalibration,
    calibrate,
    disable_cache,
    enable_cache,
    get_adapter,
    inspect,
    refresh_context,
    register_policy,
    register_predictor,
    session,
    steps_mask,
    strify,
    summary,
    supported_pipelines,
)
from cache_dit.config import (
    BasicCacheConfig,
    CacheType,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    ExtraCacheConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    ParallelismBackend,
    ParallelismConfig,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
    block_range,
    cache_type,
    load_cache_config,
    load_configs,
    load_options,
    load_parallelism_config,
)
from cache_dit.config.base import GUARD_IS_GONE as _GUARD_IS_GONE
from cache_dit.errors import (
    CacheDitError,
    ConfigError,
    MissingDependencyError,
    MissingModelError,
    PatternMismatchError,
    SessionError,
    UnsupportedModelError,
)
from cache_dit.logger import init_logger
from cache_dit.models import preset, supported_matrix
from cache_dit.utils import disable_print

__version__ = "1.2.0"
version_tuple = (1, 2, 0)

NONE = CacheType.NONE
DBCache = CacheType.DBCache
DBPrune = CacheType.DBPrune
Pattern_0 = ForwardPattern.Pattern_0
Pattern_1 = ForwardPattern.Pattern_1
Pattern_2 = ForwardPattern.Pattern_2
Pattern_3 = ForwardPattern.Pattern_3
Pattern_4 = ForwardPattern.Pattern_4
Pattern_5 = ForwardPattern.Pattern_5

__all__ = [
    "NONE",
    "BasicCacheConfig",
    "BlockAdapter",
    "CacheDitError",
    "CacheStats",
    "CacheType",
    "CalibratorConfig",
    "ConfigError",
    "DBCache",
    "DBCacheConfig",
    "DBPrune",
    "DBPruneConfig",
    "DMDCalibratorConfig",
    "ExtraCacheConfig",
    "FoCaCalibratorConfig",
    "ForwardPattern",
    "HermiteCalibratorConfig",
    "Inspection",
    "MissingDependencyError",
    "MissingModelError",
    "NewtonCalibratorConfig",
    "ParallelismBackend",
    "ParallelismConfig",
    "ParamsModifier",
    "PatchFunctor",
    "PatternMismatchError",
    "Pattern_0",
    "Pattern_1",
    "Pattern_2",
    "Pattern_3",
    "Pattern_4",
    "Pattern_5",
    "Plan",
    "PolicyCalibration",
    "SessionError",
    "TaylorSeerCalibratorConfig",
    "UnsupportedModelError",
    "__version__",
    "block_range",
    "cache_type",
    "calibrate",
    "disable_cache",
    "disable_print",
    "enable_cache",
    "get_adapter",
    "init_logger",
    "inspect",
    "load_cache_config",
    "load_configs",
    "load_options",
    "load_parallelism_config",
    "plan",
    "preset",
    "refresh_context",
    "register_policy",
    "register_predictor",
    "session",
    "steps_mask",
    "strify",
    "summary",
    "supported_matrix",
    "supported_pipelines",
    "version_tuple",
]

if _TYPE_CHECKING:
    from cache_dit.planning import plan

_LAZY = ("demo", "metrics")  # subpackages that need more than torch and diffusers: imported when they are asked for


def __getattr__(name: str) -> _Any:
    if name in _LAZY:
        return _importlib.import_module(f"{__name__}.{name}")
    if name == "plan":  # likewise
        return _importlib.import_module(f"{__name__}.planning").plan
    if name == "calibrate_guard":
        raise AttributeError(_GUARD_IS_GONE)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
