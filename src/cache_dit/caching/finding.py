"""Finding the block list of a transformer that nobody described, by name and pattern."""

from __future__ import annotations

import inspect

import torch

from cache_dit.caching.pattern import ForwardPattern
from cache_dit.errors import ConfigError, UnsupportedModelError

#: The block lists that ``auto=True`` considers, by the beginning of their names.
BLOCK_PREFIXES = (
    "transformer",
    "single_transformer",
    "blocks",
    "layers",
    "single_stream_blocks",
    "double_stream_blocks",
)


def find_blocks(transformer: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
    """Every ``ModuleList`` that is an attribute of a transformer, by name."""
    return {name: child for name, child in transformer.named_children() if isinstance(child, torch.nn.ModuleList)}


def find_match_blocks(
    transformer: torch.nn.Module,
    forward_pattern: ForwardPattern,
    *,
    prefixes: tuple[str, ...] | None,
    suffixes: tuple[str, ...] | None,
    blocks_policy: str,
    check_num_outputs: bool,
) -> tuple[torch.nn.ModuleList, str]:
    """The block list that fits a pattern, and its name.

    Args:
        transformer: where to look.
        forward_pattern: what the blocks must fit.
        prefixes: how the list's name may begin; None: anyhow.
        suffixes: how its blocks' class names may end; None: anyhow.
        blocks_policy: of several, the longest (``"max"``) or the shortest (``"min"``).
        check_num_outputs: see ``matches_pattern``.

    Raises:
        UnsupportedModelError: if no list fits; says which lists there are.
        ConfigError: if ``blocks_policy`` is neither.
    """
    if blocks_policy not in ("max", "min"):
        raise ConfigError(f"blocks_policy={blocks_policy!r} is unknown: pass 'max' or 'min'")
    lists = find_blocks(transformer)
    fitting = {
        name: blocks
        for name, blocks in lists.items()
        if len(blocks)
        and (prefixes is None or name.startswith(prefixes))
        and (suffixes is None or all(type(block).__name__.endswith(suffixes) for block in blocks))
        and all(matches_pattern(block, forward_pattern, check_num_outputs=check_num_outputs) for block in blocks)
    }
    if not fitting:
        raise UnsupportedModelError(
            f"no block list of {type(transformer).__name__} fits {forward_pattern.name} "
            f"(found: {', '.join(lists) or 'none'}): pass blocks= and forward_pattern= yourself"
        )
    choose = max if blocks_policy == "max" else min
    name = choose(fitting, key=lambda key: len(fitting[key]))
    return fitting[name], name


def matches_pattern(block: torch.nn.Module, forward_pattern: ForwardPattern, *, check_num_outputs: bool) -> bool:
    """Whether a block's ``forward`` has a pattern's arguments, and (``check_num_outputs``) returns as many tensors."""
    function = getattr(type(block), "forward", None)  # a scripted module's class has none
    if function is None:
        return False
    forward = inspect.signature(function)
    if not all(name in forward.parameters for name in forward_pattern.In):
        return False
    returned = str(forward.return_annotation).count("Tensor")
    return not check_num_outputs or returned in (0, len(forward_pattern.Out))
