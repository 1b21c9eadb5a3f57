"""The cache whose middle blocks compute or are skipped together: DBCache's, and that of all policies like it.

The decision is made for the batch as a whole, or for each of its samples (``samplewise``).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from cache_dit.engine.forward.branch_cache import BranchCache, ChainForward
from cache_dit.engine.forward.call import Call
from cache_dit.engine.forward.chain import ASK, COMPUTE, FILL, LEAVE, PASS, WATCH, BlockRole, Chain, Layout
from cache_dit.engine.forward.stepwise_forward import StepwiseForward
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.policies.base import Action, Probe, StepPolicy
from cache_dit.engine.state.measure import EasyCacheProbe, Reading, read_numbers
from cache_dit.engine.state.snapshots import RECENT, Snapshots


class Sample:
    """What decides and predicts for itself: the batch as a whole, or one sample of it."""

    def __init__(self, options: ChainOptions, policy: StepPolicy) -> None:
        self.policy = policy
        self.snapshots = Snapshots(options, watch=policy.measures, predictor=policy.predictor)
        #: The first block's latest diffs; see ``leaps``.
        self.recent: deque[float] = deque(maxlen=RECENT)


class Parts(NamedTuple):
    """What the blocks of a chain do: until the first M block asks, in a computed step, and in a cached one."""

    asking: tuple[int, ...]
    leaving: tuple[int, ...]
    passing: tuple[int, ...]


class StepwiseCache(BranchCache):
    """The cache of DBCache and its like.

    Args:
        chain, layout, options: see ``BranchCache``.
        make: makes a policy; called again with ``records`` or ``origin`` when the request is refreshed.
    """

    #: Makes the forward of a step.
    forward: Callable[..., StepwiseForward] = StepwiseForward
    #: Whether each sample of the batch decides for itself.
    apart = False

    def __init__(self, chain: Chain, layout: Layout, options: ChainOptions, make: Callable[..., StepPolicy]) -> None:
        super().__init__(chain, layout, options)
        self.make = make
        self.probe: torch.Tensor | None = None
        #: mean|probe|, one or one a sample, where it was read when the probe was new.
        self.probe_sizes: list[float] | None = None
        self.easycache: EasyCacheProbe | None = None
        #: What the last computed step has shown of the blocks.
        self.last_role: BlockRole | None = None
        self.had_encoder = False
        #: Whether the forms of the blocks' results are to be seen: at first, and in compiled code always.
        self.learns = True
        #: Whether compiled code reads the predictions.
        self.traced = False
        self.parts = Parts((), (), ())
        self.samples: list[Sample] = [] if self.apart else [Sample(options, make())]
        self._settle(self.samples[0].policy if self.samples else make())

    def _settle(self, policy: StepPolicy) -> None:
        """Take over what does not change from step to step."""
        self.caches, self.static = policy.caches, policy.static
        self.probes = policy.probe if policy.measures else None
        self.pools = self.options.cache.decision == "mean"
        if policy.probe is not Probe.LATENT or self.apart:
            self.easycache = None
        elif self.easycache is None:
            self.easycache = EasyCacheProbe()
        self._fitted: tuple[Any, ...] = ()

    # -- before the forward

    def start(self, call: Call, shared: list[float] | None = None) -> ChainForward:
        """Decide what can be decided before the forward."""
        compute = self.why_compute(call, len(self.samples[0].snapshots.hidden.times) if self.samples else 0)
        if self.apart and len(self.samples) != call.batch:
            compute = compute or ("shape" if self.samples else None)
            self._resize(call.batch)
        observed = call.observer is not None
        asks = call.similarity is not None and self._asks()
        watches = Probe.MODULATED if observed else None if self.refused else self.probes
        if asks and watches is None:
            watches = Probe.RESIDUAL
        keeps = (self.caches or observed) and self.refused is None
        if self._fitted != (watches, keeps):
            self._fit(watches, keeps)
        forward = self.forward(self, call, self.parts.asking)
        forward.watches, forward.keeps, forward.learns = watches, keeps, self.learns
        forward.keeps_state = (False, False) if observed else self.options.keeps_state
        forward.last_role, forward.had_encoder = self.last_role, self.had_encoder
        forward.actions, forward.reasons = [], []
        for sample in self.samples:
            action = Action.COMPUTE if compute else sample.policy.decide(call.step)
            forward.actions.append(Action.MEASURE if asks and action is Action.SKIP else action)
            forward.reasons.append(compute)
        if (shared is not None or self.easycache is not None) and Action.MEASURE in forward.actions:
            self._answer_now(forward, shared)
        if call.look is not None and forward.reading is None and Action.MEASURE not in forward.actions:
            jumps = call.look(call.batch if self.apart else None)
            if jumps is not None and (places := self.jumped(jumps)):
                self.since(call.step, places)
        for place, sample in enumerate(self.samples):
            if forward.actions[place] is not Action.COMPUTE:
                if not sample.snapshots.hidden.times:
                    forward.actions[place], forward.reasons[place] = Action.COMPUTE, sample.snapshots.missing
                elif sample.snapshots.travels and not self.traced:  # traced: fetched already
                    sample.snapshots.prefetch()
        if Action.MEASURE in forward.actions:
            forward.measure = True
        elif Action.SKIP in forward.actions:
            forward.settle()
        return forward

    def _asks(self) -> bool:
        """Whether a replaced ``similarity`` decides: also where the policy alone would not measure."""
        if self.apart:
            self.chain.say_once("cache_dit: a replaced similarity judges a whole batch: decision='sample' asks none")
        elif self.caches and not self.static and self.easycache is not None:
            self.chain.say_once(
                "cache_dit: policy=%r compares no blocks: a replaced similarity is not asked", self.options.cache.policy
            )
        return self.caches and not (self.static or self.apart or self.easycache)

    def _answer_now(self, forward: StepwiseForward, shared: list[float] | None) -> None:
        """Let the policies judge diffs that are known before the forward: another branch's, or EasyCache's."""
        call = forward.call
        jump = None if call.jump is None else call.jump(call.batch if self.apart else None)
        beside = () if jump is None else tuple(jump) if jump.dim() else (jump,)
        if shared is not None:
            if len(shared) != len(self.samples):
                return
            forward.reading = Reading(shared, read_numbers(beside, call.group) if beside else [])
        elif self.easycache is not None and (increment := self.easycache.increment(call.latent)) is not None:
            for health in self.samples[0].snapshots.health:
                increment = increment + 0 * health.to(increment)
            numbers = read_numbers((increment, *beside), call.group)
            forward.reading = Reading(numbers[:1], numbers[1:])
        forward.diffs = None if forward.reading is None else forward.reading.diffs
        for place, action in enumerate(forward.actions):
            if action is Action.MEASURE:
                forward.answer(place, "not_measured", own=shared is None)

    def _fit(self, watches: Probe | None, keeps: bool) -> None:
        """Settle what the blocks do.

        Args:
            watches: what of the F blocks is kept for the decision.
            keeps: whether a computed step leaves a snapshot.
        """
        self._fitted, layout = (watches, keeps), self.layout
        if not keeps and watches is None:
            self.parts = Parts(*[layout.parts(COMPUTE)] * 3)
            return
        unread = any(not role.io.reads_encoder for role in self.chain.roles)  # E: the last F block gives it
        front = {0} if watches is Probe.RESIDUAL else set()
        if unread or watches in (Probe.RESIDUAL, Probe.STATE):
            front.add(layout.last_front)
        watched = {place: WATCH for place in front if 0 <= place <= layout.last_front}
        asking = passing = layout.parts(ASK, but=watched)
        if self.last_role is not None and not unread:
            passing = layout.parts(PASS, but=watched | {self.last_role.position: FILL})
        self.parts = Parts(asking, layout.parts(LEAVE, but=watched | {layout.last_middle: ASK}), passing)

    # -- at a decision

    def health(self, samples: int) -> list[torch.Tensor]:
        """Vectors of one number for each of the samples, not finite where a snapshot is not."""
        if not self.apart:
            return [number.expand(samples) for number in self.samples[0].snapshots.health]
        known = [number for sample in self.samples for number in sample.snapshots.health]
        if not known:
            return []
        zero = torch.zeros_like(known[0])
        return [torch.stack([sum(sample.snapshots.health, zero) for sample in self.samples])]

    def pooled(self, diffs: list[float]) -> list[float]:
        """The one diff that a batch is decided by, of those of its samples."""
        if not all(map(math.isfinite, diffs)):
            return [math.nan]
        return [min(diffs) if self.options.cache.decision == "all" else max(diffs)]

    def say_that_all_decide(self) -> None:
        """The samples cannot be told apart: say so once."""
        self.chain.say_once(
            "cache_dit: decision=%r needs the samples along the first dimension of %s: the mean over all decides",
            self.options.cache.decision,
            self.chain.name,
        )

    # -- after the forward

    def learn(self, forward: StepwiseForward) -> None:
        """Take over what a computed forward has shown of the blocks."""
        if forward.last_role is not self.last_role:
            self._fitted = ()
        self.last_role, self.had_encoder = forward.last_role, forward.had_encoder
        self.traced = forward.traced
        self.learns = forward.traced or forward.stale

    # -- over the request

    def _resize(self, batch: int) -> None:
        """Another number of samples: each begins with no snapshot, and what was done under its number counts."""
        self.free()
        before = [sample.policy for sample in self.samples]
        origin = {"origin": before[0].origin} if before else {}
        made = [self.make(records=policy.records, **origin) for policy in before[:batch]]
        made += [self.make(**origin) for _ in range(batch - len(made))]
        self.samples = [Sample(self.options, policy) for policy in made]

    def policies(self) -> dict[str, StepPolicy]:
        """The one policy, or those of the samples, by number."""
        return {str(place) if self.apart else "": sample.policy for place, sample in enumerate(self.samples)}

    def renew(self, options: ChainOptions, layout: Layout, make: Callable[..., StepPolicy]) -> None:
        """Go on with other options from the next step on; what is kept stays where it serves them too."""
        same = options.predicts_as(self.options) and layout == self.layout
        self.options, self.layout, self.make = options, layout, make
        for sample in self.samples:
            before = sample.policy
            sample.policy = make(records=before.records, origin=before.origin)
            same = same and (sample.policy.probe, sample.policy.measures) == (before.probe, before.measures)
        if not same:
            self.free()
            self.samples = [Sample(options, sample.policy) for sample in self.samples]
        self.probe_sizes = None
        self._settle(self.samples[0].policy if self.samples else make())

    def refresh(self, step: int) -> None:
        """Begin anew at a step."""
        self.free()
        for sample in self.samples:
            sample.policy = self.make(records=sample.policy.records, origin=step)
        self._settle(self.samples[0].policy if self.samples else self.make(origin=step))

    def since(self, step: int, places: Sequence[int] | None = None) -> None:
        """Drop the snapshots of before a step."""
        for place, sample in enumerate(self.samples):
            if places is None or place in places or not self.apart:
                sample.snapshots.since(step)

    def forget(self) -> None:
        """Drop the snapshots."""
        for sample in self.samples:
            sample.snapshots.clear()

    def free(self) -> None:
        """Drop all tensors."""
        super().free()
        self.probe = self.probe_sizes = None
        if self.easycache is not None:
            self.easycache.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        held = sum(sample.snapshots.nbytes for sample in self.samples)
        held += 0 if self.easycache is None else self.easycache.nbytes
        return held + (0 if self.probe is None else self.probe.nbytes)

    @property
    def snapshots(self) -> list[Snapshots]:
        """What each sample keeps."""
        return [sample.snapshots for sample in self.samples]
