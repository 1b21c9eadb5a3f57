"""The normal form of a description: transformers, each with chains of block lists; and the way from lists of lists."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from cache_dit.config.modifier import ParamsModifier
from cache_dit.engine.adapters.pattern import ENCODER, HIDDEN, BlockIO, ForwardPattern, Join, takes_any_name
from cache_dit.errors import ConfigError

logger = logging.getLogger(__name__)


class Description(Protocol):
    """What a ``BlockAdapter`` says, which explains each of these."""

    transformer: torch.nn.Module | list[torch.nn.Module] | None
    blocks: Any
    blocks_name: Any
    unique_blocks_name: Any
    dummy_blocks_names: Any
    forward_pattern: Any
    params_modifiers: Any
    check_forward_pattern: bool | None
    merge: bool | Sequence[int]
    join: Join
    interleave: bool
    long_skip: bool
    idle: dict[str, str]
    stream_names: Any


@dataclass(frozen=True)
class BlockList:
    """Blocks that are called one after the other in one way.

    Args:
        name: the attribute they are found under, for reports.
        blocks: the blocks, in call order.
        pattern: what goes in and out.
        streams: the names of H and E in the blocks' ``forward``.
    """

    name: str = field(compare=False)
    blocks: tuple[torch.nn.Module, ...]
    pattern: ForwardPattern
    streams: tuple[str, str] = (HIDDEN, ENCODER)


@dataclass(frozen=True)
class ChainSpec:
    """Block lists with one decision and one residual; what the fields mean is said by ``BlockAdapter``.

    ``strict`` says which names the blocks' ``forward`` must have: all that a pattern reads, those that were given by
    ``stream_names`` (None), or none.
    """

    lists: tuple[BlockList, ...]
    join: Join = None
    modifier: ParamsModifier | None = None
    strict: bool | None = None
    interleave: bool = False
    long_skip: bool = False

    def ordered(self) -> list[tuple[int, torch.nn.Module]]:
        """Its blocks in call order, each with the index of its list.

        Raises:
            ConfigError: if lists that take turns differ in length.
        """
        if not self.interleave:
            return [(index, block) for index, listed in enumerate(self.lists) for block in listed.blocks]
        lengths = [len(listed.blocks) for listed in self.lists]
        if len(set(lengths)) > 1:
            raise ConfigError(f"interleave=True with lists of {lengths} blocks: pass lists of one length")
        rounds = zip(*(listed.blocks for listed in self.lists), strict=True)
        return [(index, block) for blocks in rounds for index, block in enumerate(blocks)]

    def calls(self) -> list[tuple[int, torch.nn.Module, BlockIO]]:
        """Its blocks in call order, each with the index of its list and how it is called: blocks of a class share that.

        Raises:
            PatternMismatchError: if a block lacks an argument that its pattern reads.
            ConfigError: if a pattern is none.
        """
        known: dict[tuple[int, type], BlockIO] = {}
        found = []
        for index, block in self.ordered():
            listed = self.lists[index]
            if not isinstance(listed.pattern, ForwardPattern):
                raise ConfigError(
                    f"forward_pattern={listed.pattern!r} is no ForwardPattern: pass ForwardPattern.Pattern_0 … 5"
                )
            inner = type(getattr(block, "_orig_mod", block))  # a compiled block: its wrapper's forward says nothing
            if (index, inner) not in known:
                hidden, encoder = listed.streams
                named = listed.streams != (HIDDEN, ENCODER) and not takes_any_name(inner)
                strict = named if self.strict is None else self.strict
                known[index, inner] = BlockIO(inner, listed.pattern, hidden=hidden, encoder=encoder, strict=strict)
            found.append((index, block, known[index, inner]))
        return found

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


def alike(first: Target, chains: tuple[ChainSpec, ...], idle: tuple[tuple[torch.nn.Module, str], ...]) -> bool:
    """Whether a description differs from these chains and idle modules in options alone."""
    plain = [[replace(spec, modifier=None, strict=False) for spec in specs] for specs in (first.chains, chains)]
    return plain[0] == plain[1] and first.idle == idle


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


def normalize(adapter: Description, *, unique: bool = True) -> None:
    """Bring a description to its normal form, in place; ``unique`` also names its lists uniquely.

    Raises:
        ConfigError: if parts are missing or do not fit each other.
    """
    if adapter.transformer is None or adapter.blocks is None or adapter.forward_pattern is None:
        missing = [n for n in ("transformer", "blocks", "forward_pattern") if getattr(adapter, n) is None]
        raise ConfigError(f"BlockAdapter lacks {', '.join(missing)}: pass it, or auto=True to find the blocks")
    if adapter.blocks_name is None:
        adapter.blocks_name = names_by_identity(as_list(adapter.transformer), adapter.blocks)
    transformers = as_list(adapter.transformer)
    blocks = per_transformer(listed_blocks(adapter.blocks), len(transformers), "blocks")
    adapter.transformer, adapter.blocks = transformers, blocks
    for name in ("forward_pattern", "blocks_name"):
        value = per_transformer(getattr(adapter, name), len(transformers), name)
        setattr(adapter, name, [spread(v, len(b), name) for v, b in zip(value, blocks, strict=True)])
    adapter.dummy_blocks_names = adapter.dummy_blocks_names or [[] for _ in transformers]
    if unique and not adapter.unique_blocks_name:
        adapter.unique_blocks_name = [
            [f"{name}_{id(lst)}" for name, lst in zip(names, lists, strict=True)]
            for names, lists in zip(adapter.blocks_name, blocks, strict=True)
        ]


def targets_of(adapter: Description, params_modifiers: Any = None) -> list[Target]:
    """The transformers and chains of a description, which is brought to its normal form.

    Args:
        adapter: the description.
        params_modifiers: those to go by where it has none of its own.

    Raises:
        ConfigError: if parts are missing or do not fit each other.
    """
    normalize(adapter)
    given = params_modifiers if adapter.params_modifiers is None else adapter.params_modifiers
    modifiers = iter(_modifiers(adapter, given))
    streams = iter(_streams(adapter))
    targets = []
    for transformer, lists, names, patterns in zip(
        as_list(adapter.transformer), adapter.blocks, adapter.blocks_name, adapter.forward_pattern, strict=True
    ):
        described = [
            BlockList(name, tuple(blocks), pattern, next(streams))
            for name, blocks, pattern in zip(names, lists, patterns, strict=True)
        ]
        strict = _strictness(adapter, transformer)
        join = adapter.join if adapter.merge else None
        chains = [
            ChainSpec(group, join, next(modifiers), strict, adapter.interleave, adapter.long_skip)
            for group in _grouped(adapter, described)
        ]
        targets.append(Target(transformer, tuple(chains), tuple(_idle_modules(adapter, transformer))))
    return targets


def _grouped(adapter: Description, lists: list[BlockList]) -> list[tuple[BlockList, ...]]:
    """The lists of each chain of a transformer."""
    numbers = _numbers(adapter, lists)
    numbered = list(zip(numbers, lists, strict=True))
    return [tuple(blocks for number, blocks in numbered if number == chain) for chain in dict.fromkeys(numbers)]


def _numbers(adapter: Description, lists: Sequence[Any]) -> list[int]:
    """The number of each list's chain."""
    if isinstance(adapter.merge, bool):
        return [0] * len(lists) if adapter.merge else list(range(len(lists)))
    if len(adapter.merge) != len(lists):
        raise ConfigError(f"{len(adapter.merge)} numbers in merge for {len(lists)} block lists: pass one for each")
    return list(adapter.merge)


