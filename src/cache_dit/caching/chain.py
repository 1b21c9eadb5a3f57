"""One run of blocks as F | M | B, and what each of them does in this step.

The first ``Fn`` blocks (F) and the last ``Bn`` blocks (B) always compute. The middle blocks (M) compute, or pass their
input on while the last of them hands out a prediction of what they would have made of it.

``run_block`` is what a compiled model traces. It reads only what is the same for every full step and for every cached
step (flags and fixed roles); whatever changes from step to step is decided before the forward, or in ``decide``.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch

from cache_dit.caching.history import alike
from cache_dit.caching.pattern import JOINS, BlockIO, Form, Join

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Keep a function out of compiled code, with all that it calls."""
    return cast(Function, torch.compiler.disable(function))


class Zone(enum.IntEnum):
    """Where in its chain a block stands."""

    FRONT = 0
    MIDDLE = 1
    BACK = 2


class _Current(threading.local):
    """The run of a chain that is under way in this thread, or None: then the blocks act plain."""

    run: ChainRun | None = None


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
        self.zone = Zone.MIDDLE
        self.closes_front = False
        self.closes_middle = False


class IdleRole:
    """What a module between blocks must know: the chain that it idles with, and its argument that holds H."""

    def __init__(self, chain: Chain, argument: str) -> None:
        self.current = chain.current
        self.argument = argument

    def idles(self) -> bool:
        """Whether the blocks around it are being skipped: its result goes nowhere."""
        run = self.current.run
        return run is not None and run.begun and run.skip and not run.filled


class Chain:
    """A run of blocks in call order with one decision and one residual.

    Args:
        name: what it is called in reports: the names of its block lists.
        front: Fn, the number of first blocks that always compute.
        back: Bn, the number of last blocks that always compute.
        join: how the second block list takes over from the first; None where both streams go on as they are.
        keeps_state: predict the state after the middle blocks instead of the residual over them.
        measures: whether the policy ever compares steps, so that the change over F must be kept.
    """

    def __init__(
        self,
        name: str,
        *,
        front: int,
        back: int,
        join: Join = None,
        keeps_state: bool = False,
        measures: bool = True,
    ) -> None:
        self.name = name
        self.front = front
        self.back = back
        self.join = join
        self.keeps_state = keeps_state
        self.measures = measures and front > 0
        self.blocks: list[torch.nn.Module] = []
        self.roles: list[BlockRole] = []
        #: Whether blocks write into their input; None until the first computed step has shown it.
        self.writes_input: bool | None = None
        self.current = _Current()

    def add(self, block: torch.nn.Module, list_index: int, io: BlockIO) -> BlockRole:
        """Append a block and give its role."""
        role = BlockRole(self, len(self.blocks), list_index, io)
        self.blocks.append(block)
        self.roles.append(role)
        return role

    def set_front(self, front: int) -> None:
        """Change Fn, and with it every block's zone."""
        self.front = front
        self.set_back(self.back)

    def set_back(self, back: int) -> None:
        """Fix Bn, and with it every block's zone."""
        self.back = back
        last = len(self.roles) - back - 1
        for role in self.roles:
            in_front, in_back = role.position < self.front, role.position > last
            role.zone = Zone.FRONT if in_front else Zone.BACK if in_back else Zone.MIDDLE
            role.closes_front = role.position == self.front - 1
            role.closes_middle = role.position == last and not in_front

    @property
    def middle(self) -> int:
        """How many blocks can be skipped."""
        return max(len(self.roles) - self.front - self.back, 0)


class ChainRun:
    """One pass of one forward over a chain: made anew each time, thrown away after it.

    Before the forward: ``skip`` or ``measure``, and the predicted residual (or state) when it is known. After it:
    what the blocks left here for the history.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        skip: bool = False,
        measure: bool = False,
        keeps: bool = True,
        last_role: BlockRole | None = None,
        had_encoder: bool = False,
        forms: list[Form] | None = None,
    ) -> None:
        self.skip = skip
        self.measure = measure
        #: The last M block that was called in the last computed step: on a skip it hands out the prediction.
        self.last_role = last_role
        #: The form of each block's result at the last computed step of this request and branch.
        self.forms: list[Form] = [role.io.form for role in chain.roles] if forms is None else forms
        #: Whether a computed step leaves a snapshot, and whether E came in beside H at the last one that did.
        self.keeps = keeps
        self.had_encoder = had_encoder
        self.keeps_state = chain.keeps_state
        self.measures = chain.measures
        self.copies = chain.writes_input is not False
        self.checks = chain.writes_input is None
        self.hands_copy = chain.front == 0
        self.predicted_hidden: torch.Tensor | None = None
        self.predicted_encoder: torch.Tensor | None = None

        self.position = -1
        self.executed = 0
        self.skipped = 0
        self.traced = False  # whether a graph made the snapshots: with CUDA graphs it will overwrite them
        self.begun = False
        self.filled = False
        self.misfit = False
        self.entry: Any = None  # H at the first block
        self.probe: Any = None  # what F changed: the tensor of the decision
        self.emitted: Any = None  # E out of the last F block, which blocks of patterns 4 and 5 do not read
        self.first_role: BlockRole | None = None
        self.anchor_hidden: Any = None
        self.anchor_encoder: Any = None
        self.out_hidden: Any = None
        self.out_encoder: Any = None
        self.snapshot_hidden: Any = None
        self.snapshot_encoder: Any = None
        #: (input, copy of it) pairs to compare after the forward, for blocks that write into their input.
        self.originals: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.decide: Callable[[ChainRun], None] | None = None
        self.next_pass: Callable[[], ChainRun] | None = None


def run_block(
    role: BlockRole, run: ChainRun, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Compute a block, or pass its input through, or hand out the prediction.

    Args:
        role: the block's place.
        run: the pass under way.
        call: the block's own ``__call__``.
        args, kwargs: what the block was called with.
    """
    if role.position <= run.position and run.next_pass is not None:
        run = run.next_pass()
    run.position = role.position
    if role.zone == Zone.MIDDLE:
        return _run_middle(role, run, call, args, kwargs)
    run.executed += 1
    if role.zone == Zone.BACK:
        return call(*args, **kwargs)
    return _run_front(role, run, call, args, kwargs)


