"""Scalars, lists and lists of lists: bringing a description of transformers and block lists to one shape."""

from __future__ import annotations

from typing import Any

import torch

from cache_dit.errors import ConfigError


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
