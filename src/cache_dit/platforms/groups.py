"""The process group that a module is spread over."""

from __future__ import annotations

from typing import Any


def parallel_group(module: Any) -> Any:
    """The process group over which a transformer's tokens are spread, or None."""
    config = getattr(getattr(module, "_parallel_config", None), "context_parallel_config", None)
    mesh = getattr(config, "_flattened_mesh", None)
    return None if mesh is None else mesh.get_group()
