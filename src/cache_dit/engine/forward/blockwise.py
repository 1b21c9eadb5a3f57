"""DBPrune: each block is skipped by itself when its input hardly changed since it last ran.

Every block that may be skipped has a past of its own: its input, in part or in full, and what it made of it. The inputs
stay where and as they are; ``cache_device`` and ``cache_dtype`` are for what predictions are made from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from cache_dit.engine.forward.blockwise_pass import JUMP, PrunePass
from cache_dit.engine.forward.chain import Chain, Layout, Zone
from cache_dit.engine.forward.stepwise import BaseLane, Call, Pass
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.policies.base import Action
from cache_dit.engine.policies.prune import PrunePolicy
from cache_dit.engine.state.measure import Travelling, exceeds, read_numbers
from cache_dit.engine.state.snapshots import Past


class BlockPast(Past):
    """What is kept of one block: its input when it last ran, and what it added."""

    input: torch.Tensor | None = None
    had_encoder: bool = False

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self.input = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return super().nbytes + (0 if self.input is None else self.input.nbytes)


class PruneLane(BaseLane):
    """A lane of DBPrune.

    Args:
        chain, layout, options: see ``BaseLane``.
        make: makes the policy.
    """

    def __init__(self, chain: Chain, layout: Layout, options: ChainOptions, make: Callable[..., PrunePolicy]) -> None:
        self.make = make
        self.policy = make()
        super().__init__(chain, _without(layout, self.policy), options)
        self.blocks: dict[int, BlockPast] = {}
        self.forms = [role.io.form for role in chain.roles]
        self.travelling: Travelling | None = None
        #: The blocks that the last measured step skipped, and those whose input is not what the block before returned.
        self.skips: frozenset[int] = frozenset()
        self.apart: set[int] = set()

    def start(self, call: Call, shared: list[float] | None = None) -> Pass:
        """Decide what can be decided before the forward."""
        why = self.why_compute(call, len(self.blocks))
        action = Action.COMPUTE if why else self.policy.decide(call.step)
        if action is Action.SKIP and self.judged(call):
            action = Action.MEASURE
        chosen = None
        if action is Action.MEASURE and self.lags and not self.judged(call):
            chosen, why = self._chosen(call.step)
        known = {} if shared is None else {place: diff for place, diff in enumerate(shared) if math.isfinite(diff)}
        if action is Action.MEASURE and known and call.jump is not None:  # no diff is read, which it could go with
            jump = call.jump()
            if jump is not None and self.jumps(read_numbers([jump], call.group)[0]):
                action, why = Action.COMPUTE, "conditioning"
        return PrunePass(self, call, action, chosen=chosen, known=known, why=why)

    @property
    def lags(self) -> bool:
        """Whether steps are decided by the diffs of the step before."""
        cache: Any = self.options.cache
        return self.policy.measures and cache.prune_decision == "previous"

    @property
    def waits(self) -> bool:
        """Whether a step may wait for what was measured in it."""
        return self.policy.measures and not self.lags

    def judged(self, call: Call) -> bool:
        """Whether a replaced ``similarity`` decides: also where the policy alone would not measure."""
        return call.judge is not None and self.policy.caches and not self.policy.static

    def _chosen(self, step: int) -> tuple[frozenset[int], str | None]:
        """The blocks to skip by the diffs of the step before, and why there are none where that is known."""
        if self.travelling is None:
            return frozenset(), None
        measured_in, diffs = self.travelling.arrived()
        jump = diffs.pop(JUMP, 0.0)
        self.policy.note_diffs(measured_in, diffs)
        for position, diff in self.policy.previous_diffs.items():
            if not math.isfinite(diff):
                self.blocks[position].clear()
        if self.jumps(jump):
            return frozenset(), "conditioning"
        return self.policy.decide_blocks(step), None

    def jumps(self, jump: float) -> bool:
        """Whether what the model is conditioned on has changed too much."""
        cache = self.options.cache
        return exceeds(jump, cache.conditioning_diff_threshold)

    def block(self, position: int) -> BlockPast:
        """The past of a block, made where it is missing."""
        if position not in self.blocks:
            self.blocks[position] = BlockPast(self.options, watch=self.policy.measures)
        return self.blocks[position]

    def thinned(self, hidden: torch.Tensor) -> torch.Tensor:
        """The part of a block's input that is compared."""
        factor = _thinning(self.options)
        return hidden[..., ::factor].contiguous() if factor > 1 else hidden

    def policies(self) -> dict[str, Any]:
        """The lane's one policy."""
        return {"": self.policy}

    def renew(self, options: ChainOptions, layout: Layout, make: Callable[..., PrunePolicy]) -> None:
        """Go on with other options from the next step on; what is kept of the blocks stays where it serves them too."""
        before = self.options, self.layout, self.policy
        self.options, self.make = options, make
        self.policy = make(records=self.policy.records, origin=self.policy.origin)
        self.layout = _without(layout, self.policy)
        if _kept(*before) != _kept(self.options, self.layout, self.policy):
            self.free()

    def refresh(self, step: int) -> None:
        """Begin anew at a step."""
        self.free()
        self.policy = self.make(records=self.policy.records, origin=step)

    def forget(self) -> None:
        """Drop what is kept of all blocks."""
        for block in self.blocks.values():
            block.clear()
        self.blocks.clear()

    def free(self) -> None:
        """Drop all tensors."""
        super().free()
        self.travelling = None
        self.skips = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        return sum(block.nbytes for block in self.blocks.values())

    @property
    def pasts(self) -> list[Past]:
        """The blocks' pasts."""
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


def _kept(options: ChainOptions, layout: Layout, policy: PrunePolicy) -> tuple[object, ...]:
    """All that says what is kept of the blocks, and how."""
    cache: Any = options.cache
    places = cache.cache_device, cache.cache_dtype, _thinning(options)
    return layout, options.calibrator, *places, policy.measures
