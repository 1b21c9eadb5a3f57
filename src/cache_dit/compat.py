"""What code written for the reference finds here beside the public names. Importing this imports no torch."""

from __future__ import annotations

from typing import Any

from cache_dit.engine.attach import manager


def _manager(state: Any) -> Any:
    from cache_dit.caching.cache_contexts.cache_manager import make_manager

    return make_manager(state)


manager.factory = _manager
