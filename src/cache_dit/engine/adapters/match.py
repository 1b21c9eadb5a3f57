"""What a model's calls of a list of blocks say: which pattern fits, which arguments hold H and E, or why none does.

H and E are found by what happens to them, names only decide between equals: an argument is a stream where the next
block gets what the last one returned, the same object; or, where a model changes it in between, one of the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cache_dit.engine.adapters.pattern import ENCODER, HIDDEN, ForwardPattern, Join
from cache_dit.engine.adapters.trace import BlockCall, Key, WatchedList, plain

_HIDDEN_WORDS = ("hidden", "img", "image", "latent", "video", "audio", "sample")
_ENCODER_WORDS = ("encoder", "text", "txt", "context", "cond", "caption", "prompt")

WRAP = "let the block return H, (H, E) or (E, H): wrap it in a module that does, and let the model's loop read that"


@dataclass(frozen=True)
class Fit:
    """How a list of blocks can be described.

    Args:
        pattern: what goes in and out.
        streams: the names of H and E.
        order: the places of the blocks that were called, in call order.
        rounds: how often the list was run.
        linked: whether each block got the very tensor that the one before it had returned.
    """

    pattern: ForwardPattern
    streams: tuple[str, str]
    order: tuple[int, ...]
    rounds: int
    linked: bool


class Unfit(Exception):
    """Why a list of modules cannot be cached."""


def fit(listed: WatchedList) -> Fit:
    """How a list can be described.

    Raises:
        Unfit: if it cannot; says why, and what to do where something can be done.
    """
    _check_modules(listed)
    order, rounds = _order(listed)
    _check_results(listed)
    sources = _sources(listed.calls, len(order))
    pattern, hidden, encoder = _pattern(listed.calls[0], sources)
    if not all(pattern in call.patterns for call in listed.calls):
        raise Unfit(f"its blocks return {_results(listed)}, which {pattern.name} does not express: {WRAP}")
    for start in range(0, len(listed.calls), len(order)):
        shapes = dict.fromkeys(call.tensors[hidden][0] for call in listed.calls[start : start + len(order)])
        if len(shapes) > 1:
            raise Unfit(f"the shape of {hidden} changes from block to block: {', '.join(map(str, shapes))}")
    links = [call for call in listed.calls if call.index != order[0]]
    linked = all(hidden in set().union(*call.fed.values()) for call in links)
    return Fit(pattern, (_name(hidden, HIDDEN, 0), _name(encoder, ENCODER, 1)), order, rounds, linked)


def _check_modules(listed: WatchedList) -> None:
    if len(listed.classes) > 1:
        raise Unfit(f"its modules are of several classes: {', '.join(listed.classes)}")
    first = plain(listed.blocks[0])
    if type(first).__module__.startswith("torch.nn.") and not list(first.children()):
        raise Unfit("its modules are plain layers of torch.nn")
    if len(set(listed.blocks)) < len(listed.blocks):
        raise Unfit("one instance stands in it twice: give each place a block of its own")
    if not listed.calls and listed.inner:
        raise Unfit("its blocks were run but not called: write block(x) in the model, not block.forward(x)")
    if not listed.calls:
        raise Unfit("its blocks were not called in this forward, or by block.forward(x): write block(x)")


def _order(listed: WatchedList) -> tuple[tuple[int, ...], int]:
    """The places of the blocks in call order, and how often they were run in it."""
    called = [call.index for call in listed.calls]
    order = tuple(dict.fromkeys(called))
    if len(order) < 2:
        raise Unfit("only one block was called: there is none to skip after it")
    rounds = len(called) // len(order)
    if called != list(order) * rounds:
        raise Unfit(f"its blocks are called several times, and not in rounds: {', '.join(map(str, called))}")
    return order, rounds


def _check_results(listed: WatchedList) -> None:
    if not frozenset.intersection(*(call.patterns for call in listed.calls)):
        raise Unfit(f"its blocks return {_results(listed)}, which no pattern expresses: {WRAP}")


def _results(listed: WatchedList) -> str:
    return " or ".join(dict.fromkeys(call.returned for call in listed.calls))


def _sources(calls: Sequence[BlockCall], length: int) -> dict[int, Key]:
    """For each item that comes out, the argument that it comes from; items with none are missing."""
    later = [call for place, call in enumerate(calls) if place % length]
    constant = set.intersection(*(call.constant for call in later))
    fed: dict[int, set[Key]] = {}
    alike: dict[int, list[Key]] = {}
    for item in dict.fromkeys(item for call in calls for item in call.items):
        giving = [call for call in calls if item in call.items]  # a last block may give None in its place
        reading = [call.fed[item] for call in later if item in call.fed]
        fed[item] = set.intersection(*reading) if reading else set()
        alike[item] = [
            key
            for key in giving[0].tensors
            if all(call.tensors.get(key) == call.items[item] for call in giving)
            and (key in fed[item] or key not in constant)
        ]
    sources: dict[int, Key] = {}
    for item in sorted(alike, key=lambda item: not fed[item]):  # what is certain first
        free = [key for key in alike[item] if key not in sources.values()]
        if free:
            sources[item] = min(free, key=lambda key: (key not in fed[item], -_likeness(key)))
    return dict(sorted(sources.items()))


def _pattern(call: BlockCall, sources: dict[int, Key]) -> tuple[ForwardPattern, Key, Key | None]:
    """The pattern of a call, and which arguments hold H and E."""
    if not sources:
        came = ", ".join(f"{key} {shape}" for key, (shape, *_) in call.tensors.items())
        raise Unfit(
            f"a block returns {call.returned}, and nothing that comes in has that shape and changes with it: {came}"
        )
    places = list(sources)
    if len(places) == 2:
        keys = list(call.tensors)
        first, second = sorted(places, key=lambda item: (-_likeness(sources[item]), keys.index(sources[item])))
        pattern = ForwardPattern.Pattern_0 if first == 0 else ForwardPattern.Pattern_1
        return pattern, sources[first], sources[second]
    (place,) = places
    if place == 1:
        return ForwardPattern.Pattern_5, sources[1], None
    if len(call.items) == 2:
        return ForwardPattern.Pattern_4, sources[0], None
    reads = ENCODER in call.tensors and sources[0] != ENCODER
    return (ForwardPattern.Pattern_2, sources[0], ENCODER) if reads else (ForwardPattern.Pattern_3, sources[0], None)


def _likeness(key: Key) -> int:
    """How much an argument's name sounds like H: 1 yes, 0 nothing known, -1 like E."""
    name = str(key).lower()
    if any(word in name for word in _ENCODER_WORDS):
        return -1
    return int(name == "x" or any(word in name for word in _HIDDEN_WORDS))


