"""The normal form of a description: transformers, each with chains of block lists; and the way from lists of lists."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from cache_dit.config.modifier import ParamsModifier
from cache_dit.engine.adapters.pattern import ENCODER, HIDDEN, BlockIO, ForwardPattern, Join
from cache_dit.errors import ConfigError


@dataclass(frozen=True)
class BlockList:
    """Blocks that are called one after the other in one way.

    Args:
        name: the attribute they are found under, for reports.
        blocks: the blocks, in call order.
        pattern: what goes in and out.
        streams: the names of H and E in the blocks' ``forward``.
    """

    name: str
    blocks: tuple[torch.nn.Module, ...]
    pattern: ForwardPattern
    streams: tuple[str, str] = (HIDDEN, ENCODER)


@dataclass(frozen=True)
class ChainSpec:
    """Block lists with one decision and one residual; what the fields mean is said by ``BlockAdapter``."""

    lists: tuple[BlockList, ...]
    join: Join = None
    modifier: ParamsModifier | None = None
    strict: bool = False
    interleave: bool = False
    long_skip: bool = False

    def ordered(self) -> list[tuple[int, torch.nn.Module]]:
        """Its blocks in call order, each with the index of its list."""
        if not self.interleave:
            return [(index, block) for index, listed in enumerate(self.lists) for block in listed.blocks]
        rounds = zip(*(listed.blocks for listed in self.lists), strict=True)
        return [(index, block) for blocks in rounds for index, block in enumerate(blocks)]

    @property
    def most_front(self) -> int:
        """The largest Fn that leaves blocks to skip."""
        rounds = len(self.lists) if self.interleave else 1
        return (sum(len(listed.blocks) for listed in self.lists) - rounds) // rounds

    @property
    def name(self) -> str:
        """The names of its lists."""
        return "+".join(blocks.name for blocks in self.lists)


@dataclass(frozen=True)
class Target:
    """A transformer and its chains; ``idle`` are modules between blocks and the argument of each that holds H."""

    transformer: torch.nn.Module
    chains: tuple[ChainSpec, ...]
    idle: tuple[tuple[torch.nn.Module, str], ...] = ()


def block_io(block: torch.nn.Module, blocks: BlockList, *, strict: bool) -> BlockIO:
    """How one block is called.

    Raises:
        PatternMismatchError: if it lacks an argument that the pattern reads.
        ConfigError: if the pattern is none.
    """
    if not isinstance(blocks.pattern, ForwardPattern):
        raise ConfigError(f"forward_pattern={blocks.pattern!r} is no ForwardPattern: pass ForwardPattern.Pattern_0 … 5")
    inner = getattr(block, "_orig_mod", block)  # a compiled block: its wrapper's forward says nothing
    hidden, encoder = blocks.streams
    return BlockIO(type(inner), blocks.pattern, hidden=hidden, encoder=encoder, strict=strict)


def shortly(value: Any) -> str:
    """A description for people: a module by its class, blocks by their number and class."""
    if isinstance(value, (list, tuple, torch.nn.ModuleList)):
        parts = [shortly(item) for item in value]
        if not any(_is_module(item) for item in value):
            return f"[{', '.join(parts)}]"
        return " + ".join(f"{count} × {name}" for name, count in Counter(parts).items())
    if _is_module(value):
        return type(value).__name__
    return value.name if isinstance(value, ForwardPattern) else repr(value)


def _is_module(value: Any) -> bool:
    return isinstance(value, torch.nn.Module) and not isinstance(value, torch.nn.ModuleList)


def nested_depth(value: Any) -> int:
    """How deep lists are nested in ``value``: 0 for a scalar. A ``ModuleList`` is a scalar."""
    if not isinstance(value, (list, tuple)):
        return 0
    return 1 + max((nested_depth(item) for item in value), default=0)


def flatten(value: Any) -> list[Any]:
    """The scalars in nested lists, in order."""
    if not isinstance(value, (list, tuple)):
        return [value]
    return [scalar for item in value for scalar in flatten(item)]


def as_list(value: Any) -> list[Any]:
    """A list as it is, None as an empty one, anything else in a list of its own."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_container(value: Any) -> bool:
    return isinstance(value, (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential))


def listed_blocks(blocks: Any) -> Any:
    """Plain lists of blocks become one ModuleList-like scalar each; nested lists of block lists stay.

    Raises:
        ConfigError: if there is something that holds no blocks.
    """
    if isinstance(blocks, torch.nn.ModuleDict):
        return torch.nn.ModuleList(blocks.values())
    if not isinstance(blocks, (list, tuple)):
        if isinstance(blocks, str) or not hasattr(blocks, "__iter__"):
            raise ConfigError(
                f"blocks holds a {type(blocks).__name__}, not a list of blocks: pass e.g. transformer.blocks"
            )
        return blocks
    if blocks and all(isinstance(item, torch.nn.Module) and not _is_container(item) for item in blocks):
        return torch.nn.ModuleList(blocks)
    return [listed_blocks(item) for item in blocks]


def per_transformer(value: Any, count: int, name: str) -> list[list[Any]]:
    """One list for each transformer."""
    depth = nested_depth(value)
    if depth == 0:
        return [[value] for _ in range(count)]
    if depth == 2:
        if len(value) != count:
            raise ConfigError(f"{name} has {len(value)} lists for {count} transformers: pass one list for each")
        return [list(item) for item in value]
    if depth > 2:
        raise ConfigError(f"{name} is nested {depth} deep: pass a list of lists at most")
    if count == 1:
        return [list(value)]
    if len(value) != count:
        raise ConfigError(f"{name} has {len(value)} items for {count} transformers: pass one for each, or lists")
    return [[item] for item in value]


def spread(values: list[Any], count: int, name: str) -> list[Any]:
    """One value for each block list, from one for all or one for each."""
    if len(values) == 1 and count > 1:
        return values * count
    if len(values) != count:
        raise ConfigError(f"{name} has {len(values)} items for {count} block lists: pass one for each, or one for all")
    return values


def names_by_identity(transformers: list[torch.nn.Module], blocks: Any) -> list[list[str]]:
    """The attribute names of each transformer's block lists.

    Raises:
        ConfigError: if a list is none of the transformer's.
    """
    lists = per_transformer(listed_blocks(blocks), len(transformers), "blocks")
    return [
        [_name_of(transformer, blocks, index) for index, blocks in enumerate(of_transformer)]
        for transformer, of_transformer in zip(transformers, lists, strict=True)
    ]


def _name_of(transformer: torch.nn.Module, blocks: Any, index: int) -> str:
    modules = dict(transformer.named_modules())
    first = next(iter(blocks), None)
    exact = [name for name, module in modules.items() if module is blocks]
    holding = [name for name, module in modules.items() if name and any(child is first for child in module.children())]
    for name in exact + holding:
        return str(name)
    raise ConfigError(
        f"block list {index} is no attribute of {type(transformer).__name__} and its first block is in none of its "
        f"lists: pass blocks_name, or the transformer that the blocks belong to"
    )
