"""Watching one forward of a model: which blocks it calls, in which order, with what, and what they return."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.engine.adapters.pattern import BlockIO, ForwardPattern, argument_names, describe
from cache_dit.errors import PatternMismatchError

_CONTAINERS = (torch.nn.ModuleList, torch.nn.Sequential, torch.nn.ModuleDict)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

#: What is compared of two tensors: a block's residual exists only where its input and its output agree in all of it.
Look = tuple[tuple[int, ...], torch.dtype, torch.device]

#: An argument's name, or its place where ``forward`` has no name for it (``*args``).
Key = str | int


def look(tensor: torch.Tensor) -> Look:
    """A tensor's shape, dtype and device."""
    return tuple(tensor.shape), tensor.dtype, tensor.device


@dataclass
class BlockCall:
    """One call of a block.

    Args:
        number: its place among all calls that were watched.
        index: the block's place in its list.
        given: what came in: a description of each argument.
        tensors: the arguments that are tensors.
        constant: those of them that the list's last call got too, the same object.
        fed: for each item of what the list's last call returned, the arguments that are this very tensor.
        fed_by: the list whose block, called right before, returned one of them; its own list goes first.
        made_of: of a list's first call, for each other list: the arguments that are what it returned last, one item or
            two of them over the tokens (dimension 1) one after the other, with the places of these items.
        returned: a description of what came out.
        items: the tensors that came out, by their place; place 0 is a bare tensor's.
        patterns: those that can express what came out.
    """

    number: int
    index: int
    given: dict[Key, str] = field(default_factory=dict)
    tensors: dict[Key, Look] = field(default_factory=dict)
    constant: set[Key] = field(default_factory=set)
    fed: dict[int, set[Key]] = field(default_factory=dict)
    fed_by: WatchedList | None = None
    made_of: dict[WatchedList, dict[Key, tuple[int, ...]]] = field(default_factory=dict)
    returned: str = ""
    items: dict[int, Look] = field(default_factory=dict)
    patterns: frozenset[ForwardPattern] = frozenset()


@dataclass(eq=False)
class WatchedList:
    """A list of modules in a model.

    Args:
        name: where it is; dots lead into modules.
        blocks: its modules, in its own order.
        calls: their calls, in call order.
        inner: whether a module inside one of its blocks was called.
    """

    name: str
    blocks: tuple[torch.nn.Module, ...]
    calls: list[BlockCall] = field(default_factory=list)
    inner: bool = False

    @property
    def classes(self) -> list[str]:
        """The names of its modules' classes, each once."""
        return list(dict.fromkeys(type(plain(block)).__name__ for block in self.blocks))


def plain(module: Any) -> Any:
    """The module inside a compiled wrapper, or the module itself."""
    return getattr(module, "_orig_mod", module)


def lists_of(model: torch.nn.Module) -> list[WatchedList]:
    """Every list of modules in a model: in a ``ModuleList``, a ``Sequential`` or a ``ModuleDict``, however deep."""
    return [
        WatchedList(name, tuple(module.values() if isinstance(module, torch.nn.ModuleDict) else module))
        for name, module in model.named_modules()
        if name and isinstance(module, _CONTAINERS) and len(module)
    ]


def has_blocks_beside(model: torch.nn.Module, blocks: Sequence[torch.nn.Module]) -> bool:
    """Whether a model has lists of blocks, modules of one class with parts, in which others than these stand."""
    known = {module for block in blocks for module in plain(block).modules()} | set(blocks)
    beside = (listed for listed in lists_of(model) if not known.issuperset(listed.blocks))
    return any(
        len(listed.classes) == 1 and all(list(plain(block).children()) for block in listed.blocks) for listed in beside
    )


