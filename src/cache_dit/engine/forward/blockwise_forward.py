"""A forward of DBPrune: each block is measured, and computed or skipped.

A decision costs one fused reduction. What that costs in host reads depends on ``prune_decision``:

- ``"block"``: a block's input is known only when the block before it is done with, so a diff is read when a block is
  called: one read for each block that is measured.
- ``"previous"``: no read in the step. Its diffs travel to the host together while it ends, and decide the next one,
  which reads them, long arrived, when it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cache_dit.engine.forward.branch_cache import ChainForward, difference
from cache_dit.engine.forward.call import Call, SimilarityOverride
from cache_dit.engine.forward.chain import BlockRole, untraced
from cache_dit.engine.policies.base import Action
from cache_dit.engine.state.history import alike
from cache_dit.engine.state.measure import PendingDiffs, read_relative_l1, relative_l1_means, relative_l1_sums
from cache_dit.engine.state.snapshots import Prediction

#: H and E, before or after a block.
Streams = tuple[Any, Any]


class BlockwiseForward(ChainForward):
    """A forward in which each M block is computed or skipped by itself.

    Args:
        cache, call: see ``ChainForward``.
        action: what the policy said of the step.
        chosen: the blocks to skip, where that is known before the forward.
        known: by block, the diffs that another branch measured in this step.
        why: why the step computes, where the engine says so and not the policy.
    """

    misfit = False
    unfit = False  # whether a block left nothing to predict it from

    def __init__(
        self,
        cache: Any,
        call: Call,
        action: Action,
        *,
        chosen: frozenset[int] | None,
        known: Mapping[int, float],
        why: str | None,
    ) -> None:
        super().__init__(cache, call, cache.parts)
        self.action = action
        self.chosen = chosen
        self.known = known
        self.why = why
        self.asks = cache.lags or action is not Action.COMPUTE
        self.keeps = cache.caches and cache.refused is None
        self.jump = call.jump  # to be read with the first diff
        self.skips: set[int] = set()
        self.measured: dict[int, Sequence[torch.Tensor]] = {}
        self.sizes: dict[int, list[float] | None] = {}  # by block, mean|its input|, where it was read

    # -- what blocks call

    def front(self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute a block that always runs, and note the E that it gives to those after it."""
        output = call(*args, **kwargs)
        self.executed += 1
        self.emitted = role.io.split(output)[1]
        return output

    def middle(
        self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute a block, or hand out what it is predicted to return."""
        hidden, encoder = role.io.read(args, kwargs)
        if not role.io.reads_encoder:
            encoder = self.emitted
        after = self.ask(role, hidden, encoder) if self.asks else None
        if after is None:
            before = (
                (self.anchored(hidden), self.anchored(encoder)) if self.keeps and self.copies else (hidden, encoder)
            )
            output = call(*args, **kwargs)
            self.executed += 1
            after_hidden, after_encoder, self.forms[role.position] = role.io.split(output)
            role.io.check_object(encoder, after_encoder, output)
            after = after_hidden, after_encoder
            if self.keeps:
                self.leave(role, before, after)
        else:
            self.skipped += 1
            output = role.io.build(*after, self.forms[role.position])
        if not role.io.reads_encoder:
            self.emitted = after[1]
        return output

    # -- deciding

    @untraced
    def ask(self, role: BlockRole, hidden: Any, encoder: Any) -> Streams | None:
        """The streams after a block if it is skipped, or None."""
        cache, position = self.cache, role.position
        block = cache.blocks.get(position)
        if block is None:
            return None
        if cache.lags and block.input is not None and alike(block.input, now := cache.thinned(hidden)):
            important = cache.options.extra.important_condition_threshold
            compare = relative_l1_means if self.call.group is None else relative_l1_sums
            self.measured[position] = compare(block.input, now, important=important)
        if not block.hidden.times:
            return None
        after = None
        if self._accepts(position, block, hidden):
            after = self._predicted(block, (hidden, encoder))
            self.misfit = self.misfit or after is None
            if after is not None:
                self.skips.add(position)
        following = cache.blocks.get(position + 1)
        if following is not None and following.travels and self._expected(position + 1):
            following.prefetch()
        return after

    def _accepts(self, position: int, block: Any, hidden: Any) -> bool:
        if self.chosen is not None:
            return position in self.chosen
        if self.action is not Action.MEASURE:
            return self.action is Action.SKIP
        cache = self.cache
        if self.call.similarity is not None and cache.judged(self.call):
            return self._judged(self.call.similarity, position, block, hidden)
        diff = self.known.get(position)
        if diff is None:
            diff = self._diff(position, block, hidden)
        if diff is None:
            self.misfit = True
            return False
        accepted: bool = cache.policy.accept_block(position, diff)
        if position not in self.known and cache.leaps(position, diff) and not accepted:
            cache.since(self.call.step)
            cache.emptied = False  # they compute in this step
        if not math.isfinite(diff):
            block.clear()  # a predictor of a higher order would go on using the step that was not finite
        return accepted and self.action is Action.MEASURE

    def _judged(self, similarity: SimilarityOverride, position: int, block: Any, hidden: Any) -> bool:
        """What a replaced ``similarity`` says."""
        cache, call = self.cache, self.call
        now = cache.thinned(hidden)
        if block.input is None or not alike(block.input, now):
            self.misfit = True
            return False
        parallel, threshold = call.group is not None, cache.policy.threshold
        accepted, diff = similarity(
            block.input, now, threshold=threshold, parallelized=parallel, prefix=f"Fn_{position}"
        )
        cache.policy.note_judgement(position, diff, accepted=accepted)
        return accepted

    def _diff(self, position: int, block: Any, hidden: Any) -> float | None:
        """The diff of a block's input; None where there is none to be had."""
        cache, call = self.cache, self.call
        jump = None if self.jump is None else self.jump()
        reading = read_relative_l1(
            block.input,
            cache.thinned(hidden),
            call.group,
            important=cache.options.extra.important_condition_threshold,
            health=block.health,
            beside=() if jump is None else (jump,),
            sizes=block.input_sizes,
        )
        if reading is None:
            return None
        block.unread = 0
        block.input_sizes, self.sizes[position] = reading.before, reading.sizes
        self.jump = None
        if jump is not None and cache.jumped(reading.beside[-1:]):
            self.action, self.why = Action.COMPUTE, "conditioning"
            cache.since(call.step)
            cache.emptied = False
        return reading.diffs[0]

    def _expected(self, position: int) -> bool:
        """Whether a block will be skipped, as far as can be said before it is called."""
        if self.chosen is not None:
            return position in self.chosen
        return self.action is Action.SKIP or (self.action is Action.MEASURE and position in self.cache.skips)

    def _predicted(self, block: Any, streams: Streams) -> Streams | None:
        """What a block is predicted to return; None where the streams don't fit what is kept of it."""
        if block.had_encoder != (streams[1] is not None):
            return None
        found = []
        kinds = self.cache.options.keeps_state
        predictions = block.predictions(self.call.times, summed=False)
        for predicted, stream, state in zip(predictions, streams, kinds, strict=True):
            if predicted is not None and stream is not None and not predicted.fits(stream):
                return None
            found.append(_after(predicted, stream, state=state))
        return found[0], found[1]

    # -- after a block, and after the forward

    @untraced
    def leave(self, role: BlockRole, before: Streams, after: Streams) -> None:
        """Keep what a computed block was given and what it added."""
        cache = self.cache
        hidden_state, encoder_state = cache.options.keeps_state
        hidden = difference(after[0], before[0], state=hidden_state)
        encoder = difference(after[1], before[1], state=encoder_state)
        if hidden is None or (encoder is None and isinstance(after[1], torch.Tensor)):
            cache.blocks.pop(role.position, None)  # it changes its input's shape: it always runs
            self.unfit = True
            return
        block = cache.block(role.position)
        cache.grew = block.keep(self.call.times, hidden, encoder) or cache.grew
        block.had_encoder = before[1] is not None
        if cache.measures or cache.judged(self.call):
            cache.grew = cache.grew or block.input is None
            block.input = cache.thinned(before[0]).detach()
            block.input_sizes = self.sizes.get(role.position)

    def commit(self, output: Any) -> None:
        """Enter what happened into the policy."""
        cache, policy = self.cache, self.cache.policy
        cache.possible += self.executed + self.skipped
        cache.executed += self.executed
        cache.pending = self._sent() if self.measured else None
        if self.action is Action.MEASURE:
            cache.skips = frozenset(self.skips)
        if policy.step_diffs:
            self.diffs = [policy.step_diffs.get(place, math.nan) for place in range(len(cache.chain.blocks))]
        policy.commit(self.call.step, pruned=self.skipped, blocks=len(cache.chain.blocks), why=self._reason())

    def _reason(self) -> str | None:
        """Why the step was computed, where the engine knows and not the policy."""
        if self.position < 0:
            return "not_called"
        if self.unfit and not self.cache.blocks:
            return "shape_changes_inside"
        return self.why or ("shape" if self.misfit and not self.skipped else None)

    def _sent(self) -> PendingDiffs:
        """The step's diffs on their way."""
        blocks = self.cache.blocks
        health = {place: blocks[place].health for place in self.measured if place in blocks}  # what it predicts from
        return PendingDiffs(self.call.step, self.measured, self.call.group, health=health)


def _after(predicted: Prediction | None, stream: Any, *, state: bool) -> Any:
    """A stream after a block: an object is passed on as it is; None where the block returns none."""
    if predicted is None:
        return None if isinstance(stream, torch.Tensor) else stream
    return predicted.alone() if state or stream is None else predicted.over(stream)