def _name(key: Key | None, usual: str, place: int) -> str:
    """What a stream is called in ``stream_names``."""
    if isinstance(key, str):
        return key
    if key not in (None, place):
        raise Unfit(f"{usual} comes at place {key}, for which forward has no name: name it there, or pass it by name")
    return usual


def side_list(listed: WatchedList) -> WatchedList | None:
    """The list whose blocks feed a list's blocks, each of them, where these do not feed each other."""
    feeding = {id(call.fed_by): call.fed_by for call in listed.calls}
    (first, *others) = feeding.values()
    return first if not others and first is not listed else None


def taking_turns(lists: Sequence[WatchedList]) -> list[WatchedList]:
    """Lists that are called block by block in turns, each block with what the one before it returned; or none."""
    for listed in lists:
        group = [listed]
        while (feeding := _feeding(group[-1])) in lists and feeding not in group:
            group.append(feeding)
        group.sort(key=lambda member: member.calls[0].number)
        calls = sorted((call.number, place) for place, member in enumerate(group) for call in member.calls)
        in_turns = [place for _, place in calls] == [*range(len(group))] * len(listed.calls)
        if len(group) > 1 and feeding is listed and in_turns:
            return group
    return []


def joining(first: WatchedList, second: WatchedList, fits: tuple[Fit, Fit]) -> tuple[Join] | None:
    """How the second of two lists takes over both streams that the first one returns: its ``join``; None: it does not.

    Args:
        first, second: the lists.
        fits: how each can be described.
    """
    (one, other), made_of = fits, second.calls[0].made_of.get(first, {})
    if one.rounds > 1 or other.rounds > 1:
        return None
    if one.pattern.Forward_H_only or one.pattern.Return_H_Only:
        return None
    streams: tuple[int, ...] = (0, 1) if one.pattern.Return_H_First else (1, 0)
    hidden, encoder = (made_of.get(key, made_of.get(at)) for at, key in enumerate(other.streams))
    if other.pattern is ForwardPattern.Pattern_3:
        ways: dict[tuple[int, ...], tuple[Join]] = {streams: ("he",), streams[::-1]: ("eh",)}
        return ways.get(hidden or ())
    return (None,) if (hidden, encoder) == tuple((place,) for place in streams) else None


def _feeding(listed: WatchedList) -> Any:
    """The one list whose blocks feed those of a list, after the first; None where there is no such list."""
    feeding = {id(call.fed_by): call.fed_by for call in listed.calls[1:]}
    return next(iter(feeding.values())) if len(feeding) == 1 else None


def mix(one: WatchedList, other: WatchedList) -> bool:
    """Whether blocks of one list are called between blocks of the other: then only one of them can be skipped."""

    def between(inner: WatchedList, outer: WatchedList) -> bool:
        length = len({call.index for call in outer.calls})
        spans = [
            (outer.calls[start].number, outer.calls[start + length - 1].number)
            for start in range(0, len(outer.calls), length)
        ]
        return any(first < call.number < last for call in inner.calls for first, last in spans)

    return between(one, other) or between(other, one)


def is_inside(listed: WatchedList, other: WatchedList) -> bool:
    """Whether a list lies inside a block of another."""
    inside: set[torch.nn.Module] = {module for block in other.blocks for module in block.modules()}
    return not inside.difference(other.blocks).isdisjoint(listed.blocks)
