"""A decision for each sample of a batch: those that need computing are computed, the others take their prediction.

Each sample has a policy and snapshots of its own, and gives what it gives alone. What a block is called with is split
for the samples that compute, and what it returns is put back in their places, block by block, so that the model's own
loop sees whole batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cache_dit.engine.forward.batch_split import BatchSplit, UnclearError, places
from cache_dit.engine.forward.call import Call
from cache_dit.engine.forward.chain import BlockRole, untraced
from cache_dit.engine.forward.stepwise import StepwiseCache
from cache_dit.engine.forward.stepwise_forward import StepwiseForward
from cache_dit.engine.policies.base import Action
from cache_dit.engine.state.snapshots import Prediction


class SamplesPrediction:
    """The predictions of a batch's samples, in the form of one.

    Args:
        samples: the prediction of each sample; None for one that computes.
    """

    def __init__(self, samples: Sequence[Prediction | None]) -> None:
        self.samples = samples

    def fits(self, stream: Any) -> bool:
        """Whether each sample of a stream looks like its snapshots."""
        return all(one is None or one.fits(stream[at : at + 1]) for at, one in enumerate(self.samples))

    def over(self, anchor: torch.Tensor) -> torch.Tensor:
        """The stream after the skipped blocks, from what it is before them; samples that compute stay as they are."""
        filled = anchor.clone() if None in self.samples else torch.empty_like(anchor)
        for place, sample in enumerate(self.samples):
            if sample is not None:
                one = slice(place, place + 1)
                sample.over(anchor[one], filled[one])
        return filled

    def alone(self) -> torch.Tensor:
        """The same where the snapshots are of the stream itself; samples that compute are zero."""
        found = [None if sample is None else sample.alone() for sample in self.samples]
        like = next(one for one in found if one is not None)
        return torch.cat([torch.zeros_like(like) if one is None else one for one in found])


class SamplewiseForward(StepwiseForward):
    """A forward in which some samples compute the middle blocks and others don't; arguments as ``ChainForward``."""

    cache: SamplewiseCache
    #: The samples' part of what blocks are called with, where some compute and some don't.
    split: BatchSplit | None = None
    split_calls = 0  # calls of M blocks with a part of the batch
    predicted: tuple[Any, Any] = (None, None)

    def __init__(self, cache: SamplewiseCache, call: Call, parts: tuple[int, ...]) -> None:
        super().__init__(cache, call, parts)
        self.batch = call.batch
        #: The samples that compute, and those whose policies want to know a diff.
        self.computing = list(range(self.batch))
        self.asked: list[int] = []
        #: The place of the block that hands out the predictions.
        self.closing = None if cache.last_role is None else cache.last_role.position

    def settle(self) -> None:
        """All have answered: put the predictions of those that are skipped where the blocks will take them from."""
        self.computing = [place for place, action in enumerate(self.actions) if action is Action.COMPUTE]
        self.skip = not self.computing
        pairs = [
            sample.snapshots.predictions(self.call.times, summed=False) if action is Action.SKIP else (None, None)
            for sample, action in zip(self.cache.samples, self.actions, strict=True)
        ]
        hidden, encoder = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self.predicted_hidden = None if hidden.count(None) == self.batch else SamplesPrediction(hidden)
        self.predicted_encoder = None if encoder.count(None) == self.batch else SamplesPrediction(encoder)

    @untraced
    def enter(self, role: BlockRole, hidden: torch.Tensor, encoder: Any) -> None:
        """The first M block: predict what is skipped, or let all samples compute."""
        if self.measure:
            self.asked = [place for place, action in enumerate(self.actions) if action is Action.MEASURE]
            self.decide()
            self.measure = False
        streams = [stream for stream in (hidden, encoder) if isinstance(stream, torch.Tensor)]
        self.misbatched = self.misbatched or any(stream.shape[:1] != (self.batch,) for stream in streams)
        split = None
        if self.misbatched:
            self._compute_all()
        elif 0 < len(self.computing) < self.batch:
            if self.predict(role, hidden, encoder):
                split = BatchSplit(self.computing, self.batch, hidden.device)
                self.predicted = self.out_hidden, self.out_encoder
            else:
                self.misfit = True
                self._compute_all()
        super().enter(role, hidden, encoder)
        if self.misfit:
            self._compute_all()
        if split is not None:
            self.split, self.parts, self.owes = split, self.cache.parts.asking, True

    def _compute_all(self) -> None:
        self.skip, self.computing = False, list(range(self.batch))

    def middle(
        self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute an M block for the samples that compute, or do what stands for it."""
        if not self.begun:
            hidden, encoder = role.io.read(args, kwargs)
            self.enter(role, hidden, encoder if role.io.reads_encoder else self.emitted)
        if self.split is None:
            return super().middle(role, call, args, kwargs)
        output = self._partly(self.split, role, call, args, kwargs)
        self.executed += 1
        if role.position == self.layout.last_middle:
            self.leave(role, output)
        else:
            self.last = role, output
            self.forms[role.position] = role.io.split(output)[2]
        return output

    @untraced
    def _partly(
        self,
        split: BatchSplit,
        role: BlockRole,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run a block for some samples; for all where its arguments cannot be told apart by sample."""
        hidden, encoder = role.io.read(args, kwargs)
        if not role.io.reads_encoder:
            encoder = self.emitted
        try:
            part_args, part_kwargs = split.part((args, dict(kwargs)), (hidden, encoder))
        except UnclearError as unclear:
            self.cache.chain.say_once(
                f"cache_dit: {role.io.block_name} is called with %s: all samples are computed", unclear
            )
            output = call(*args, **kwargs)
            if role.position != self.closing:
                return output
            part_hidden, part_encoder, form = role.io.split(output)
            part_hidden, part_encoder = split.part((part_hidden, part_encoder), (part_hidden, part_encoder))
        else:
            self.split_calls += 1
            part_hidden, part_encoder, form = role.io.split(call(*part_args, **part_kwargs))
        if role.position == self.closing:
            self.owes = False
            hidden, encoder = self.predicted
        return role.io.build(split.put(hidden, part_hidden), split.put(encoder, part_encoder), form)

    @property
    def computed_samples(self) -> list[int] | None:
        """The samples of the batch that computed."""
        return self.computing

    @property
    def computed(self) -> list[int]:
        """The samples that computed."""
        if self.skipped:
            return []
        return self.computing if self.begun else list(range(self.batch))

    def commit(self, output: Any) -> None:
        """Enter what happened into the samples' policies and what is kept of them."""
        cache, call = self.cache, self.call
        cache.possible += (self.executed + self.skipped) * self.batch
        cache.executed += (self.executed - self.split_calls) * self.batch + self.split_calls * len(self.computing)
        computed = self.computed
        if computed:
            if self.last is not None:
                self.leave(*self.last)
            self._keep(computed)
        self._keep_probe(computed)
        for place, sample in enumerate(cache.samples):
            misfit = self.misfit and self.actions[place] is not Action.COMPUTE
            why = "shape" if misfit else self.reasons[place]
            diff = self.diffs[place] if self.diffs is not None and place in self.asked else None
            sample.policy.commit(call.step, computed=place in computed, diff=diff, why=why)

    def _keep(self, computed: list[int]) -> None:
        """Append the computed samples' snapshots, or note why there are none."""
        cache, hidden, encoder = self.cache, self.snapshot_hidden, self.snapshot_encoder
        if encoder is not None and encoder.shape[:1] != (self.batch,):
            self.misbatched = True
        if hidden is not None and not self.misbatched:
            cache.learn(self)
            jumped = () if self.reading is None else cache.jumped(self.reading.beside)
            for place in computed:
                kept = None if encoder is None else _row(encoder, place)
                snapshots = cache.samples[place].snapshots
                if place in jumped:  # also of one that was not asked
                    snapshots.since(self.call.step)
                cache.grew = snapshots.keep(self.call.times, _row(hidden, place), kept) or cache.grew
        elif self.misbatched or (self.begun and self.keeps):
            cache.refused = "not_batch_first" if self.misbatched else "shape_changes_inside"
            cache.free()
            self.reasons = [cache.refused] * self.batch
        elif self.position < 0:
            self.reasons = ["not_called"] * self.batch

    def _keep_probe(self, computed: list[int]) -> None:
        """Keep of the probe what the next step is compared with."""
        cache = self.cache
        probe = cache.thinned(self.probe)
        if probe is None:
            return
        probe = self.own(probe)
        kept = range(self.batch) if cache.samples[0].policy.against == "previous" else computed
        sizes = None if self.reading is None else self.reading.sizes
        if cache.probe is None or cache.probe.shape != probe.shape or len(kept) == self.batch:
            cache.grew = cache.grew or cache.probe is None
            cache.probe, cache.probe_sizes = probe, sizes
        elif kept:
            chosen = places(kept, probe.device)
            cache.probe = cache.probe.index_copy(0, chosen, probe.index_select(0, chosen))
            cache.probe_sizes = None


class SamplewiseCache(StepwiseCache):
    """The same cache, whose samples decide for themselves."""

    forward = SamplewiseForward
    apart = True


def _row(stream: torch.Tensor, place: int) -> torch.Tensor:
    """A sample's part of a stream, a tensor of its own, so that it keeps no batch alive."""
    return stream[place : place + 1].detach().clone()
