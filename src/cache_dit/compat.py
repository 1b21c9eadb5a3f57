"""The import paths of the reference, cache-dit 1.2.0, that servers and scripts know: a table, and what serves it.

Each row is a path and what is found there: our modules, with the names taken from each. ``old=new`` takes one under
another name, ``*`` whatever else is asked for. A path is a module that is made when it is imported, and a name imports
what it needs when it is taken; importing this file imports no torch. A module of ours that stands at an old path comes
first, and no row is asked for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from cache_dit.engine.attach import manager
from cache_dit.lazy import lazy_names

Row = Mapping[str, str]

_CONTEXTS = "CachedContext PrunedContext"
_MANAGERS = "CachedContextManager ContextManager PrunedContextManager"
_BLOCKS = "CachedBlocks PrunedBlocks UnifiedBlocks"
_PAIRS = "CachedBlocks_Pattern_0_1_2 PrunedBlocks_Pattern_0_1_2"
_SINGLES = "CachedBlocks_Pattern_3_4_5 PrunedBlocks_Pattern_3_4_5"
_CALIBRATORS = "Calibrator CalibratorBase DMDCalibrator FoCaCalibrator HermiteCalibrator TaylorSeerCalibrator"
_FUNCTORS = (
    "PatchFunctor ChromaPatchFunctor DiTPatchFunctor FluxPatchFunctor HiDreamPatchFunctor HunyuanDiTPatchFunctor "
    "LTX2PatchFunctor QwenImageControlNetPatchFunctor WanVACEPatchFunctor ZImageControlNetPatchFunctor"
)
_CONFIGS = {
    "config.cache": "BasicCacheConfig DBCacheConfig",
    "config.calibrator": "CalibratorConfig DMDCalibratorConfig FoCaCalibratorConfig TaylorSeerCalibratorConfig",
    "config.extra": "ExtraCacheConfig",
    "config.prune": "DBPruneConfig",
}
_LOADERS = "load_cache_config load_configs load_options load_parallelism_config"
_PARALLELISM = {"config.parallelism": "ParallelismBackend ParallelismConfig"}

#: Of the reference's functions for families those whose name is not the family's here.
_FAMILIES = (
    "hunyuan_image_adapter=hunyuanimage_adapter longcat_image_adapter=longcatimage_adapter "
    "ltxvideo_adapter=ltx_adapter ovis_image_adapter=ovisimage_adapter sd3_adapter=stablediffusion3_adapter "
    "stabledudio_adapter=stableaudio_adapter"
)

PATHS: dict[str, Row] = {
    "caching": {
        "api": "disable_cache enable_cache get_adapter refresh_context supported_pipelines",
        "caching.adapters": "BlockAdapterRegister CachedAdapter",
        "caching.blocks": _BLOCKS,
        "caching.contexts": _CONTEXTS,
        "caching.functors": "PatchFunctor",
        "caching.manager": _MANAGERS,
        **_CONFIGS,
        "config.cache": "BasicCacheConfig DBCacheConfig CacheType block_range cache_type",
        "config.loading": _LOADERS,
        "config.masks": "steps_mask",
        "config.modifier": "ParamsModifier",
        "engine.adapters.block_adapter": "BlockAdapter FakeDiffusionPipeline",
        "engine.adapters.pattern": "ForwardPattern",
    },
    "caching.block_adapters": {
        "caching.adapters": f"BlockAdapterRegister import_error_adapter {_FAMILIES} *",
        "engine.adapters.block_adapter": "BlockAdapter FakeDiffusionPipeline",
        "config.modifier": "ParamsModifier",
    },
    "caching.block_adapters.adapters": {"caching.adapters": f"{_FAMILIES} *"},
    "caching.block_adapters.block_adapters": {"engine.adapters.block_adapter": "BlockAdapter FakeDiffusionPipeline"},
    "caching.block_adapters.block_registers": {"caching.adapters": "BlockAdapterRegister"},
    "caching.cache_adapters": {"caching.adapters": "CachedAdapter"},
    "caching.cache_adapters.cache_adapter": {"caching.adapters": "CachedAdapter"},
    "caching.cache_blocks": {"caching.blocks": f"{_BLOCKS} {_PAIRS} {_SINGLES}"},
    "caching.cache_blocks.pattern_0_1_2": {"caching.blocks": _PAIRS},
    "caching.cache_blocks.pattern_3_4_5": {"caching.blocks": _SINGLES},
    "caching.cache_blocks.pattern_base": {
        "caching.blocks": "CachedBlocks_Pattern_Base=CachedBlocks PrunedBlocks_Pattern_Base=PrunedBlocks"
    },
    "caching.cache_blocks.pattern_utils": {"caching.blocks": "apply_stats remove_stats"},
    "caching.cache_contexts": {
        "caching.calibrators": _CALIBRATORS,
        "caching.contexts": _CONTEXTS,
        "caching.manager": _MANAGERS,
        **_CONFIGS,
    },
    "caching.cache_contexts.cache_config": _CONFIGS,
    "caching.cache_contexts.cache_context": {"caching.contexts": "CachedContext"},
    "caching.cache_contexts.cache_manager": {"caching.manager": "CachedContextManager ContextNotExistError"},
    "caching.cache_contexts.calibrators": {
        "caching.calibrators": _CALIBRATORS,
        "config.calibrator": _CONFIGS["config.calibrator"],
    },
    "caching.cache_contexts.calibrators.base": {"caching.calibrators": "CalibratorBase"},
    "caching.cache_contexts.calibrators.foca": {"caching.calibrators": "FoCaCalibrator"},
    "caching.cache_contexts.calibrators.taylorseer": {
        "caching.calibrators": "TaylorSeerCalibrator",
        "engine.state.history": "TaylorSeerState=History",
    },
    "caching.cache_contexts.context_manager": {"caching.manager": "ContextManager"},
    "caching.cache_contexts.prune_config": {"config.prune": "DBPruneConfig"},
    "caching.cache_contexts.prune_context": {"caching.contexts": "PrunedContext"},
    "caching.cache_contexts.prune_manager": {"caching.manager": "PrunedContextManager"},
    "caching.cache_interface": {
        "api": "disable_cache enable_cache get_adapter refresh_context supported_pipelines",
        "config.masks": "steps_mask",
    },
    "caching.cache_types": {"config.cache": "CacheType block_range cache_type"},
    "caching.forward_pattern": {"engine.adapters.pattern": "ForwardPattern"},
    "caching.params_modifier": {"config.modifier": "ParamsModifier"},
    "caching.patch_functors": {"caching.functors": _FUNCTORS},
    **{
        f"caching.patch_functors.functor_{path}": {"caching.functors": f"{name}PatchFunctor"}
        for path, name in (
            *(("base", ""), ("chroma", "Chroma"), ("dit", "DiT"), ("flux", "Flux"), ("hidream", "HiDream")),
            *(("hunyuan_dit", "HunyuanDiT"), ("ltx2", "LTX2"), ("wan_vace", "WanVACE")),
            *(("qwen_image_controlnet", "QwenImageControlNet"), ("zimage_controlnet", "ZImageControlNet")),
        )
    },
    "caching.utils": {
        "config.loading": f"{_LOADERS} load_cache_options_from_dict=load_options "
        "load_cache_options_from_yaml=load_options"
    },
    **{f"{package}{path}": _PARALLELISM for package in ("parallelism", "distributed") for path in ("", ".config")},
    "parallelism.backend": {"config.parallelism": "ParallelismBackend"},
    "distributed.backend": {"config.parallelism": "ParallelismBackend"},
    "metrics.inception": {
        "metrics.networks.inception": "FIDInceptionA=small FIDInceptionC=middle FIDInceptionE_1=large "
        "FIDInceptionE_2=large_by_maximum InceptionV3 fid_inception_v3=load_inception"
    },
    "metrics.metrics": {
        "cli.metrics.arguments": "get_args",
        "metrics": "compute_lpips compute_mse compute_psnr compute_ssim compute_video_lpips compute_video_mse "
        "compute_video_psnr compute_video_ssim entrypoint get_psnr_type set_psnr_type",
        "metrics.lpips": "compute_lpips_file=compute_lpips_img",
        "metrics.pixels": "calculate_psnr=psnr",
        "metrics.single": "compute_dir_metric compute_mse_file compute_psnr_file compute_ssim_file "
        "compute_video_metric",
    },
    "metrics.config": {"metrics.verbosity": "get_metrics_verbose set_metrics_verbose"},
}


def provide(module: ModuleType, row: Row) -> None:
    """Let a module have the names of a row, each imported when it is taken."""
    places = {place: names.split() for place, names in row.items()}
    find, listed = lazy_names(module.__name__, places, root="cache_dit")
    own = sorted(name.partition("=")[0] for names in places.values() for name in names if name != "*")
    vars(module).update(__getattr__=find, __dir__=listed, __all__=own)


class _OldPaths:
    """Finds the modules of ``PATHS``, and makes them."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module of a row; None for any other."""
        package, _, old = name.partition(".")
        found = package == "cache_dit" and old in PATHS
        return ModuleSpec(name, cls, is_package=True) if found else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Python's own kind of module will do."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Give a module its names."""
        provide(module, PATHS[module.__name__.partition(".")[2]])


def _manager(state: Any) -> Any:
    return importlib.import_module("cache_dit.caching.manager").make_manager(state)


manager.factory = _manager
sys.meta_path.append(_OldPaths)
