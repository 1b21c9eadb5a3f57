"""One pass of one forward over a chain: what each block does in this step.

The middle blocks compute, or pass their input on while the last of them hands out a prediction of what they would have
made of it.

``run_block`` is what a compiled model traces. It reads only what is the same for every full step and for every cached
step (flags and fixed roles); whatever changes from step to step is decided before the forward, or in ``decide``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cache_dit.engine.adapters.pattern import Form
from cache_dit.engine.forward.chain import BlockRole, Chain, Layout, Zone
from cache_dit.engine.policies.base import Probe
from cache_dit.engine.state.history import History, alike


class Prediction:
    """What a skipped step adds to a stream, or puts in its place.

    Args:
        history: the snapshots.
        coefficients: a weight for each of the newest of them.
        summed: whether to sum them now: compiled code must not see coefficients, which change at every step. Else the
            sum is taken together with the stream it is added to, in one pass over memory.
    """

    def __init__(self, history: History, coefficients: Sequence[float], *, summed: bool) -> None:
        self.history = history
        self.coefficients = coefficients
        self.tensor = history.predict(coefficients) if summed else None

    def fits(self, stream: Any) -> bool:
        """Whether a stream looks like the snapshots."""
        return self.history.fits(stream) if self.tensor is None else alike(self.tensor, stream)

    def over(self, anchor: torch.Tensor) -> torch.Tensor:
        """The stream after the skipped blocks, from what it is before them."""
        if self.tensor is None:
            return self.history.predict(self.coefficients, anchor)
        return anchor + self.tensor

    def alone(self) -> torch.Tensor:
        """The stream after the skipped blocks, where the snapshots are of the stream itself."""
        tensor = self.history.predict(self.coefficients) if self.tensor is None else self.tensor
        return tensor.clone()


class Run:
    """One pass of one forward over a chain: made anew each time, thrown away after it.

    Args:
        chain: the chain.
        layout: which of its blocks can be skipped.
        watches: what of the F blocks is to be kept for the decision, or None.
    """

    def __init__(self, chain: Chain, layout: Layout, *, watches: Probe | None = None) -> None:
        self.zones = layout.zones
        self.last_front = layout.last_front
        self.last_middle = layout.last_middle
        self.watches = watches
        self.copies = chain.writes_input is not False
        self.checks = chain.writes_input is None
        self.position = -1
        self.executed = 0
        self.skipped = 0
        self.entry: Any = None  # H at the first block
        self.probe: Any = None  # the tensor of the decision
        self.emitted: Any = None  # E out of the last F block, which blocks of patterns 4 and 5 do not read
        #: (input, copy of it) pairs to compare after the forward, for blocks that write into their input.
        self.originals: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.next_pass: Callable[[], Run] | None = None

    def front(self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute an F block, and note what the decision needs."""
        if self.watches is Probe.RESIDUAL and self.entry is None:
            self.entry = self.anchored(role.io.read(args, kwargs)[0])
        output = call(*args, **kwargs)
        if role.position == self.last_front:
            hidden, encoder, _ = role.io.split(output)
            if self.watches is Probe.RESIDUAL:
                self.probe = hidden - self.entry if alike(hidden, self.entry) else hidden.clone()
                self.entry = None
            elif self.watches is Probe.STATE:
                self.probe = hidden.clone() if self.copies else hidden
            if not role.io.reads_encoder:
                self.emitted = encoder
        return output

    def middle(
        self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute an M block, or do what stands for it."""
        raise NotImplementedError

    def idles(self) -> bool:
        """Whether what the model does between M blocks goes nowhere."""
        return False

    def close(self) -> None:
        """Let go of the lane: the two point at each other, and would keep tensors until the garbage collector comes."""
        self.next_pass = None

    def anchored(self, stream: Any) -> Any:
        """A stream as it is now: a copy of it where blocks write into their input, or may."""
        if not self.copies or not isinstance(stream, torch.Tensor):
            return stream
        copy = stream.clone()
        if self.checks and not torch.compiler.is_compiling():
            self.originals.append((stream, copy))
        return copy


class ChainRun(Run):
    """A run that skips the middle blocks together.

    Before the forward: ``skip`` or ``measure``, and the prediction when it is known. After it: what the blocks left
    here for the history.

    Args:
        chain, layout, watches: see ``Run``.
        keeps_state: for H and E whether the state after the middle blocks is predicted, not the residual over them.
        skip: whether the middle blocks are skipped.
        measure: whether ``decide`` is asked that at the first of them.
        keeps: whether a computed step leaves a snapshot.
        last_role: the last M block that was called in the last computed step: on a skip it hands out the prediction.
        had_encoder: whether E came in beside H then.
        forms: the form of each block's result at the last computed step of this request and branch.
    """

    def __init__(
        self,
        chain: Chain,
        layout: Layout,
        *,
        watches: Probe | None = None,
        keeps_state: tuple[bool, bool] = (False, False),
        skip: bool = False,
        measure: bool = False,
        keeps: bool = True,
        last_role: BlockRole | None = None,
        had_encoder: bool = False,
        forms: list[Form] | None = None,
    ) -> None:
        super().__init__(chain, layout, watches=watches)
        self.skip = skip
        self.measure = measure
        self.last_role = last_role
        self.forms: list[Form] = [role.io.form for role in chain.roles] if forms is None else forms
        self.keeps = keeps
        self.had_encoder = had_encoder
        self.keeps_state = keeps_state
        self.hands_copy = layout.last_front < 0
        self.predicted_hidden: Prediction | None = None
        self.predicted_encoder: Prediction | None = None

        self.traced = False  # whether a graph made the snapshots: with CUDA graphs it will overwrite them
        self.begun = False
        self.filled = False
        self.misfit = False
        self.first_role: BlockRole | None = None
        self.anchor_hidden: Any = None
        self.anchor_encoder: Any = None
        self.out_hidden: Any = None
        self.out_encoder: Any = None
        self.snapshot_hidden: Any = None
        self.snapshot_encoder: Any = None
        self.decide: Callable[[Any], None] | None = None

    def middle(
        self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute an M block, or pass its input through, or hand out the prediction."""
        hidden, encoder = role.io.read(args, kwargs)
        if not role.io.reads_encoder:
            encoder = self.emitted
        if not self.begun:
            self.begun = True
            if self.measure and self.decide is not None:
                self.decide(self)
            self.enter(role, hidden, encoder)
        if self.skip:
            return _pass_through(role, self, hidden, encoder)
        output = self.compute(role, call, args, kwargs, hidden, encoder)
        self.executed += 1
        hidden, encoder, self.forms[role.position] = role.io.split(output)
        self.last_role = role
        if self.keeps:
            self.out_hidden, self.out_encoder = hidden, encoder
            self.traced = torch.compiler.is_compiling()
            if role.position == self.last_middle:
                take_snapshot(self)
        return output

    def enter(self, role: BlockRole, hidden: torch.Tensor, encoder: Any) -> None:
        """The first M block: the last moment at which a skip can become a compute."""
        self.first_role = role
        if self.skip:
            if self.predict(role, hidden, encoder):
                return
            self.skip = False
            self.misfit = True
        self.had_encoder = encoder is not None
        if self.keeps:
            self.anchor_hidden = self.anchored(hidden)
            self.anchor_encoder = self.anchored(encoder)

    def predict(self, role: BlockRole, hidden: torch.Tensor, encoder: Any) -> bool:
        """Make both streams what they are predicted to be after the middle blocks; False: nothing here fits them."""
        joined = self.last_role is not None and self.last_role.list_index != role.list_index
        if self.had_encoder != (encoder is not None):
            return False
        if joined:
            hidden, encoder = joined_streams(role, hidden, encoder)
        if not _fits(self, hidden, encoder):
            return False
        hidden_state, encoder_state = self.keeps_state
        self.out_hidden = _predict(hidden, self.predicted_hidden, state=hidden_state)
        self.out_encoder = _predict(encoder, self.predicted_encoder, state=encoder_state)
        return True

    def compute(
        self,
        role: BlockRole,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        hidden: torch.Tensor,
        encoder: Any,
    ) -> Any:
        """Run an M block; ``hidden`` and ``encoder`` are what it gets."""
        return call(*args, **kwargs)

    def idles(self) -> bool:
        """Whether the blocks are being skipped, and the prediction is still to come."""
        return self.begun and self.skip and not self.filled

    def close(self) -> None:
        """Let go of the lane."""
        super().close()
        self.decide = None


def run_block(
    role: BlockRole, run: Run, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Compute a block, or do what stands for it.

    Args:
        role: the block's place.
        run: the pass under way.
        call: the block's own ``__call__``.
        args, kwargs: what the block was called with.
    """
    if role.position <= run.position and run.next_pass is not None:
        run = run.next_pass()
    run.position = role.position
    zone = run.zones[role.position]
    if zone == Zone.MIDDLE:
        return run.middle(role, call, args, kwargs)
    run.executed += 1
    if zone == Zone.BACK:
        return call(*args, **kwargs)
    return run.front(role, call, args, kwargs)


def _pass_through(role: BlockRole, run: ChainRun, hidden: torch.Tensor, encoder: Any) -> Any:
    run.skipped += 1
    if run.last_role is not None and role.position == run.last_role.position:
        run.filled = True
        return role.io.build(run.out_hidden, run.out_encoder, run.forms[role.position])
    if encoder is None and not role.io.reads_encoder:
        encoder = copied(run.out_encoder)
    if run.hands_copy and run.first_role is role:  # these may be the caller's own, and the loop may write into them
        hidden, encoder = copied(hidden), copied(encoder)
    return role.io.build(hidden, encoder, run.forms[role.position])


def copied(stream: Any) -> Any:
    """A stream of one's own, where it is a tensor."""
    return stream.clone() if isinstance(stream, torch.Tensor) else stream


def joined_streams(role: BlockRole, hidden: torch.Tensor, encoder: Any) -> tuple[torch.Tensor, Any]:
    """Both streams as the second list of a merged chain reads them."""
    if role.join is None or not isinstance(encoder, torch.Tensor):
        return hidden, encoder
    return role.join(hidden, encoder), None


def _fits(run: ChainRun, hidden: torch.Tensor, encoder: Any) -> bool:
    """Whether the prediction can be added to this step's streams."""
    if run.predicted_hidden is None or not run.predicted_hidden.fits(hidden):
        return False
    return run.predicted_encoder is None or encoder is None or run.predicted_encoder.fits(encoder)


def _predict(anchor: Any, predicted: Prediction | None, *, state: bool) -> Any:
    if predicted is None:
        return anchor
    if anchor is None or state:
        return predicted.alone()
    return predicted.over(anchor)


def take_snapshot(run: ChainRun) -> None:
    """What a computed run leaves for the history: the residual over M, or the state after it."""
    if run.first_role is None or run.last_role is None or run.out_hidden is None:
        return
    hidden, encoder = run.anchor_hidden, run.anchor_encoder
    if run.last_role.list_index != run.first_role.list_index:
        hidden, encoder = joined_streams(run.first_role, hidden, encoder)
    hidden_state, encoder_state = run.keeps_state
    run.snapshot_hidden = difference(run.out_hidden, hidden, state=hidden_state)
    run.snapshot_encoder = difference(run.out_encoder, encoder, state=encoder_state)
    if run.snapshot_encoder is None and isinstance(run.out_encoder, torch.Tensor):
        run.snapshot_hidden = None  # without a prediction of E there is none at all
    run.anchor_hidden = run.anchor_encoder = run.out_hidden = run.out_encoder = None


def difference(after: Any, before: Any, *, state: bool) -> Any:
    """What to keep of a stream: what was added to it, or (``state``, or where none came in) what it is now."""
    if not isinstance(after, torch.Tensor):
        return None
    if before is None:
        return after.clone()
    if not alike(after, before):
        return None
    return after.clone() if state else after - before
