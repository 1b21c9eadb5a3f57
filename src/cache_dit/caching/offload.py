"""Living with diffusers' group offloading: a group of blocks is loaded when its first block is called.

A group whose first block is skipped is not loaded, so the B blocks must begin where a group begins.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from cache_dit.caching.chain import Chain

logger = logging.getLogger(__name__)

_HOOK = "group_offloading"


def offload_group(module: torch.nn.Module) -> Any:
    """diffusers' offloading group that a module belongs to, or None."""
    registry = getattr(module, "_diffusers_hook", None)
    hook = registry.get_hook(_HOOK) if registry is not None else None
    return None if hook is None else hook.group


def widen_back(chain: Chain) -> None:
    """Let the B blocks of a chain begin where an offloading group begins; says so when that widens them."""
    if chain.back == 0 or chain.middle == 0:
        return
    start = len(chain.blocks) - chain.back
    group = offload_group(chain.blocks[start])
    if group is None:
        return
    while start > chain.front and offload_group(chain.blocks[start - 1]) is group:
        start -= 1
    if start < len(chain.blocks) - chain.back:
        back = len(chain.blocks) - start
        logger.warning(
            "cache_dit: Bn_compute_blocks=%d cuts a group of offloaded blocks of chain %s: %d blocks are computed",
            chain.back,
            chain.name,
            back,
        )
        chain.set_back(back)
