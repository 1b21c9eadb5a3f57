"""A user's own description of a model, and its normal form: transformers, each with chains of block lists."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cache_dit.engine.adapters.normalize import (
    Target,
    as_list,
    flatten,
    names_by_identity,
    nested_depth,
    normalize,
    shortly,
    targets_of,
)
from cache_dit.engine.adapters.pattern import JOINS, ForwardPattern, Join
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.adapters.search import (
    BLOCK_PREFIXES,
    find_blocks,
    find_match_blocks,
    matches_pattern,
    pattern_by_signature,
)
from cache_dit.engine.subclass import base_of, state_of
from cache_dit.errors import CacheDitError, ConfigError
from cache_dit.platforms.groups import parallel_group


class FakeDiffusionPipeline:
    """Stands for the pipeline of a transformer that has none.

    Args:
        transformer: the transformer.
    """

    def __init__(self, transformer: torch.nn.Module | None = None) -> None:
        self.transformer = transformer


@dataclass(repr=False)
class BlockAdapter:
    """Describes where a model's blocks are and how they are called, for a model without a record of its own.

    Every description may be a scalar, a list, or a list of lists: one transformer with one block list, one with
    several, or several transformers. What is not nested is taken for all.

    Args:
        pipe: the pipeline, or None for bare transformers. A module without a transformer in it is one itself.
        transformer: the transformer(s); ``pipe.transformer`` when None.
        blocks: the block list(s): ``ModuleList`` or any sequence of modules, in call order.
        blocks_name: their attribute names, for reports; found by identity when None.
        unique_blocks_name: names that tell lists of one name apart; filled in when empty.
        dummy_blocks_names: names of lists that ``blocks`` already contains (a merged list): for information only,
            since blocks are intercepted where they stand.
        forward_pattern: the pattern(s) of the block lists; ``auto`` can do without where the blocks' ``forward`` says
            enough. ``cache_dit.inspect`` finds out.
        params_modifiers: options that differ from the common ones, one per chain of blocks, in order; chains without
            one keep the common ones. Nested, a list for each transformer: one alone in it is for all its chains.
        check_forward_pattern: whether names in the pattern must be arguments of the blocks' ``forward``; when None,
            only for models of diffusers without hooks. Names given by ``stream_names`` must be in any case.
        check_num_outputs: whether the number of tensors in ``forward``'s return annotation must fit the pattern.
        patch_functor: an object with ``apply(transformer)``, called once; models need none for the cache.
        has_separate_cfg: whether conditional and unconditional calls take turns without ``cache_context``.
        auto: find the block list in ``pipe.transformer`` by name and pattern.
        allow_prefixes, check_prefixes, allow_suffixes, check_suffixes: which lists (by attribute name) and blocks (by
            class name) ``auto`` considers.
        blocks_policy: whether ``auto`` takes the longest ("max") or the shortest ("min") list.
        skip_post_init: leave everything as it was given.
        merge: treat all block lists of a transformer as one chain with one decision; or, one number per block list:
            those with the same number are a chain.
        join: how the second of two merged lists takes over: None with both streams as they are, ``"eh"`` with
            cat(E, H), ``"he"`` with cat(H, E) as its H.
        interleave: merged lists take turns, block by block, and each has a layout of its own: a chain in call order
            whose middle begins and ends in the last list, so that it computes one block more in front.
        long_skip: block n − 1 − i reads what block i returned: B blocks are right only where their F blocks ran, so Bn
            is at most Fn.
        idle: modules that the model calls between blocks for nothing when these are skipped: attribute (of a module
            or a list of modules) to the name of the argument that holds H, which they then return.
        stream_names: the names of H and E in the blocks' ``forward``, or one pair per block list.
        rules: which calls of the transformer must compute, or are no step.

    Raises:
        ConfigError: if parts are missing or do not fit each other.
        PatternMismatchError: if a block does not fit its pattern.
    """

    pipe: Any = None
    transformer: torch.nn.Module | list[torch.nn.Module] | None = None
    blocks: Any = None
    blocks_name: Any = None
    unique_blocks_name: Any = field(default_factory=list)
    dummy_blocks_names: Any = field(default_factory=list)
    forward_pattern: Any = None
    params_modifiers: Any = None
    check_forward_pattern: bool | None = None
    check_num_outputs: bool = False
    patch_functor: Any = None
    has_separate_cfg: bool = False
    auto: bool = False
    allow_prefixes: list[str] = field(default_factory=lambda: list(BLOCK_PREFIXES))
    check_prefixes: bool = True
    allow_suffixes: list[str] = field(default_factory=lambda: ["TransformerBlock"])
    check_suffixes: bool = False
    blocks_policy: str = "max"
    skip_post_init: bool = False
    merge: bool | Sequence[int] = False
    join: Join = None
    interleave: bool = False
    long_skip: bool = False
    idle: dict[str, str] = field(default_factory=dict)
    stream_names: Any = None
    rules: CallRules = field(default_factory=CallRules)

    def __post_init__(self) -> None:
        if self.skip_post_init:
            return
        if self.join is not None and self.join not in JOINS:
            raise ConfigError(f"join={self.join!r} is unknown: pass None or one of {', '.join(map(repr, JOINS))}")
        if self.transformer is None:
            self.transformer = getattr(self.pipe, "transformer", None)
        if self.transformer is None and isinstance(self.pipe, torch.nn.Module):
            self.pipe, self.transformer = None, self.pipe
        if self.pipe is None:
            self.pipe = FakeDiffusionPipeline(None if isinstance(self.transformer, list) else self.transformer)
        for transformer in as_list(self.transformer):
            if not isinstance(transformer, torch.nn.Module):
                raise ConfigError(
                    f"transformer={transformer!r} is no torch.nn.Module: pass the model, or a list of models"
                )
        if self.patch_functor is not None:
            if not callable(getattr(self.patch_functor, "apply", None)):
                raise ConfigError(f"patch_functor={self.patch_functor!r} has no apply: pass a PatchFunctor, or None")
            for transformer in as_list(self.transformer):
                self.patch_functor.apply(transformer)
        if self.auto:
            self._find_blocks()
        if self.blocks is not None and self.blocks_name is None and self.transformer is not None:
            self.blocks_name = names_by_identity(as_list(self.transformer), self.blocks)

    def __repr__(self) -> str:
        """What is described, without the modules themselves and what is as usual."""
        hidden = ("pipe", "unique_blocks_name", "dummy_blocks_names", "skip_post_init")
        plain = BlockAdapter(skip_post_init=True)
        shown = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in hidden}
        told = [f"{name}={shortly(value)}" for name, value in shown.items() if value != getattr(plain, name)]
        pipe = [] if self.pipe is None else [f"pipe={type(self.pipe).__name__}"]
        return f"BlockAdapter({', '.join(pipe + told)})"

    def _find_blocks(self) -> None:
        if isinstance(self.transformer, list):
            raise ConfigError(
                "auto=True finds the blocks of one transformer: pass one, or describe the blocks yourself"
            )
        if self.transformer is None:
            raise ConfigError("auto=True needs a pipe with a transformer, or a transformer")
        if self.forward_pattern is None:
            self.forward_pattern = pattern_by_signature(
                self.transformer,
                self.allow_prefixes if self.check_prefixes else None,
                self.allow_suffixes if self.check_suffixes else None,
                blocks_policy=self.blocks_policy,
            )
        self.blocks, self.blocks_name = self.find_match_blocks(
            self.transformer,
            self.allow_prefixes,
            self.allow_suffixes,
            self.check_prefixes,
            self.check_suffixes,
            forward_pattern=self.forward_pattern,
            blocks_policy=self.blocks_policy,
            check_num_outputs=self.check_num_outputs,
        )

    @staticmethod
    def auto_block_adapter(adapter: BlockAdapter) -> BlockAdapter:
        """A copy of an adapter with ``auto=True``, its blocks found; everything else in it is kept."""
        if not adapter.auto:
            raise ConfigError("auto_block_adapter needs an adapter with auto=True")
        values = {name: getattr(adapter, name) for name in adapter.__dataclass_fields__}
        return BlockAdapter(**{**values, "blocks": None, "blocks_name": None})

    @staticmethod
    def find_blocks(transformer: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
        """Every ``ModuleList`` that is an attribute of a transformer, by name."""
        return find_blocks(transformer)

    @staticmethod
    def find_match_blocks(
        transformer: torch.nn.Module,
        allow_prefixes: Sequence[str] = BLOCK_PREFIXES,
        allow_suffixes: Sequence[str] = ("TransformerBlock",),
        check_prefixes: bool = True,
        check_suffixes: bool = False,
        *,
        forward_pattern: ForwardPattern,
        blocks_policy: str = "max",
        check_num_outputs: bool = False,
    ) -> tuple[torch.nn.ModuleList, str]:
        """The longest ("max") or shortest ("min") block list of a transformer that fits a pattern, and its name.

        Raises:
            UnsupportedModelError: if no list fits; says which lists there are.
        """
        return find_match_blocks(
            transformer,
            forward_pattern,
            prefixes=tuple(allow_prefixes) if check_prefixes else None,
            suffixes=tuple(allow_suffixes) if check_suffixes else None,
            blocks_policy=blocks_policy,
            check_num_outputs=check_num_outputs,
        )

    @staticmethod
    def match_block_pattern(
        block: torch.nn.Module, forward_pattern: ForwardPattern, *, check_num_outputs: bool = False
    ) -> bool:
        """Whether a block's ``forward`` has the arguments of a pattern (and as many outputs, if that is asked)."""
        return matches_pattern(block, forward_pattern, check_num_outputs=check_num_outputs)

    @staticmethod
    def match_blocks_pattern(
        blocks: Iterable[torch.nn.Module], forward_pattern: ForwardPattern, *, check_num_outputs: bool = False
    ) -> bool:
        """Whether all blocks fit a pattern."""
        return all(matches_pattern(block, forward_pattern, check_num_outputs=check_num_outputs) for block in blocks)

    @staticmethod
    def nested_depth(value: Any) -> int:
        """How deep lists are nested in ``value``: 0 for a scalar. A ``ModuleList`` is a scalar."""
        return nested_depth(value)

    @staticmethod
    def flatten(value: Any) -> list[Any]:
        """The scalars in nested lists, in order."""
        return flatten(value)

    @staticmethod
    def is_normalized(adapter: BlockAdapter) -> bool:
        """Whether transformers are a list, and everything about their blocks a list of lists."""
        described = (adapter.blocks, adapter.blocks_name, adapter.forward_pattern)
        return isinstance(adapter.transformer, list) and all(BlockAdapter.nested_depth(x) == 2 for x in described)

    @staticmethod
    def assert_normalized(adapter: BlockAdapter) -> None:
        """Raise ``ConfigError`` unless an adapter is in its normal form."""
        if not BlockAdapter.is_normalized(adapter):
            raise ConfigError("this BlockAdapter is not in its normal form: call BlockAdapter.normalize(adapter) first")

    @staticmethod
    def is_cached(adapter: Any) -> bool:
        """Whether a cache is on an adapter's transformers, on a pipeline, or on a transformer."""
        held = as_list(adapter.transformer) if isinstance(adapter, BlockAdapter) else [adapter]
        return any(state_of(base_of(module)) is not None for module in held)

    @staticmethod
    def is_parallelized(adapter: Any) -> bool:
        """Whether an adapter's transformers, a pipeline's, or a transformer itself are spread over devices."""
        held = adapter if isinstance(adapter, torch.nn.Module) else getattr(adapter, "transformer", None)
        return any(parallel_group(module) is not None for module in as_list(held))

    @staticmethod
    def check_block_adapter(adapter: BlockAdapter) -> bool:
        """Whether an adapter has all its parts, and its blocks are called as their patterns say; changes nothing."""
        try:
            for target in copy.copy(adapter).targets():
                for chain in target.chains:
                    replace(chain, strict=True).calls()
        except CacheDitError:
            return False
        return True

    @staticmethod
    def unique(adapter: BlockAdapter) -> BlockAdapter:
        """Bring an adapter to its normal form, with a name for each block list that no other has; see ``normalize``."""
        return BlockAdapter.normalize(adapter, unique=True)

    @staticmethod
    def normalize(adapter: BlockAdapter, unique: bool = True) -> BlockAdapter:
        """Bring an adapter to its normal form, in place, and return it; ``unique`` also names its lists uniquely.

        Raises:
            ConfigError: if parts are missing or do not fit each other.
        """
        normalize(adapter, unique=unique)
        return adapter

    def targets(self, params_modifiers: Any = None) -> list[Target]:
        """The transformers and chains that this adapter describes.

        Args:
            params_modifiers: those to go by where the adapter has none of its own.
        """
        return targets_of(self, params_modifiers)
