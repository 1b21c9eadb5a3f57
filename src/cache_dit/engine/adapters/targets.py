"""The normal form of a description: transformers, each with chains of block lists."""

from __future__ import annotations

from dataclasses import dataclass

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
