"""Living with context parallelism: every rank holds a part of the tokens, and all must decide alike.

Decisions use the process group of the transformer's own parallelism, and none where it has none: processes that run
independent copies of a model never wait for each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch

from cache_dit.engine.forward.chain import Chain, Layout

_SPLIT = "cp_input---"
_GATHER = "cp_output---"


def call_key(given: Mapping[str, Any]) -> Hashable:
    """The shapes and dtypes of a call's tensors, which are whole on every rank: the same key everywhere.

    A rank's own shard will not do: one token more may change the shape on one rank and not on another.
    """
    return tuple((n, tuple(v.shape), v.dtype) for n, v in sorted(given.items()) if isinstance(v, torch.Tensor))


def settle(chain: Chain, layout: Layout) -> tuple[Layout, str | None]:
    """Fit a layout to the split and gather hooks of a chain's blocks.

    Where the first block splits the tokens it must compute, so that what is kept is this rank's shard: Fn becomes 1,
    and a line says so.

    Returns:
        The layout, and why the chain cannot be cached, or None.
    """
    if layout.front == 0 and chain.blocks and _has_hook(chain.blocks[0], _SPLIT):
        chain.say_once("cache_dit: the first block of %s splits the tokens over devices: it is computed", chain.name)
        layout = Layout.of(len(chain.blocks), 1, layout.back)
    inside = chain.blocks[layout.front :]
    return layout, "gathers_inside" if any(_has_hook(block, _GATHER) for block in inside) else None


def _has_hook(block: torch.nn.Module, prefix: str) -> bool:
    """Whether a plan names this very block; entries for all blocks (``blocks.*``) split masks, not the stream."""
    registry = getattr(block, "_diffusers_hook", None)
    names = getattr(registry, "hooks", {})
    return any(name.startswith(prefix) and not name.endswith("*") for name in names)
