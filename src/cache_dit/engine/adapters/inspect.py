"""``cache_dit.inspect``: how a model that nobody described calls its blocks, and the ``BlockAdapter`` to write."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cache_dit.engine.adapters.block_adapter import BlockAdapter
from cache_dit.engine.adapters.match import Fit, Unfit, fit, is_inside, joining, mix, side_list, taking_turns
from cache_dit.engine.adapters.pattern import ENCODER, HIDDEN, Join
from cache_dit.engine.adapters.trace import WatchedList, plain, trace
from cache_dit.engine.subclass import state_of
from cache_dit.errors import ConfigError, UnsupportedModelError

_NOTHING = """No list fits. What can be done: make a ModuleList of equal blocks, each of which takes H or (H, E) and
returns H, (H, E) or (E, H) of the same shapes, and call its blocks one after the other with block(...)."""


@dataclass(frozen=True, eq=False)
class InspectedList:
    """A list of modules, and what a forward showed of it.

    Args:
        watched: the list and its calls.
        fit: how it can be described, or None.
        reason: why it cannot be; empty where it can.
    """

    watched: WatchedList
    fit: Fit | None
    reason: str = ""

    @property
    def name(self) -> str:
        """Where it is in the model; dots lead into modules."""
        return self.watched.name

    def __str__(self) -> str:
        watched = self.watched
        blocks = f"{self.name}: {len(watched.blocks)} × {' | '.join(watched.classes)}"
        lines = [f"{blocks}, {_count(watched)}"]
        if watched.calls:
            call = watched.calls[0]
            lines.append(f"    in:  {', '.join(f'{key}: {seen}' for key, seen in call.given.items())}")
            lines.append(f"    out: {call.returned}")
        if self.fit is None:
            return "\n".join([*lines, f"    cannot be cached: {self.reason}"])
        hidden, encoder = self.fit.streams
        streams = f"H is {hidden}" + (f", E is {encoder}" if not self.fit.pattern.Forward_H_only else "")
        link = (
            "what the last one returned" if self.fit.linked else "another tensor of the same shape as the last returned"
        )
        return "\n".join([*lines, f"    the next block gets {link}", f"    fits {self.fit.pattern.name}: {streams}"])


@dataclass(frozen=True, eq=False)
class Inspection:
    """What one forward of a model showed; ``print`` it.

    Args:
        transformer: the model.
        lists: its lists of modules; those inside the blocks of a list that fits are left out.
        turns: the names of lists whose blocks take turns: they are one chain.
        joined: the names of two lists of which the second takes over both streams of the first: they are one chain too.
        join: how it takes them over; see ``BlockAdapter``.
    """

    transformer: torch.nn.Module
    lists: tuple[InspectedList, ...]
    turns: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    join: Join = None

    @property
    def fitting(self) -> list[InspectedList]:
        """The lists that can be cached, the longest first."""
        found = [listed for listed in self.lists if listed.fit is not None]
        return sorted(found, key=lambda listed: -len(listed.watched.calls))

    def adapter(self, *names: str, **options: Any) -> BlockAdapter:
        """The description of the longest list that fits, or of two as one chain where these are joined.

        Args:
            *names: the lists to describe instead; each is a chain of its own, if their blocks do not take turns.
            **options: more of ``BlockAdapter``.

        Raises:
            UnsupportedModelError: if no list fits.
            ConfigError: if one of the names is none of a list that fits, or two of the lists cannot go together.
        """
        chosen = self._chosen(names)
        module: Any = plain(self.transformer)
        blocks = [_blocks(module.get_submodule(listed.name), listed) for listed in chosen]
        described: dict[str, Any] = {
            "blocks": blocks,
            "blocks_name": [listed.name for listed in chosen],
            "forward_pattern": [_fit(listed).pattern for listed in chosen],
            "stream_names": [_fit(listed).streams for listed in chosen],
        }
        return BlockAdapter(**{"transformer": self.transformer, **described, **self._merged(chosen, names), **options})

    def line(self, *names: str) -> str:
        """The line of code that puts a cache on the model; arguments and errors are those of ``adapter``."""
        chosen = self._chosen(names)
        fields = {
            "transformer": "transformer",
            "blocks": _listed([_expression(plain(self.transformer), listed) for listed in chosen]),
            "forward_pattern": _listed([str(_fit(listed).pattern) for listed in chosen]),
        }
        streams = [str(_fit(listed).streams).replace("'", '"') for listed in chosen]
        if any(_fit(listed).streams != (HIDDEN, ENCODER) for listed in chosen):
            fields["stream_names"] = _listed(streams)
        merged = self._merged(chosen, names)
        fields |= {name: f'"{value}"' if isinstance(value, str) else str(value) for name, value in merged.items()}
        return f"cache_dit.enable_cache(BlockAdapter({', '.join(f'{name}={value}' for name, value in fields.items())}))"

    def __str__(self) -> str:
        lines = [f"{type(plain(self.transformer)).__name__}: what one forward showed", *map(str, self.lists), ""]
        if not self.fitting:
            return "\n".join([*lines, _NOTHING])
        chosen = [listed.name for listed in self._chosen(())]
        lines += ["Write (and check it: with the same inputs at every step, cached steps give the same output):"]
        lines += [f"    {self.line()}"]
        others = [listed.name for listed in self.fitting if listed.name not in chosen]
        if others:
            lines.append(f"Lists that fit as well: {', '.join(others)}.")
        together = [listed.name for listed in self.lists if listed in self._together()]
        if len(together) > len(chosen) or chosen == list(self.joined):
            lines += ["Several lists, each a chain of its own:", f"    {self.line(*together)}"]
        return "\n".join(lines)

    def _together(self) -> list[InspectedList]:
        """As many of the lists that fit as can be described together, the longest first."""
        found = self._chosen(())
        for listed in self.fitting:
            if not any(listed is one or mix(listed.watched, one.watched) for one in found):
                found.append(listed)
        return found

    def _chosen(self, names: tuple[str, ...]) -> list[InspectedList]:
        fitting = {listed.name: listed for listed in self.fitting}
        if not fitting:
            reasons = (
                "; ".join(f"{listed.name}: {listed.reason}" for listed in self.lists) or "it has no list of modules"
            )
            raise UnsupportedModelError(f"no block list of {type(plain(self.transformer)).__name__} fits: {reasons}")
        for name in names:
            if name not in fitting:
                raise ConfigError(f"{name!r} is no list that fits: pass one of {', '.join(map(repr, fitting))}")
        wanted = names or self.joined or tuple(fitting)[:1]
        if set(wanted) & set(self.turns):
            wanted = (*self.turns, *(name for name in wanted if name not in self.turns))
        chosen = [fitting[name] for name in wanted]
        for one, other in itertools.combinations(chosen, 2):
            if {one.name, other.name} - set(self.turns) and mix(one.watched, other.watched):
                raise ConfigError(
                    f"blocks of {one.name} and {other.name} are called between each other: pass one of the two, or "
                    f"describe them as one chain (merge=True, interleave=True) if they take turns one by one"
                )
        return chosen

    def _merged(self, chosen: list[InspectedList], names: tuple[str, ...]) -> dict[str, Any]:
        """What says that lists are one chain; those that are joined are where nobody named them."""
        if self.joined and not names:
            return {"merge": True, **({} if self.join is None else {"join": self.join})}
        taking = len(chosen) > 1 and {listed.name for listed in chosen} == set(self.turns)
        return {"merge": True, "interleave": True} if taking else {}


def inspect(transformer: torch.nn.Module, *args: Any, **kwargs: Any) -> Inspection:
    """Run one forward of a model, watch its lists of blocks, and print what was seen and the ``BlockAdapter`` to write.

    Args:
        transformer: the model whose one call is one denoising step; nothing is left on it.
        *args: what its forward takes.
        **kwargs: the same, by name.

    Returns:
        What was seen: ``adapter()`` is the description, ``line()`` the code to write.

    Raises:
        ConfigError: if this is no model, or has a cache on.
    """
    if not isinstance(transformer, torch.nn.Module):
        raise ConfigError(f"inspect got a {type(transformer).__name__}: pass a transformer and its forward's arguments")
    if any(state_of(module) is not None for module in transformer.modules()):
        raise ConfigError("a cache is on this model, and skips blocks: call cache_dit.disable_cache(transformer) first")
    inspection = _judged(transformer, trace(plain(transformer), args, kwargs))
    print(inspection)
    return inspection


def _judged(transformer: torch.nn.Module, lists: list[WatchedList]) -> Inspection:
    """Which lists fit, from the outermost to those inside of their blocks, which need no judgement then."""
    judged: list[InspectedList] = []
    for watched in lists:  # a list comes before those that lie inside of it
        outer = [other for other in judged if is_inside(watched, other.watched)]
        if any(other.fit is not None for other in outer):
            continue
        found = _judge(watched)
        if found.fit is not None or not outer:
            judged.append(found)
    fitting = [listed.watched for listed in judged if listed.fit is not None]
    turns = taking_turns(fitting)
    left = tuple(listed if listed.watched in turns else _alone(listed) for listed in judged)
    return Inspection(transformer, left, tuple(watched.name for watched in turns), *_joined(left))


def _joined(lists: Sequence[InspectedList]) -> tuple[tuple[str, ...], Join]:
    """The two lists that are one chain, and how they are joined; none where another list is longer than both."""
    calls = {listed.name: len(listed.watched.calls) for listed in lists if listed.fit is not None}
    for first, second in itertools.permutations(lists, 2):
        if first.fit is None or second.fit is None or calls[first.name] + calls[second.name] < max(calls.values()):
            continue
        if (found := joining(first.watched, second.watched, (first.fit, second.fit))) is not None:
            return (first.name, second.name), found[0]
    return (), None


def _judge(watched: WatchedList) -> InspectedList:
    try:
        return InspectedList(watched, fit(watched))
    except Unfit as reason:
        return InspectedList(watched, None, str(reason))


def _alone(listed: InspectedList) -> InspectedList:
    """A list by itself: it does not fit where its blocks only read what those of another list return."""
    feeding = None if listed.fit is None else side_list(listed.watched)
    if feeding is None:
        return listed
    return InspectedList(listed.watched, None, f"its blocks read what those of {feeding.name} return, not each other")


def _count(watched: WatchedList) -> str:
    """How often the blocks of a list were called."""
    called = len({call.index for call in watched.calls})
    if not called:
        return "not called"
    left_out = len(watched.blocks) - called
    each = len(watched.calls) / called
    times = "once" if each == 1 else f"{each:g} times"
    order = list(dict.fromkeys(call.index for call in watched.calls))
    inorder = "in order" if order == sorted(order) else f"in the order {', '.join(map(str, order))}"
    return f"called {times} each, {inorder}" + (f", {left_out} of them not" if left_out else "")


def _fit(listed: InspectedList) -> Fit:
    if listed.fit is None:
        raise ConfigError(f"{listed.name} does not fit: {listed.reason}")
    return listed.fit


def _in_order(listed: InspectedList) -> bool:
    """Whether the list itself is the blocks in call order."""
    order = _fit(listed).order
    return order == tuple(sorted(order))


def _blocks(container: Any, listed: InspectedList) -> Any:
    """What to pass as blocks: the list, or its blocks in call order."""
    if _in_order(listed):
        return container
    return torch.nn.ModuleList(listed.watched.blocks[place] for place in _fit(listed).order)


def _expression(module: Any, listed: InspectedList) -> str:
    """The code that gets at the blocks of a list."""
    code = "transformer"
    for part in listed.name.split("."):
        if isinstance(module, torch.nn.ModuleDict):
            code += f'["{part}"]'
        else:
            code += f".{part}" if part.isidentifier() else f"[{part}]"
        module = module.get_submodule(part)
    if _in_order(listed):
        return code
    held = f"list({code}.values())" if isinstance(module, torch.nn.ModuleDict) else code
    return f"[{held}[i] for i in {_fit(listed).order}]"


def _listed(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"
