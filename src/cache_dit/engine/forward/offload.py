"""Living with diffusers' group offloading: a group of blocks is loaded when its first block is called.

A group whose first block is skipped is not loaded, so what computes after skipped blocks must begin where a group
begins. With prefetching (streams) the group before loads the next one; since diffusers 0.37 a group that was not
prefetched loads itself.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from cache_dit.engine.forward.chain import Chain, Layout

_HOOK = "group_offloading"
_LOADS_ITSELF_SINCE = "0.37.0"


def offload_group(module: torch.nn.Module) -> Any:
    """diffusers' offloading group that a module belongs to, or None."""
    registry = getattr(module, "_diffusers_hook", None)
    hook = registry.get_hook(_HOOK) if registry is not None else None
    return None if hook is None else hook.group


def widen_back(chain: Chain, layout: Layout) -> Layout:
    """Let the skipped blocks end where an offloading group ends; says so when that widens the B blocks."""
    if layout.middle == 0:
        return layout
    start = len(chain.blocks) - layout.back
    group = offload_group(chain.blocks[start - 1])
    if group is None or not group.modules or group.modules[-1] is chain.blocks[start - 1]:
        return layout
    while start > 0 and offload_group(chain.blocks[start - 1]) is group:
        start -= 1
    if start < layout.front:  # one of the F blocks loads the group, and it stays loaded
        return layout
    widened = Layout.of(len(chain.blocks), layout.front, len(chain.blocks) - start)
    chain.say_once(
        "cache_dit: Bn_compute_blocks=%d cuts a group of offloaded blocks of chain %s: %d blocks are computed",
        layout.back,
        chain.name,
        widened.back,
    )
    return widened


def relied_on_when_skipped(chain: Chain, layout: Layout, *, last: bool) -> bool:
    """Whether a block that computes after the skipped ones could be loaded by them alone.

    Args:
        chain, layout: the chain, and which of its blocks can be skipped.
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
    return not (by_blocks and last and layout.back == 0)


def shares_groups(chain: Chain) -> bool:
    """Whether blocks of a chain are loaded several at once: then none can be skipped by itself."""
    groups = [offload_group(block) for block in chain.blocks]
    return any(group is not None and len(group.modules) > 1 for group in groups)
