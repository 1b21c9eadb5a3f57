"""cache_dit: a cache for Diffusion Transformers, put on with one line: ``cache_dit.enable_cache(pipe)``.

``import cache_dit`` is light: what a name needs, torch and diffusers among it, is imported when the name is asked for.
"""

import typing as _typing

import cache_dit.compat as _compat  # noqa: F401 - what old import paths need, light
from cache_dit.lazy import lazy_names as _lazy_names
from cache_dit.logger import follow_environment as _follow_environment
from cache_dit.version import REFERENCE_API, __version__, version_tuple

_follow_environment()

if _typing.TYPE_CHECKING:
    from cache_dit import caching as caching
    from cache_dit import config as config
    from cache_dit import demo as demo
    from cache_dit import engine as engine
    from cache_dit import errors as errors
    from cache_dit import logger as logger
    from cache_dit import metrics as metrics
    from cache_dit import models as models
    from cache_dit import planning as planning
    from cache_dit.api import (
        disable_cache,
        enable_cache,
        get_adapter,
        parse_extra_modules,
        refresh_context,
        supported_pipelines,
    )
    from cache_dit.caching.functors import PatchFunctor
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
    from cache_dit.engine.adapters.block_adapter import BlockAdapter
    from cache_dit.engine.adapters.inspect import Inspection, inspect
    from cache_dit.engine.adapters.pattern import ForwardPattern
    from cache_dit.engine.plans.plan import Plan
    from cache_dit.engine.policies.calibration import PolicyCalibration
    from cache_dit.engine.policies.registry import register_policy
    from cache_dit.engine.predictors.registry import register_predictor
    from cache_dit.engine.sessions.request import session
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
    from cache_dit.models.catalog import preset, supported_matrix
    from cache_dit.planning.calibrate import calibrate
    from cache_dit.planning.planner import plan
    from cache_dit.report.explain import explain
    from cache_dit.summary import CacheStats, strify, summary
    from cache_dit.utils import disable_print

    NONE, DBCache, DBPrune = CacheType.NONE, CacheType.DBCache, CacheType.DBPrune
    Pattern_0, Pattern_1, Pattern_2 = ForwardPattern.Pattern_0, ForwardPattern.Pattern_1, ForwardPattern.Pattern_2
    Pattern_3, Pattern_4, Pattern_5 = ForwardPattern.Pattern_3, ForwardPattern.Pattern_4, ForwardPattern.Pattern_5
else:
    __getattr__, __dir__ = _lazy_names(
        __name__,
        {
            "api": (
                *("disable_cache", "enable_cache", "get_adapter", "parse_extra_modules", "refresh_context"),
                "supported_pipelines",
            ),
            "caching.functors": ("PatchFunctor",),
            "config.cache": ("BasicCacheConfig", "CacheType", "DBCacheConfig", "block_range", "cache_type"),
            "config.cache:CacheType": ("NONE", "DBCache", "DBPrune"),
            "config.calibrator": (
                *("CalibratorConfig", "DMDCalibratorConfig", "FoCaCalibratorConfig", "HermiteCalibratorConfig"),
                *("NewtonCalibratorConfig", "TaylorSeerCalibratorConfig"),
            ),
            "config.extra": ("ExtraCacheConfig",),
            "config.loading": (
                *("load_attn_backend_config", "load_cache_config", "load_configs", "load_options"),
                *("load_parallelism_config", "load_quantize_config"),
            ),
            "config.masks": ("steps_mask",),
            "config.modifier": ("ParamsModifier",),
            "config.parallelism": ("ParallelismBackend", "ParallelismConfig"),
            "config.prune": ("DBPruneConfig",),
            "engine.adapters.block_adapter": ("BlockAdapter",),
            "engine.adapters.inspect": ("Inspection", "inspect"),
            "engine.adapters.pattern": ("ForwardPattern",),
            "engine.adapters.pattern:ForwardPattern": tuple(f"Pattern_{number}" for number in range(6)),
            "engine.plans.plan": ("Plan",),
            "engine.policies.calibration": ("PolicyCalibration",),
            "engine.policies.registry": ("register_policy",),
            "engine.predictors.registry": ("register_predictor",),
            "engine.sessions.request": ("session",),
            "errors": (
                *("CacheDitError", "ConfigError", "MissingDependencyError", "MissingModelError"),
                *("PatternMismatchError", "SessionError", "UnsupportedModelError"),
            ),
            "logger": ("init_logger",),
            "models.catalog": ("preset", "supported_matrix"),
            "planning.calibrate": ("calibrate",),
            "planning.planner": ("plan",),
            "report.explain": ("explain",),
            "summary": ("CacheStats", "strify"),
            "utils": ("disable_print",),
        },
        # `summary` is a module that can be called: `cache_dit.summary(pipe)`
        modules=("caching", "config", "demo", "engine", "errors", "logger", "metrics", "models", "planning", "summary"),
        gone={"calibrate_guard": "config.base:GUARD_IS_GONE"},
    )

__all__ = [
    "NONE",
    "REFERENCE_API",
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
    "explain",
    "get_adapter",
    "init_logger",
    "inspect",
    "load_attn_backend_config",
    "load_cache_config",
    "load_configs",
    "load_options",
    "load_parallelism_config",
    "load_quantize_config",
    "parse_extra_modules",
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
