"""One pass of DBPrune over a chain: each block is measured, and computed or skipped.

A decision costs one fused reduction. What that costs in host reads depends on ``prune_decision``:

- ``"block"``: a block's input is known only when the block before it is done with, so that a diff is read when a block
  is called. As long as blocks are skipped, though, the input of the next one is what was predicted for them: where the
  step before skipped several in a row, up to ``AHEAD`` of them are measured ahead and read together. A diff that was
  measured ahead counts only if its block is then called with that very tensor, unwritten, so that thresholds, limits
  and decisions are the same with and without. A step in which nothing is skipped reads once for each block; one that
  skips the same ``n`` blocks in a row as the step before reads ``ceil(n / AHEAD)`` times. Ranks that decide together,
  and inference tensors, whose writes cannot be seen, are read block by block.
- ``"previous"``: no read in the step. Its diffs travel to the host together while it ends, and decide the next one,
  which reads them, long arrived, when it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cache_dit.engine.forward.chain import BlockRole, Chain, Layout, untraced
from cache_dit.engine.forward.run import Prediction, Run, difference
from cache_dit.engine.forward.stepwise import Call, Pass
from cache_dit.engine.policies.base import Action
from cache_dit.engine.state.history import alike
from cache_dit.engine.state.measure import Travelling, read_relative_l1, relative_l1_sums

if TYPE_CHECKING:
    from cache_dit.engine.forward.blockwise import BlockPast, PruneLane

#: H and E, before or after a block.
Streams = tuple[Any, Any]

#: How many blocks are measured by one host read at most. The prediction of each lives until its block is called.
AHEAD = 8

#: Among the diffs of a step on their way to the next one: the place of the conditioning's jump.
JUMP = -1


class PruneRun(Run):
    """A run in which each M block is computed or skipped by itself.

    Args:
        chain, layout: see ``Run``.
        asks: called with a block's role and both streams before it: the streams after it, or None to compute.
        leaves: told a computed block's role, the streams before it and after it.
        forms: the form of each block's result when it last ran.
    """

    def __init__(
        self,
        chain: Chain,
        layout: Layout,
        *,
        asks: Callable[[BlockRole, Any, Any], Streams | None] | None,
        leaves: Callable[[BlockRole, Streams, Streams], None] | None,
        forms: list[Any],
    ) -> None:
        super().__init__(chain, layout)
        self.asks = asks
        self.leaves = leaves
        self.forms = forms

    def front(self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute a block that always runs, and note the E that it gives to those after it."""
        output = call(*args, **kwargs)
        if not role.io.reads_encoder:
            self.emitted = role.io.split(output)[1]
        return output

    def middle(
        self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute a block, or hand out what it is predicted to return."""
        hidden, encoder = role.io.read(args, kwargs)
        if not role.io.reads_encoder:
            encoder = self.emitted
        streams = None if self.asks is None else self.asks(role, hidden, encoder)
        if streams is None:
            before = (hidden, encoder) if self.leaves is None else (self.anchored(hidden), self.anchored(encoder))
            output = call(*args, **kwargs)
            self.executed += 1
            after_hidden, after_encoder, self.forms[role.position] = role.io.split(output)
            streams = after_hidden, after_encoder
            if self.leaves is not None:
                self.leaves(role, before, streams)
        else:
            self.skipped += 1
            output = role.io.build(*streams, self.forms[role.position])
        if not role.io.reads_encoder:
            self.emitted = streams[1]
        return output

    def close(self) -> None:
        """Let go of the lane."""
        super().close()
        self.asks = self.leaves = None


class _Foreseen(NamedTuple):
    """What was measured ahead of a block: its diff, if these are the streams that it is then called with."""

    streams: Streams
    versions: tuple[int, ...]
    diff: float

    def holds(self, streams: Streams) -> bool:
        """Whether they are the very tensors, unwritten."""
        return all(map(_is, self.streams, streams)) and self.versions == _versions(streams)


def _is(first: object, second: object) -> bool:
    return first is second


def _versions(streams: Streams) -> tuple[int, ...]:
    return tuple(stream._version for stream in streams if isinstance(stream, torch.Tensor))


class PrunePass(Pass):
    """A pass of a ``PruneLane``.

    Args:
        lane, call: see ``Pass``.
        action: what the policy said of the step.
        chosen: the blocks to skip, where that is known before the forward.
        known: by block, the diffs that another branch measured in this step.
        why: why the step computes, where the engine says so and not the policy.
    """

    lane: PruneLane
    run: PruneRun

    def __init__(
        self,
        lane: PruneLane,
        call: Call,
        action: Action,
        *,
        chosen: frozenset[int] | None,
        known: Mapping[int, float],
        why: str | None,
    ) -> None:
        run = PruneRun(
            lane.chain,
            lane.layout,
            asks=self.ask if lane.lags or action is not Action.COMPUTE else None,
            leaves=self.leave if lane.policy.caches and lane.refused is None else None,
            forms=lane.forms,
        )
        super().__init__(lane, run, call)
        self.action = action
        self.chosen = chosen
        self.known = known
        self.why = why
        self.misfit = False
        self.unfit = False  # whether a block left nothing to predict it from
        self.skips: set[int] = set()
        self.jump = call.jump  # to be read with the first diff
        self.ahead: dict[int, _Foreseen] = {}
        self.measured: dict[int, torch.Tensor] = {}

    @untraced
    def ask(self, role: BlockRole, hidden: Any, encoder: Any) -> Streams | None:
        """The streams after a block if it is skipped, or None."""
        lane, position, streams = self.lane, role.position, (hidden, encoder)
        block = lane.blocks.get(position)
        if block is None or len(block) == 0:
            return None
        if lane.lags and (sums := self._sums(block, hidden)) is not None:
            self.measured[position] = torch.stack(sums)
        after = None
        if self._accepts(role, block, streams):
            following = self.ahead.get(position + 1)
            after = self._predicted(block, streams) if following is None else following.streams
            self.misfit = self.misfit or after is None
        if after is None:
            self.ahead.clear()
        else:
            self.skips.add(position)
        if position + 1 in lane.blocks and position + 2 not in self.ahead and self._expected(position + 1):
            lane.blocks[position + 1].prefetch()
        return after

    def _accepts(self, role: BlockRole, block: BlockPast, streams: Streams) -> bool:
        lane, position = self.lane, role.position
        if self.chosen is not None:
            return position in self.chosen
        if self.action is not Action.MEASURE:
            return self.action is Action.SKIP
        if lane.judged(self.call):
            return self._judged(position, block, streams[0])
        diff = self.known.get(position)
        if diff is None:
            diff = self._diff(role, block, streams)
        if diff is None:
            self.misfit = True
            return False
        accepted = lane.policy.accept_block(position, diff)
        if not math.isfinite(diff):
            block.clear()  # a predictor of a higher order would go on using the step that was not finite
        return accepted and self.action is Action.MEASURE

    def _judged(self, position: int, block: BlockPast, hidden: Any) -> bool:
        """What a replaced ``similarity`` says."""
        lane, call = self.lane, self.call
        now = lane.thinned(hidden)
        if call.judge is None or block.input is None or not alike(block.input, now):
            self.misfit = True
            return False
        parallel = call.group is not None
        options = {"threshold": lane.policy.threshold, "parallelized": parallel, "prefix": f"Fn_{position}"}
        accepted, diff = call.judge(block.input, now, **options)
        lane.policy.note_judgement(position, diff, accepted=accepted)
        return accepted

    def _diff(self, role: BlockRole, block: BlockPast, streams: Streams) -> float | None:
        """The diff of a block's input; None where there is none to be had."""
        lane, call = self.lane, self.call
        foreseen = self.ahead.pop(role.position, None)
        if foreseen is not None:
            if foreseen.holds(streams):
                return foreseen.diff
            lane.apart.add(role.position)
            self.ahead.clear()
        jump = None if self.jump is None else self.jump()
        expected = list(self._look_ahead(role, block, streams))
        beside = [ratio for _, _, ratio in expected]
        important = lane.options.extra.important_condition_threshold
        now, health = lane.thinned(streams[0]), block.health()
        beside = beside if jump is None else [*beside, jump]
        reading = read_relative_l1(block.input, now, call.group, important=important, health=health, beside=beside)
        if reading is None:
            return None
        self.jump = None
        if jump is not None and lane.jumps(reading.beside[-1]):
            self.action, self.why = Action.COMPUTE, "conditioning"
        for (position, after, _), diff in zip(expected, reading.beside, strict=False):
            self.ahead[position] = _Foreseen(after, _versions(after), diff)
        return reading.diffs[0]

    def _look_ahead(
        self, role: BlockRole, block: BlockPast, streams: Streams
    ) -> Iterator[tuple[int, Streams, torch.Tensor]]:
        """The next blocks if this one and those between are skipped: place, streams before it, and its diff."""
        lane = self.lane
        tensors = [stream for stream in streams if isinstance(stream, torch.Tensor)]
        if self.call.group is not None or any(tensor.is_inference() for tensor in tensors):
            return  # ranks must not differ in what they measure; writes into inference tensors are not to be seen
        for position in range(role.position + 1, min(role.position + AHEAD, len(lane.chain.roles))):
            following = lane.blocks.get(position)
            if following is None or position in lane.apart or not self._expected(position - 1):
                return
            after = self._predicted(block, streams)
            if after is None:
                return
            streams = after[0], streams[1] if after[1] is None and role.io.reads_encoder else after[1]
            sums = self._sums(following, streams[0])
            if sums is None:
                return
            yield position, streams, _healthy(sums[0], following) / sums[1]
            block = following

    def _expected(self, position: int) -> bool:
        """Whether a block will be skipped, as far as can be said before it is called."""
        if self.chosen is not None:
            return position in self.chosen
        return self.action is Action.SKIP or (self.action is Action.MEASURE and position in self.lane.skips)

    def _sums(self, block: BlockPast, hidden: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Numerator and denominator of a block's diff, left on their device; None where there is none to be had."""
        now = self.lane.thinned(hidden)
        if block.input is None or not alike(block.input, now):
            return None
        important = self.lane.options.extra.important_condition_threshold
        return relative_l1_sums(block.input, now, important=important)

    def _predicted(self, block: BlockPast, streams: Streams) -> Streams | None:
        """What a block is predicted to return; None where the streams don't fit what is kept of it."""
        if block.had_encoder != (streams[1] is not None):
            return None
        found = []
        kinds = self.lane.options.keeps_state
        for predicted, stream, state in zip(block.predictions(self.call, summed=False), streams, kinds, strict=True):
            if predicted is not None and stream is not None and not predicted.fits(stream):
                return None
            found.append(_after(predicted, stream, state=state))
        return found[0], found[1]

    @untraced
    def leave(self, role: BlockRole, before: Streams, after: Streams) -> None:
        """Keep what a computed block was given and what it added."""
        lane = self.lane
        hidden_state, encoder_state = lane.options.keeps_state
        hidden = difference(after[0], before[0], state=hidden_state)
        encoder = difference(after[1], before[1], state=encoder_state)
        if hidden is None or (encoder is None and isinstance(after[1], torch.Tensor)):
            lane.blocks.pop(role.position, None)  # it changes its input's shape: it always runs
            self.unfit = True
            return
        block = lane.block(role.position)
        block.keep(self.call, hidden, encoder)
        block.had_encoder = before[1] is not None
        if lane.policy.measures or lane.judged(self.call):
            block.input = lane.thinned(before[0]).detach()

    def commit(self, output: Any) -> None:
        """Enter what happened into the policy."""
        lane, run, policy = self.lane, self.run, self.lane.policy
        lane.account(run)
        self.ahead.clear()
        lane.travelling = self._sent() if self.measured else None
        if self.action is Action.MEASURE:
            lane.skips = frozenset(self.skips)
        if policy.step_diffs:
            self.diffs = [policy.step_diffs.get(place, math.nan) for place in range(len(lane.chain.blocks))]
        policy.commit(self.call.step, pruned=run.skipped, blocks=len(lane.chain.blocks), why=self._reason())

    def _reason(self) -> str | None:
        """Why the step was computed, where the engine knows and not the policy."""
        if self.run.position < 0:
            return "not_called"
        if self.unfit and not self.lane.blocks:
            return "shape_changes_inside"
        return self.why or ("shape" if self.misfit and not self.run.skipped else None)

    def _sent(self) -> Travelling:
        """The step's diffs on their way, and with them the conditioning's jump since the last computed step."""
        for position, sums in self.measured.items():
            if position in self.lane.blocks:  # what it left in this very step is what the next one predicts from
                self.measured[position] = _healthy(sums, self.lane.blocks[position])
        jump = None if self.jump is None or not self.skips else self.jump()
        if jump is not None:
            any_sums = next(iter(self.measured.values()))
            self.measured[JUMP] = torch.stack([jump, torch.ones_like(jump)]).to(any_sums)
        return Travelling(self.call.step, self.measured, self.call.group)


def _healthy(sums: torch.Tensor, block: BlockPast) -> torch.Tensor:
    """The same, not finite where what is kept of a block is not."""
    health = block.health()
    return sums if health is None else sums + 0 * health


def _after(predicted: Prediction | None, stream: Any, *, state: bool) -> Any:
    """A stream after a block; None where the block returns none."""
    if predicted is None:
        return None
    return predicted.alone() if state or stream is None else predicted.over(stream)
