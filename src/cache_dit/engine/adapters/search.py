"""Finding the block list of a transformer that nobody described, by name and pattern."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch

from cache_dit.engine.adapters.pattern import ENCODER, HIDDEN, ForwardPattern, argument_names
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
    fitting = {
        name: blocks
        for name, blocks in _considered(transformer, prefixes, suffixes).items()
        if all(matches_pattern(block, forward_pattern, check_num_outputs=check_num_outputs) for block in blocks)
    }
    name = _chosen(fitting, blocks_policy)
    if name is None:
        raise UnsupportedModelError(
            f"no block list of {type(transformer).__name__} fits {forward_pattern.name} "
            f"(found: {', '.join(find_blocks(transformer)) or 'none'}): pass blocks= and forward_pattern= yourself, as "
            f"cache_dit.inspect(transformer, *args, **kwargs) shows them"
        )
    return fitting[name], name


def pattern_by_signature(
    transformer: torch.nn.Module,
    prefixes: Sequence[str] | None,
    suffixes: Sequence[str] | None,
    *,
    blocks_policy: str,
) -> ForwardPattern:
    """The pattern of the block list, where its blocks' ``forward`` decides; arguments as in ``find_match_blocks``.

    Blocks that take H alone return it (the first computed step would tell if they did not); of blocks that take H and
    E, the return annotation must say that they return one tensor: nothing else tells (H, E) from (E, H).

    Raises:
        ConfigError: if it does not decide.
    """
    lists = _considered(transformer, prefixes, suffixes)
    name = _chosen(lists, blocks_policy)
    if name is None:
        raise ConfigError(
            f"auto=True finds no block list in {type(transformer).__name__}: call "
            f"cache_dit.inspect(transformer, *args, **kwargs) to see where its blocks are"
        )
    patterns = {_signature_pattern(block) for block in lists[name]}
    (pattern,) = patterns if len(patterns) == 1 else (None,)
    if pattern is None:
        block = type(lists[name][0])
        arguments = ", ".join(argument_names(block.forward))
        raise ConfigError(
            f"auto=True needs a forward_pattern here: {block.__name__}.forward({arguments}) alone does not decide. "
            f"Call cache_dit.inspect(transformer, *args, **kwargs), which runs one forward and shows what to pass"
        )
    return pattern


def _signature_pattern(block: torch.nn.Module) -> ForwardPattern | None:
    """The one pattern that a block's ``forward`` can have, or None."""
    function = getattr(type(block), "forward", None)
    if function is None or HIDDEN not in (names := argument_names(function)):
        return None
    returned = str(inspect.signature(function).return_annotation).count("Tensor")
    if ENCODER in names:
        return ForwardPattern.Pattern_2 if returned == 1 else None
    return ForwardPattern.Pattern_3 if returned < 2 else None


def _considered(
    transformer: torch.nn.Module, prefixes: Sequence[str] | None, suffixes: Sequence[str] | None
) -> dict[str, torch.nn.ModuleList]:
    """The block lists with such names and such classes of blocks; None: any."""
    return {
        name: blocks
        for name, blocks in find_blocks(transformer).items()
        if len(blocks)
        and (prefixes is None or name.startswith(tuple(prefixes)))
        and (suffixes is None or all(type(block).__name__.endswith(tuple(suffixes)) for block in blocks))
    }


def _chosen(lists: dict[str, torch.nn.ModuleList], blocks_policy: str) -> str | None:
    """The name of the longest or the shortest list, or None where there is none."""
    if blocks_policy not in ("max", "min"):
        raise ConfigError(f"blocks_policy={blocks_policy!r} is unknown: pass 'max' or 'min'")
    choose = max if blocks_policy == "max" else min
    return choose(lists, key=lambda key: len(lists[key]), default=None)


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
