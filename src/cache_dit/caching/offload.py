"""Living with diffusers' group offloading: a group of blocks is loaded when its first block is called.

A group whose first block is skipped is not loaded, so what computes after skipped blocks must begin where a group
begins. With prefetching (streams) the group before loads the next one; since diffusers 0.37 a group that was not
prefetched loads itself.
"""

from __future__ import annotations

import logging
from typing import Any

import diffusers
import torch

from cache_dit.caching.chain import Chain

logger = logging.getLogger(__name__)

_HOOK = "group_offloading"
_LOADS_ITSELF_SINCE = "0.37.0"


def offload_group(module: torch.nn.Module) -> Any:
    """diffusers' offloading group that a module belongs to, or None."""
    registry = getattr(module, "_diffusers_hook", None)
    hook = registry.get_hook(_HOOK) if registry is not None else None
    return None if hook is None else hook.group


def widen_back(chain: Chain) -> None:
    """Let the skipped blocks of a chain end where an offloading group ends; says so when that widens the B blocks."""
    if chain.middle == 0:
        return
    start = len(chain.blocks) - chain.back
    group = offload_group(chain.blocks[start - 1])
    if group is None or not group.modules or group.modules[-1] is chain.blocks[start - 1]:
        return
    while start > 0 and offload_group(chain.blocks[start - 1]) is group:
        start -= 1
    if start < chain.front:  # one of the F blocks loads the group, and it stays loaded
        return
    asked = chain.back
    chain.set_back(len(chain.blocks) - start)
    logger.warning(
        "cache_dit: Bn_compute_blocks=%d cuts a group of offloaded blocks of chain %s: %d blocks are computed",
        asked,
        chain.name,
        chain.back,
    )


def relied_on_when_skipped(chain: Chain, *, last: bool) -> bool:
    """Whether a block that computes after the skipped ones could be loaded by them alone.

    Args:
        chain: the chain.
        last: whether no other chain comes after it.
    """
    from packaging.version import Version

    if Version(diffusers.__version__) >= Version(_LOADS_ITSELF_SINCE):
        return False
    leaves = [offload_group(module) for module in chain.blocks[-1].modules()]
    whole = offload_group(chain.blocks[-1])
    if not any(group is not None and group.stream is not None for group in leaves):
        return False
    by_blocks = whole is not None and bool(whole.modules)
    return not (by_blocks and last and chain.back == 0)