def trace(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[WatchedList]:
    """Run one forward without gradients and watch the lists in it; afterwards the model is as before."""
    lists = lists_of(model)
    with contextlib.ExitStack() as stack:
        watcher = _Watcher()
        for listed in lists:
            for block in dict.fromkeys(listed.blocks):
                for hook in watcher.watch(listed, block):
                    stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code may have no room for hooks
        model(*args, **kwargs)
    return lists


class _Watcher:
    """Hooks on blocks, and the tensors of the latest calls: only these, a forward's tensors are many."""

    def __init__(self) -> None:
        self._count = 0
        self._arguments: dict[WatchedList, dict[Key, torch.Tensor]] = {}
        self._returned: dict[WatchedList, dict[int, torch.Tensor]] = {}
        self._latest: WatchedList | None = None

    def watch(self, listed: WatchedList, block: torch.nn.Module) -> Iterator[Any]:
        """Put hooks on one block."""
        index = listed.blocks.index(block)
        under_way: list[BlockCall] = []

        def enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            under_way.append(self._enter(listed, index, _keyed(module, args, kwargs)))

        def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._leave(listed, under_way.pop(), module, output)

        def inside(module: torch.nn.Module, args: Any) -> None:
            listed.inner = True

        yield block.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)  # as the model's loop calls it
        yield block.register_forward_hook(leave)
        for child in plain(block).children():
            yield child.register_forward_pre_hook(inside)

    def _enter(self, listed: WatchedList, index: int, given: dict[Key, Any]) -> BlockCall:
        tensors = {key: value for key, value in given.items() if isinstance(value, torch.Tensor)}
        before, returned = self._arguments.get(listed, {}), self._returned.get(listed, {})
        call = BlockCall(
            self._count,
            index,
            given={key: describe(value) for key, value in given.items()},
            tensors={key: look(tensor) for key, tensor in tensors.items()},
            constant={key for key, tensor in tensors.items() if before.get(key) is tensor},
            fed={place: {key for key in tensors if tensors[key] is item} for place, item in returned.items()},
        )
        latest = [] if self._latest is None else self._returned[self._latest].values()
        if any(call.fed.values()):
            call.fed_by = listed
        elif any(tensor is item for tensor in tensors.values() for item in latest):
            call.fed_by = self._latest
        if not listed.calls:
            call.made_of = {other: _made_of(tensors, items) for other, items in self._returned.items()}
        self._count += 1
        self._arguments[listed] = tensors
        return call

    def _leave(self, listed: WatchedList, call: BlockCall, block: torch.nn.Module, output: Any) -> None:
        items = list(output) if isinstance(output, (tuple, list)) else [output]
        tensors = {place: item for place, item in enumerate(items) if isinstance(item, torch.Tensor)}
        call.returned = describe(output)
        call.items = {place: look(item) for place, item in tensors.items()}
        call.patterns = frozenset(pattern for pattern in ForwardPattern if _expresses(pattern, block, output))
        self._returned[listed], self._latest = tensors, listed
        listed.calls.append(call)


def _made_of(tensors: Mapping[Key, torch.Tensor], items: Mapping[int, torch.Tensor]) -> dict[Key, tuple[int, ...]]:
    """The tensors that are one of some items, or two of them over dimension 1, with the places of these."""
    found: dict[Key, tuple[int, ...]] = {}
    for key, tensor in tensors.items():
        for places in (*((place,) for place in items), *itertools.permutations(items, 2)):
            parts = [items[place] for place in places]
            if (tensor is parts[0]) if len(parts) == 1 else _is_joint(tensor, parts):
                found[key] = places
                break
    return found


def _is_joint(tensor: torch.Tensor, parts: Sequence[torch.Tensor]) -> bool:
    shapes = [(*part.shape[:1], *part.shape[2:]) for part in (tensor, *parts)]
    if tensor.dim() < 2 or len(set(shapes)) > 1 or any(part.dim() != tensor.dim() for part in parts):
        return False
    return torch.equal(tensor, torch.cat(list(parts), dim=1))


def _keyed(block: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """A call's arguments by name, or by place where there is none."""
    forward = type(plain(block)).forward
    kinds = {parameter.name: parameter.kind for parameter in inspect.signature(forward).parameters.values()}
    names = [name for name in argument_names(forward) if kinds[name] in _BY_PLACE]
    keys: list[Key] = [names[place] if place < len(names) else place for place in range(len(args))]
    return dict(zip(keys, args, strict=True)) | dict(kwargs)


def _expresses(pattern: ForwardPattern, block: torch.nn.Module, output: Any) -> bool:
    try:
        _, encoder, _ = BlockIO(type(plain(block)), pattern).split(output)
    except PatternMismatchError:
        return False
    return encoder is None or isinstance(encoder, torch.Tensor)  # an object in its place is for who knows of it
