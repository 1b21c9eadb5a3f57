"""Blocks in call order as F | M | B: where each stands, and what all requests share of them.

The first ``Fn`` blocks (F) and the last ``Bn`` blocks (B) always compute. The middle blocks (M) can be skipped.
"""

from __future__ import annotations

import enum
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import torch

from cache_dit.engine.adapters.pattern import JOINS, BlockIO, Join
from cache_dit.errors import ConfigError

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Keep a function out of compiled code, with all that it calls."""
    return cast(Function, torch.compiler.disable(function))


try:
    _set_eval_frame: Any = importlib.import_module("torch._C._dynamo.eval_frame").set_eval_frame
except (ImportError, AttributeError):  # a torch that keeps it elsewhere
    _set_eval_frame = None


def untraced_by_caller(function: Function) -> Function:
    """What is called between ``before = trace_by(None)`` and ``trace_by(before)`` alone needs nothing more."""
    return untraced(function) if _set_eval_frame is None else function


#: For a stretch of a function that is not traced itself: what ``untraced`` comes down to, without its three calls.
trace_by: Callable[[Any], Any] = _set_eval_frame or (lambda callback: None)


class Zone(enum.IntEnum):
    """Where in its chain a block stands."""

    FRONT = 0
    MIDDLE = 1
    BACK = 2


#: What a block does in a forward. Small numbers: compiled code may read them.
COMPUTE, LEAVE, WATCH, ASK, PASS, FILL = range(6)
# COMPUTE: it runs. LEAVE: it runs, and may turn out to be the last M block that did. WATCH: an F block whose input or
# output the decision needs. ASK: what it does is asked when it is called. PASS: it hands on what it was given.
# FILL: it hands out the prediction.


@dataclass(frozen=True)
class Layout:
    """Which blocks of a chain can be skipped: its zones, block by block.

    Args:
        zones: each block's zone, in call order.
        last_front: the place of the last F block, -1 where there is none.
        last_middle: the place of the last M block, -1 where there is none.
    """

    zones: tuple[Zone, ...]
    last_front: int
    last_middle: int

    @classmethod
    def of(cls, length: int, front: int, back: int) -> Layout:
        """The layout of a chain of ``length`` blocks with ``front`` blocks F and ``back`` blocks B."""
        middle = max(length - front - back, 0)
        zones = (Zone.FRONT,) * front + (Zone.MIDDLE,) * middle + (Zone.BACK,) * back
        return cls(zones[:length], front - 1, front + middle - 1 if middle else -1)

    @property
    def front(self) -> int:
        """How many blocks stand in front."""
        return self.last_front + 1

    @cached_property
    def middle(self) -> int:
        """How many blocks can be skipped."""
        return self.zones.count(Zone.MIDDLE)

    @property
    def back(self) -> int:
        """How many blocks stand at the back."""
        return self.zones.count(Zone.BACK)

    def parts(self, middle: int, *, but: Mapping[int, int] | None = None) -> tuple[int, ...]:
        """What each block does.

        Args:
            middle: what the M blocks do.
            but: what blocks at certain places do instead.
        """
        usual = (middle if zone is Zone.MIDDLE else COMPUTE for zone in self.zones)
        return tuple((but or {}).get(place, part) for place, part in enumerate(usual))


class _Current(threading.local):
    """The forward of a chain that is under way in this thread, or None: then the blocks act plain.

    Each thread's own from the start: a default of the class is what `torch.compile` takes for it before torch 2.13.
    """

    forward: Any  # a `ChainForward`

    def __init__(self) -> None:
        self.forward = None


class BlockRole:
    """What a block must know of the chain it stands in: one per block, the same for all requests.

    Args:
        chain: the chain.
        position: the block's place in the chain, from 0, over all its lists.
        list_index: which of the chain's block lists it stands in.
        io: how it is called.
    """

    def __init__(self, chain: Chain, position: int, list_index: int, io: BlockIO) -> None:
        self.current = chain.current
        self.join = JOINS[chain.join] if chain.join else None
        self.position = position
        self.list_index = list_index
        self.io = io


class IdleRole:
    """What a module between blocks must know: the chain that it idles with, and its argument that holds H."""

    def __init__(self, chain: Chain, argument: str) -> None:
        self.current = chain.current
        self.argument = argument

    def idles(self) -> bool:
        """Whether the blocks around it are being skipped: its result goes nowhere."""
        forward = self.current.forward
        return forward is not None and forward.idles()


class Chain:
    """A run of blocks in call order with one decision and one residual.

    Args:
        name: what it is called in reports: the names of its block lists.
        join: how the second block list takes over from the first; None where both streams go on as they are.
        rounds: how many lists take turns, block by block: 1 unless they are interleaved.
        long_skip: whether block n − 1 − i reads what block i returned.
        owner: the transformer's class name, for messages.
    """

    def __init__(
        self,
        name: str,
        *,
        join: Join = None,
        rounds: int = 1,
        long_skip: bool = False,
        owner: str = "the model",
    ) -> None:
        self.name = name
        self.owner = owner
        self.join = join
        self.rounds = rounds
        self.long_skip = long_skip
        self.blocks: list[torch.nn.Module] = []
        self.roles: list[BlockRole] = []
        #: Whether blocks write into their input; None until the first computed step has shown it.
        self.writes_input: bool | None = None
        #: What was said of this chain in the log already.
        self.said: set[str] = set()
        self.current = _Current()

    def add(self, block: torch.nn.Module, list_index: int, io: BlockIO) -> BlockRole:
        """Append a block and give its role."""
        role = BlockRole(self, len(self.blocks), list_index, io)
        self.blocks.append(block)
        self.roles.append(role)
        return role

    def layout(self, front: int, back: int) -> Layout:
        """The chain with ``front`` blocks F and ``back`` blocks B of each list.

        Where lists take turns the middle begins and ends in the last one, whose layout the residual has. With long
        skips no more B blocks compute than F blocks have run for them.

        Raises:
            ConfigError: if there are not as many blocks.
        """
        front, back = self.rounds * front + self.rounds - 1, self.rounds * back
        if front + back > len(self.blocks):
            raise ConfigError(
                f"Fn_compute_blocks={front} and Bn_compute_blocks={back} exceed the {len(self.blocks)} blocks of "
                f"{self.name} in {self.owner}: pass smaller ones, for example DBCacheConfig(Fn_compute_blocks=1)"
            )
        if self.long_skip and back > front:
            self.say_once(
                "cache_dit: the last blocks of %s read what the first ones return: Bn_compute_blocks=%d becomes Fn, %d",
                self.name,
                back,
                front,
            )
            back = front
        return Layout.of(len(self.blocks), front, back)

    def say_once(self, message: str, *values: object) -> None:
        """Warn in the log, but only once for each message."""
        if message not in self.said:
            self.said.add(message)
            logger.warning(message, *values)
