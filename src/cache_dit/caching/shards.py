"""Living with context parallelism: every rank holds a part of the tokens, and all must decide alike.

Decisions use the process group of the transformer's own parallelism, and none where it has none: processes that run
independent copies of a model never wait for each other.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch

from cache_dit.caching.chain import Chain

logger = logging.getLogger(__name__)

_SPLIT = "cp_input---"
_GATHER = "cp_output---"


def parallel_group(module: Any) -> Any:
    """The process group over which a transformer's tokens are spread, or None."""
    config = getattr(getattr(module, "_parallel_config", None), "context_parallel_config", None)
    mesh = getattr(config, "_flattened_mesh", None)
    return None if mesh is None else mesh.get_group()


def call_key(given: Mapping[str, Any]) -> Hashable:
    """The shapes and dtypes of a call's tensors, which are whole on every rank: the same key everywhere.

    A rank's own shard will not do: one token more may change the shape on one rank and not on another.
    """
    return tuple((n, tuple(v.shape), v.dtype) for n, v in sorted(given.items()) if isinstance(v, torch.Tensor))


def relative_l1(previous: Any, current: Any, group: Any = None, *, health: torch.Tensor | None = None) -> float | None:
    """mean|previous − current| / mean|previous| in float32 or better, by one host read.

    Args:
        previous, current: tensors of any floating dtype. Of different shape or device, or missing, they cannot be
            compared.
        health: a number on the tensors' device that must be finite for the result to be.
        group: over whose ranks the means are taken, by one reduction of three numbers; None: this process alone.

    Returns:
        The ratio, NaN where a value is NaN or both means are zero; None if they cannot be compared on some rank.
    """
    fits = isinstance(previous, torch.Tensor) and isinstance(current, torch.Tensor)
    fits = fits and previous.shape == current.shape and previous.device == current.device
    if group is None:
        if not fits:
            return None
        previous, current = _wide(previous), _wide(current)
        ratio = (previous - current).abs().mean() / previous.abs().mean()
        return float(ratio if health is None else ratio + 0 * health)  # 0 times NaN or infinity is NaN
    anchor = current if isinstance(current, torch.Tensor) else previous
    device = anchor.device if isinstance(anchor, torch.Tensor) else None
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    if fits:
        previous, current = _wide(previous), _wide(current)
        sums[0], sums[1] = (previous - current).abs().sum(dtype=torch.float64), previous.abs().sum(dtype=torch.float64)
        sums[0] += 0 if health is None else 0 * health
    else:
        sums[2] = 1
    torch.distributed.all_reduce(sums, group=group)
    difference, size, misfits = sums.tolist()
    if misfits:
        return None
    return difference / size if size else float("nan")


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def settle(chain: Chain) -> str | None:
    """Fit a chain to the split and gather hooks of its blocks; called when a request begins.

    Where the first block splits the tokens it must compute, so that what is kept is this rank's shard: Fn becomes 1,
    and a line says so.

    Returns:
        Why the chain cannot be cached, or None.
    """
    if chain.front == 0 and chain.blocks and _has_hook(chain.blocks[0], _SPLIT):
        logger.warning("cache_dit: the first block of %s splits the tokens over devices: it is computed", chain.name)
        chain.set_front(1)
    inside = (block for block, role in zip(chain.blocks, chain.roles, strict=True) if role.position >= chain.front)
    if any(_has_hook(block, _GATHER) for block in inside):
        return "gathers_inside"
    return None


def _has_hook(block: torch.nn.Module, prefix: str) -> bool:
    """Whether a plan names this very block; entries for all blocks (``blocks.*``) split masks, not the stream."""
    registry = getattr(block, "_diffusers_hook", None)
    names = getattr(registry, "hooks", {})
    return any(name.startswith(prefix) and not name.endswith("*") for name in names)
