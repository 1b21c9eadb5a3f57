"""A list of blocks as one module, for a forward of your own that wants its loop written for it."""

from __future__ import annotations

from typing import Any

import torch

from cache_dit.caching.contexts import CachedContext
from cache_dit.caching.manager import CachedContextManager
from cache_dit.caching.subclassed import Subclassed
from cache_dit.config.cache import CacheType
from cache_dit.engine.adapters.block_adapter import BlockAdapter
from cache_dit.engine.adapters.pattern import BlockIO, ForwardPattern
from cache_dit.engine.attach.manager import manager_of
from cache_dit.engine.subclass import state_of
from cache_dit.errors import ConfigError, PatternMismatchError, SessionError

_P = ForwardPattern
_PAIRS = (_P.Pattern_0, _P.Pattern_1, _P.Pattern_2)
_SINGLES = (_P.Pattern_3, _P.Pattern_4, _P.Pattern_5)


class CachedBlocks(Subclassed, torch.nn.Module):
    """Calls blocks one after the other, as a model's loop does.

    Each block decides for itself whether it computes, since blocks are intercepted where they stand: with a cache on
    ``transformer``, and called within its forward, the blocks of a cached step are skipped here too. Otherwise all
    compute. A model needs none of this: its own loop does the same.

    Args:
        transformer_blocks: the blocks, in call order; they stay the ones they are.
        transformer: the transformer that they belong to.
        forward_pattern: what goes into a block and comes out.
        check_forward_pattern: whether the blocks must have the arguments of the pattern.
        check_num_outputs: whether, then, the tensors in their return annotation must be as many too.
        cache_prefix: a name for these blocks, for people.
        cache_context: the name of the chain that they stand in, or a context of it; None: the first.
        context_manager: the manager of the transformer's cache; None: the one that it has.
        cache_type: the kind of cache, for people; what is on the transformer counts.
        **kwargs: none.

    Raises:
        ConfigError: there is no pattern, or not one of this class's; an unknown argument.
        PatternMismatchError: a block does not fit the pattern.
    """

    patterns: tuple[ForwardPattern, ...] = _PAIRS + _SINGLES

    def __init__(
        self,
        transformer_blocks: torch.nn.ModuleList,
        transformer: torch.nn.Module | None = None,
        forward_pattern: ForwardPattern | None = None,
        check_forward_pattern: bool = True,
        check_num_outputs: bool = True,
        cache_prefix: str | None = None,
        cache_context: CachedContext | str | None = None,
        context_manager: CachedContextManager | None = None,
        cache_type: CacheType = CacheType.DBCache,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            raise ConfigError(f"{type(self).__name__}: unknown arguments {', '.join(kwargs)}")
        if forward_pattern not in self.patterns:
            expected = ", ".join(pattern.name for pattern in self.patterns)
            raise ConfigError(f"forward_pattern={forward_pattern!r} is not valid: expected one of {expected}")
        fits = BlockAdapter.match_blocks_pattern(
            transformer_blocks, forward_pattern, check_num_outputs=check_num_outputs
        )
        if check_forward_pattern and not fits:
            raise PatternMismatchError(
                f"a block does not take and return what {forward_pattern.name} says: pass the pattern that fits, or "
                f"check_forward_pattern=False to go by position"
            )
        self.transformer_blocks = transformer_blocks
        self._io = [BlockIO(type(getattr(block, "_orig_mod", block)), forward_pattern) for block in transformer_blocks]
        self.forward_pattern = forward_pattern
        self.cache_prefix = cache_prefix
        self.cache_type = cache_type
        self._transformer = (transformer,)  # in a tuple: the transformer is no part of this module
        self._cache_context = cache_context
        self._context_manager = context_manager

    @property
    def is_cached(self) -> bool:
        """Whether a cache is on every block."""
        return all(state_of(block) is not None for block in self.transformer_blocks)

    @property
    def context(self) -> CachedContext:
        """What the cache holds for the chain of these blocks.

        Raises:
            SessionError: no cache is on the transformer.
        """
        state = state_of(self._transformer[0])
        manager = self._context_manager or (None if state is None else manager_of(state))
        if manager is None:
            raise SessionError("no cache is on the transformer of these blocks: call enable_cache on it first")
        name = self._cache_context
        context: CachedContext = manager.get_context(name.name if isinstance(name, CachedContext) else name)
        return context

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The last block's result.

        Args:
            hidden_states: H.
            *args, **kwargs: for each block; where the pattern has E, it is the first of them or named
                ``encoder_hidden_states``, and each block gets that of the block before it.
        """
        pattern = self.forward_pattern
        encoder: Any = None
        if not pattern.Forward_H_only:
            encoder, args = (args[0], args[1:]) if args else (kwargs.pop("encoder_hidden_states", None), ())
        result: Any = hidden_states
        for block, io in zip(self.transformer_blocks, self._io, strict=True):
            streams = (hidden_states,) if pattern.Forward_H_only else (hidden_states, encoder)
            result = block(*streams, *args, **kwargs)
            hidden_states, new, _ = io.split(result)
            encoder = encoder if pattern.Return_H_Only else new
        return result


class CachedBlocks_Pattern_0_1_2(CachedBlocks):
    """``CachedBlocks`` of blocks that read H and E."""

    patterns = _PAIRS


class CachedBlocks_Pattern_3_4_5(CachedBlocks):
    """``CachedBlocks`` of blocks that read H alone."""

    patterns = _SINGLES


class PrunedBlocks(CachedBlocks):
    """The same for DBPrune, where each block decides for itself anyway."""


class PrunedBlocks_Pattern_0_1_2(PrunedBlocks):
    """``PrunedBlocks`` of blocks that read H and E."""

    patterns = _PAIRS


class PrunedBlocks_Pattern_3_4_5(PrunedBlocks):
    """``PrunedBlocks`` of blocks that read H alone."""

    patterns = _SINGLES


class UnifiedBlocks:
    """``UnifiedBlocks(…, cache_type=…)`` makes ``PrunedBlocks`` for ``CacheType.DBPrune``, else ``CachedBlocks``.

    Args: those of ``CachedBlocks``.
    """

    def __new__(  # type: ignore[misc]
        cls,
        transformer_blocks: torch.nn.ModuleList,
        transformer: torch.nn.Module | None = None,
        forward_pattern: ForwardPattern | None = None,
        check_forward_pattern: bool = True,
        check_num_outputs: bool = True,
        cache_prefix: str | None = None,
        cache_context: CachedContext | str | None = None,
        context_manager: CachedContextManager | None = None,
        cache_type: CacheType = CacheType.DBCache,
        **kwargs: Any,
    ) -> CachedBlocks:
        """The blocks as one module."""
        made = PrunedBlocks if cache_type is CacheType.DBPrune else CachedBlocks
        return made(
            transformer_blocks,
            transformer,
            forward_pattern,
            check_forward_pattern,
            check_num_outputs,
            cache_prefix,
            cache_context,
            context_manager,
            cache_type,
            **kwargs,
        )


def apply_stats(*args: Any, **kwargs: Any) -> None:
    """Nothing: the statistics are the cache's own, and ``cache_dit.summary`` reads them there."""


def remove_stats(*args: Any, **kwargs: Any) -> None:
    """Nothing: no statistics were put on a module."""