def _run_front(
    role: BlockRole, run: ChainRun, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    if run.measures and run.entry is None:
        run.entry = _anchor(run, role.io.read(args, kwargs)[0])
    output = call(*args, **kwargs)
    if role.closes_front:
        hidden, encoder, _ = role.io.split(output)
        if run.measures:
            run.probe = hidden - run.entry if alike(hidden, run.entry) else hidden.clone()
            run.entry = None
        if not role.io.reads_encoder:
            run.emitted = encoder
    return output


def _run_middle(
    role: BlockRole, run: ChainRun, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    hidden, encoder = role.io.read(args, kwargs)
    if not role.io.reads_encoder:
        encoder = run.emitted
    if not run.begun:
        run.begun = True
        if run.measure and run.decide is not None:
            run.decide(run)
        _enter_middle(role, run, hidden, encoder)
    if run.skip:
        return _pass_through(role, run, hidden, encoder)
    output = call(*args, **kwargs)
    run.executed += 1
    hidden, encoder, run.forms[role.position] = role.io.split(output)
    run.last_role = role
    if run.keeps:
        run.out_hidden, run.out_encoder = hidden, encoder
        run.traced = torch.compiler.is_compiling()
        if role.closes_middle:
            take_snapshot(run)
    return output


def _enter_middle(role: BlockRole, run: ChainRun, hidden: torch.Tensor, encoder: Any) -> None:
    """The first M block: the last moment at which a skip can become a compute."""
    run.first_role = role
    if run.skip:
        joined = run.last_role is not None and run.last_role.list_index != role.list_index
        anchor_hidden, anchor_encoder = _joined(role, hidden, encoder) if joined else (hidden, encoder)
        if run.had_encoder == (encoder is not None) and _fits(run, anchor_hidden, anchor_encoder):
            run.out_hidden = _predict(run, anchor_hidden, run.predicted_hidden)
            run.out_encoder = _predict(run, anchor_encoder, run.predicted_encoder)
            return
        run.skip = False
        run.misfit = True
    run.had_encoder = encoder is not None
    if run.keeps:
        run.anchor_hidden = _anchor(run, hidden)
        run.anchor_encoder = _anchor(run, encoder)


def _pass_through(role: BlockRole, run: ChainRun, hidden: torch.Tensor, encoder: Any) -> Any:
    run.skipped += 1
    if run.last_role is not None and role.position == run.last_role.position:
        run.filled = True
        return role.io.build(run.out_hidden, run.out_encoder, run.forms[role.position])
    if encoder is None and not role.io.reads_encoder:
        encoder = _copied(run.out_encoder)
    if run.hands_copy and run.first_role is role:  # these may be the caller's own, and the loop may write into them
        hidden, encoder = _copied(hidden), _copied(encoder)
    return role.io.build(hidden, encoder, run.forms[role.position])


def _copied(stream: Any) -> Any:
    return stream.clone() if isinstance(stream, torch.Tensor) else stream


def _anchor(run: ChainRun, stream: Any) -> Any:
    """A stream as it is now: a copy of it where blocks write into their input, or may."""
    if not run.copies or not isinstance(stream, torch.Tensor):
        return stream
    copy = stream.clone()
    if run.checks and not torch.compiler.is_compiling():
        run.originals.append((stream, copy))
    return copy


def _joined(role: BlockRole, hidden: torch.Tensor, encoder: Any) -> tuple[torch.Tensor, Any]:
    """Both streams as the second list of a merged chain reads them."""
    if role.join is None or not isinstance(encoder, torch.Tensor):
        return hidden, encoder
    return role.join(hidden, encoder), None


def _fits(run: ChainRun, hidden: torch.Tensor, encoder: Any) -> bool:
    """Whether the prediction can be added to this step's streams."""
    if not alike(run.predicted_hidden, hidden):
        return False
    return run.predicted_encoder is None or encoder is None or alike(run.predicted_encoder, encoder)


def _predict(run: ChainRun, anchor: Any, predicted: torch.Tensor | None) -> Any:
    if predicted is None:
        return anchor
    if anchor is None or run.keeps_state:
        return predicted.clone()
    return anchor + predicted


def take_snapshot(run: ChainRun) -> None:
    """What a computed run leaves for the history: the residual over M, or the state after it."""
    if run.first_role is None or run.last_role is None or run.out_hidden is None:
        return
    hidden, encoder = run.anchor_hidden, run.anchor_encoder
    if run.last_role.list_index != run.first_role.list_index:
        hidden, encoder = _joined(run.first_role, hidden, encoder)
    run.snapshot_hidden = _difference(run, run.out_hidden, hidden)
    run.snapshot_encoder = _difference(run, run.out_encoder, encoder)
    if run.snapshot_encoder is None and isinstance(run.out_encoder, torch.Tensor):
        run.snapshot_hidden = None  # without a prediction of E there is none at all
    run.anchor_hidden = run.anchor_encoder = run.out_hidden = run.out_encoder = None


def _difference(run: ChainRun, after: Any, before: Any) -> Any:
    if not isinstance(after, torch.Tensor):
        return None
    if before is None:
        return after.clone()
    if not alike(after, before):
        return None
    return after.clone() if run.keeps_state else after - before
