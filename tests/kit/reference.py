"""What code written for the reference imports: its names and import paths, and the one list of what is not built yet.

``data/signatures.json`` lists the names with their parameters, ``data/modules.json`` the modules with the names that
each defines, by the version that has them.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parent.parent / "data"
SIGNATURES: dict[str, dict[str, Any]] = json.loads((_DATA / "signatures.json").read_text(encoding="utf-8"))
MODULES: dict[str, dict[str, list[str]]] = json.loads((_DATA / "modules.json").read_text(encoding="utf-8"))

#: Modules and names that are not there yet, each with all that is below it. What has arrived is to be taken off.
NOT_YET = (
    "cache_dit.ProfilerContext",
    "cache_dit.caching.cache_blocks.offload_utils",
    "cache_dit.compile",
    "cache_dit.create_profiler_context",
    "cache_dit.distributed.dispatch",
    "cache_dit.get_profiler_output_dir",
    "cache_dit.kernels",
    "cache_dit.offload",
    "cache_dit.parallelism.attention",
    "cache_dit.parallelism.autoencoders",
    "cache_dit.parallelism.controlnets",
    "cache_dit.parallelism.dispatch",
    "cache_dit.parallelism.enable_parallelism",
    "cache_dit.parallelism.remove_parallelism_stats",
    "cache_dit.parallelism.text_encoders",
    "cache_dit.parallelism.transformers",
    "cache_dit.platforms.BasePlatform",
    "cache_dit.platforms.CpuPlatform",
    "cache_dit.platforms.CudaPlatform",
    "cache_dit.platforms.NPUPlatform",
    "cache_dit.platforms.TYPE_CHECKING",
    "cache_dit.platforms._current_platform",
    "cache_dit.platforms.platform",
    "cache_dit.platforms.resolve_current_platform_cls_qualname",
    "cache_dit.platforms.resolve_obj_by_qualname",
    "cache_dit.profile_function",
    "cache_dit.profiler",
    "cache_dit.quantization",
    "cache_dit.quantize",
    "cache_dit.ray",
    "cache_dit.serve",
    "cache_dit.set_compile_configs",
    "cache_dit.set_profiler_output_dir",
)

#: Every module and name of the reference as a dotted path.
PATHS = sorted(
    {
        path
        for modules in MODULES.values()
        for module, names in modules.items()
        for path in (module, *(f"{module}.{name}" for name in names))
    }
    | set(SIGNATURES)
)


def not_yet(path: str) -> bool:
    """Whether a dotted path is on the list, or below one that is."""
    return any(path == entry or path.startswith(f"{entry}.") for entry in NOT_YET)


def found(path: str) -> Any:
    """What is found under a dotted path, a module or a name in one; None where there is nothing."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):  # something else is not installed
            raise
    parent, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(parent), name, None)
    except ModuleNotFoundError:
        return None
