"""DBPrune: each block is skipped by itself when its input hardly changed since it last ran.

Every block that may be skipped has snapshots of its own: its input, in part or in full, and what it made of it. The
inputs stay where and as they are; ``cache_device`` and ``cache_dtype`` are for what predictions are made from.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cache_dit.engine.forward.blockwise_forward import BlockwiseForward
from cache_dit.engine.forward.branch_cache import BranchCache, ChainForward
from cache_dit.engine.forward.call import Call
from cache_dit.engine.forward.chain import ASK, WATCH, Chain, Layout, Zone
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.policies.base import Action
from cache_dit.engine.policies.prune import PrunePolicy
from cache_dit.engine.state.measure import PendingDiffs, read_numbers
from cache_dit.engine.state.snapshots import RECENT, Snapshots, leaps


class BlockSnapshots(Snapshots):
    """What is kept of one block: its input when it last ran, and what it added."""

    input: torch.Tensor | None = None
    #: mean|input|, where it was read when the input was new.
    input_sizes: list[float] | None = None
    had_encoder: bool = False

    def since(self, step: float) -> None:
        """Forget what was kept before a step, but for the input that the next one is compared with."""
        kept = self.input, self.input_sizes
        super().since(step)
        self.input, self.input_sizes = kept

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self.input = self.input_sizes = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return super().nbytes + (0 if self.input is None else self.input.nbytes)


class BlockwiseCache(BranchCache):
    """The cache of DBPrune.

    Args:
        chain, layout, options: see ``BranchCache``.
        make: makes the policy.
    """

    def __init__(self, chain: Chain, layout: Layout, options: ChainOptions, make: Callable[..., PrunePolicy]) -> None:
        super().__init__(chain, layout, options)
        self.make = make
        self.blocks: dict[int, BlockSnapshots] = {}
        self.pending: PendingDiffs | None = None
        #: Whether blocks have lost what was kept of them, since what conditions the run has changed.
        self.emptied = False
        #: The blocks that the last measured step skipped.
        self.skips: frozenset[int] = frozenset()
        #: The latest diffs of the first block that can be skipped; see ``leaps``.
        self.recent: deque[float] = deque(maxlen=RECENT)
        self._settle(make(), layout)

    def _settle(self, policy: PrunePolicy, layout: Layout) -> None:
        """Take over what does not change from step to step."""
        cache: Any = self.options.cache
        self.policy = policy
        self.layout = _without(layout, policy)
        self.first = self.layout.zones.index(Zone.MIDDLE) if Zone.MIDDLE in self.layout.zones else -1
        self.caches, self.measures = policy.caches, policy.measures
        self.lags = policy.measures and cache.prune_decision == "previous"
        self.factor = _thinning(self.options)
        reads = all(role.io.reads_encoder for role in self.chain.roles)  # else those that compute give E to the others
        front = [] if reads else [place for place, zone in enumerate(self.layout.zones) if zone is Zone.FRONT]
        self.parts = self.layout.parts(ASK, but=dict.fromkeys(front, WATCH))

    def start(self, call: Call, shared: list[float] | None = None) -> ChainForward:
        """Decide what can be decided before the forward."""
        why = self.why_compute(call, len(self.blocks))
        action = Action.COMPUTE if why else self.policy.decide(call.step)
        judged = self.judged(call)
        if action is Action.SKIP and judged:
            action = Action.MEASURE
        chosen = self._chosen(call.step) if action is Action.MEASURE and self.lags and not judged else None
        known = {} if shared is None else {place: diff for place, diff in enumerate(shared) if math.isfinite(diff)}
        if call.look is not None and self.jumped(self._jumps(call, action, reads_diff=not (known or judged))):
            self.since(call.step)
        if self.emptied:
            action, why, self.emptied = Action.COMPUTE, why or "conditioning", False
        return BlockwiseForward(self, call, action, chosen=chosen, known=known, why=why)

    def _jumps(self, call: Call, action: Action, *, reads_diff: bool) -> list[float]:
        """By how much what conditions the run has jumped, where no diff is read that this can go with."""
        if call.look is None or call.jump is None:
            return []
        if action is not Action.MEASURE or self.lags:
            return call.look() or []
        jump = None if reads_diff else call.jump()
        return [] if jump is None else read_numbers([jump], call.group)

    @property
    def waits(self) -> bool:
        """Whether a step may wait for what was measured in it."""
        return self.measures and not self.lags

    def judged(self, call: Call) -> bool:
        """Whether a replaced ``similarity`` decides: also where the policy alone would not measure."""
        return call.similarity is not None and self.caches and not self.policy.static

    def _chosen(self, step: int) -> frozenset[int]:
        """The blocks to skip by the diffs of the step before."""
        if self.pending is None:
            return frozenset()
        measured_in, diffs = self.pending.arrived()
        self.policy.note_diffs(measured_in, diffs)
        for position, diff in self.policy.previous_diffs.items():
            if math.isfinite(diff):
                self.blocks[position].unread = 0
            else:
                self.blocks[position].clear()
        chosen = self.policy.decide_blocks(step)
        for position, diff in self.policy.previous_diffs.items():
            if self.leaps(position, diff) and position not in chosen:
                self.since(measured_in)
        return chosen

    def leaps(self, position: int, diff: float) -> bool:
        """Whether the diff of the first block that can be skipped leaps; those after it jump with what is skipped."""
        return position == self.first and leaps(self.recent, diff)

    def block(self, position: int) -> BlockSnapshots:
        """What is kept of a block, made where it is missing."""
        if position not in self.blocks:
            self.blocks[position] = BlockSnapshots(self.options, watch=self.measures)
        return self.blocks[position]

    def thinned(self, hidden: torch.Tensor) -> torch.Tensor:
        """The part of a block's input that is compared."""
        return hidden[..., :: self.factor].contiguous() if self.factor > 1 else hidden

    def policies(self) -> dict[str, Any]:
        """The one policy."""
        return {"": self.policy}

    def renew(self, options: ChainOptions, layout: Layout, make: Callable[..., PrunePolicy]) -> None:
        """Go on with other options from the next step on; what is kept of the blocks stays where it serves them too."""
        before = self._kept()
        self.options, self.make = options, make
        self._settle(make(records=self.policy.records, origin=self.policy.origin), layout)
        if before != self._kept():
            self.free()

    def _kept(self) -> tuple[object, ...]:
        """All that says what is kept of the blocks, and how."""
        cache = self.options.cache
        places = cache.cache_device, cache.cache_dtype, self.factor
        return self.layout, self.options.calibrator, *places, self.measures

    def refresh(self, step: int) -> None:
        """Begin anew at a step."""
        self.free()
        self._settle(self.make(records=self.policy.records, origin=step), self.layout)

    def since(self, step: int, places: Sequence[int] | None = None) -> None:
        """Drop what is kept of blocks that did not run since a step; where there are any, the next step computes."""
        for block in self.blocks.values():
            self.emptied = self.emptied or (bool(block.hidden.times) and block.newest < step)
            block.since(step)

    def forget(self) -> None:
        """Drop what is kept of all blocks."""
        for block in self.blocks.values():
            block.clear()
        self.blocks.clear()

    def free(self) -> None:
        """Drop all tensors."""
        super().free()
        self.pending, self.skips = None, frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        return sum(block.nbytes for block in self.blocks.values())

    @property
    def snapshots(self) -> list[BlockSnapshots]:
        """What is kept of each block."""
        return list(self.blocks.values())


def _without(layout: Layout, policy: PrunePolicy) -> Layout:
    """A layout in which the blocks that a policy never skips just compute."""
    kept = policy.excluded(len(layout.zones))
    zones = tuple(Zone.FRONT if z is Zone.MIDDLE and i in kept else z for i, z in enumerate(layout.zones))
    middle = [place for place, zone in enumerate(zones) if zone is Zone.MIDDLE]
    return Layout(zones, layout.last_front, middle[-1] if middle else -1)


def _thinning(options: ChainOptions) -> int:
    """Of how many elements of the last dimension one is compared."""
    cache: Any = options.cache
    factor = options.extra.downsample_factor
    return max(4, factor) if cache.force_reduce_calibrator_vram and options.calibrator is not None else factor