def _idle_modules(adapter: Description, transformer: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    for attribute, argument in adapter.idle.items():
        try:
            found = transformer.get_submodule(attribute)
        except AttributeError as error:
            raise ConfigError(f"idle names {attribute!r}, which {type(transformer).__name__} has not") from error
        for module in found if isinstance(found, torch.nn.ModuleList) else [found]:
            yield module, argument


def _modifiers(adapter: Description, modifiers: Any) -> list[ParamsModifier | None]:
    given = [] if modifiers is None else _broadcast(adapter, modifiers)
    for modifier in given:
        if not isinstance(modifier, ParamsModifier | None):
            raise ConfigError(
                f"a {type(modifier).__name__} is no modifier: pass ParamsModifier(cache_config=…) or a list of them"
            )
    numbers = [(place, number) for place, lists in enumerate(adapter.blocks) for number in _numbers(adapter, lists)]
    if len(given) > len(numbers):
        raise ConfigError(f"{len(given)} params_modifiers for {len(numbers)} block lists: pass at most one for each")
    chains = list(dict.fromkeys(numbers))
    if len(given) > len(chains):  # one per list, as for lists that are chains of their own
        logger.warning("cache_dit: merged block lists share one decision: the first list's modifier counts")
        firsts = (numbers.index(chain) for chain in chains)
        given = [given[first] for first in firsts if first < len(given)]
    return given + [None] * (len(chains) - len(given))


def _broadcast(adapter: Description, modifiers: Any) -> list[Any]:
    """Modifiers in one list; where they are nested, one alone for a transformer is for all of its chains."""
    if nested_depth(modifiers) < 2:
        return flatten(modifiers)
    given = []
    for own, lists in zip(modifiers, adapter.blocks, strict=False):
        chains = len(set(_numbers(adapter, lists)))
        own = as_list(own)
        given += own * chains if len(own) == 1 else own + [None] * (chains - len(own))
    return given + flatten(modifiers[len(adapter.blocks) :])


def _streams(adapter: Description) -> list[tuple[str, str]]:
    lists = sum(map(len, adapter.blocks))
    given = adapter.stream_names or (HIDDEN, ENCODER)
    pairs = [tuple(given)] * lists if isinstance(given[0], str) else [tuple(pair) for pair in given]
    if len(pairs) != lists:
        raise ConfigError(f"{len(pairs)} pairs in stream_names for {lists} block lists: pass one for each")
    return pairs


def _strictness(adapter: Description, transformer: torch.nn.Module) -> bool | None:
    """Which names are checked; see ``ChainSpec``."""
    if hasattr(transformer, "_hf_hook") or hasattr(transformer, "_diffusers_hook"):
        return False
    usual = type(transformer).__module__.startswith("diffusers")
    asked = usual if adapter.check_forward_pattern is None else adapter.check_forward_pattern
    return True if asked else None
