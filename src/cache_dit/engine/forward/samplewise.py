"""A decision for each sample of a batch: those that need computing are computed, the others take their prediction.

Each sample has a policy and a past of its own, and gives what it gives alone. What a block is called with is gathered
for the samples that compute, and what it returns is put back in their places, block by block, so that the model's own
loop sees whole batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cache_dit.engine.forward.batch_split import Gathering, UnclearError, places
from cache_dit.engine.forward.chain import BlockRole, Chain, Layout, untraced
from cache_dit.engine.forward.run import ChainRun, Prediction, Run, take_snapshot
from cache_dit.engine.forward.stepwise import BaseLane, Call, Pass
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.policies.base import Action, StepPolicy
from cache_dit.engine.state.measure import Reading, exceeds, read_numbers, read_relative_l1
from cache_dit.engine.state.snapshots import Past


class RowsPrediction:
    """The predictions of a batch's samples, in the form of one.

    Args:
        rows: the prediction of each sample; None for one that computes.
    """

    def __init__(self, rows: Sequence[Prediction | None]) -> None:
        self.rows = rows

    def fits(self, stream: Any) -> bool:
        """Whether each sample of a stream looks like its snapshots."""
        rows = enumerate(self.rows)
        return all(row is None or row.fits(stream[place : place + 1]) for place, row in rows)

    def over(self, anchor: torch.Tensor) -> torch.Tensor:
        """The stream after the skipped blocks, from what it is before them; samples that compute stay as they are."""
        filled = anchor.clone() if None in self.rows else torch.empty_like(anchor)
        for place, row in enumerate(self.rows):
            if row is not None:
                one = slice(place, place + 1)
                row.history.predict(row.coefficients, anchor[one], filled[one])
        return filled

    def alone(self) -> torch.Tensor:
        """The same where the snapshots are of the stream itself; samples that compute are zero."""
        found = [None if row is None else row.alone() for row in self.rows]
        like = next(one for one in found if one is not None)
        return torch.cat([torch.zeros_like(like) if one is None else one for one in found])


class RowsRun(ChainRun):
    """A run in which some samples compute the middle blocks and others don't.

    Args:
        rows: the samples that compute, as far as that is known before the forward.
        batch: the number of samples.
    """

    def __init__(self, chain: Chain, layout: Layout, *, rows: list[int], batch: int, **options: Any) -> None:
        super().__init__(chain, layout, **options)
        self.chain = chain
        self.rows = rows
        self.batch = batch
        self.gathered = 0  # calls of M blocks with a part of the batch
        self.misbatched = False
        self.gathering: Gathering | None = None
        self._closing = None if self.last_role is None else self.last_role.position
        self._predicted: tuple[Any, Any] = (None, None)

    @property
    def partial(self) -> bool:
        """Whether some samples compute and some don't."""
        return 0 < len(self.rows) < self.batch

    def compute_all(self) -> None:
        """Let all samples compute."""
        self.skip, self.rows = False, list(range(self.batch))

    @untraced
    def enter(self, role: BlockRole, hidden: torch.Tensor, encoder: Any) -> None:
        """The first M block: predict what is skipped, or let all samples compute."""
        streams = [stream for stream in (hidden, encoder) if isinstance(stream, torch.Tensor)]
        self.misbatched = self.misbatched or any(stream.shape[:1] != (self.batch,) for stream in streams)
        if self.misbatched:
            self.compute_all()
        if self.partial:
            if self.predict(role, hidden, encoder):
                self.gathering = Gathering(self.rows, self.batch, hidden.device)
                self._predicted = self.out_hidden, self.out_encoder
            else:
                self.misfit = True
                self.compute_all()
        super().enter(role, hidden, encoder)
        if self.misfit:
            self.compute_all()

    @untraced
    def compute(
        self,
        role: BlockRole,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        hidden: torch.Tensor,
        encoder: Any,
    ) -> Any:
        """Run an M block for the samples that compute; for all where its arguments cannot be told apart by sample."""
        gathering = self.gathering
        if gathering is None:
            return call(*args, **kwargs)
        try:
            part_args, part_kwargs = gathering.part((args, dict(kwargs)), (hidden, encoder))
        except UnclearError as unclear:
            self.chain.say_once(f"cache_dit: {role.io.block_name} is called with %s: all samples are computed", unclear)
            output = call(*args, **kwargs)
            if role.position != self._closing:
                return output
            part_hidden, part_encoder, form = role.io.split(output)
            part_hidden, part_encoder = gathering.part((part_hidden, part_encoder), (part_hidden, part_encoder))
        else:
            self.gathered += 1
            part_hidden, part_encoder, form = role.io.split(call(*part_args, **part_kwargs))
        if role.position == self._closing:
            self.filled = True
            hidden, encoder = self._predicted
        return role.io.build(gathering.put(hidden, part_hidden), gathering.put(encoder, part_encoder), form)


class Sample:
    """One sample's policy and past."""

    def __init__(self, options: ChainOptions, policy: StepPolicy) -> None:
        self.policy = policy
        self.past = Past(options, watch=policy.measures)


class RowsLane(BaseLane):
    """A lane whose samples decide for themselves.

    Args:
        chain, layout, options: see ``BaseLane``.
        make: makes a sample's policy.
    """

    def __init__(self, chain: Chain, layout: Layout, options: ChainOptions, make: Callable[..., StepPolicy]) -> None:
        super().__init__(chain, layout, options)
        self.make = make
        self.samples: list[Sample] = []
        self.probe: torch.Tensor | None = None
        self.last_role: BlockRole | None = None
        self.had_encoder = False
        self.forms = [role.io.form for role in chain.roles]

    def start(self, call: Call, shared: list[float] | None = None) -> Pass:
        """Decide what can be decided before the forward."""
        compute = self.why_compute(call, max((len(sample.past) for sample in self.samples), default=0))
        if len(self.samples) != call.batch:
            compute = compute or ("shape" if self.samples else None)
            self._resize(call.batch)
        if call.judge is not None:
            self.chain.say_once("cache_dit: a replaced similarity judges a whole batch: decision='sample' asks none")
        reasons: list[str | None] = [compute] * call.batch
        actions = [Action.COMPUTE if compute else sample.policy.decide(call.step) for sample in self.samples]
        jumped = self._jumped(call) if shared is not None and Action.MEASURE in actions else frozenset()
        for place, sample in enumerate(self.samples):
            if actions[place] is Action.MEASURE and shared is not None and len(shared) == call.batch:
                accepted = sample.policy.accept(shared[place])
                reasons[place] = "conditioning" if place in jumped else None
                actions[place] = Action.SKIP if accepted and place not in jumped else Action.COMPUTE
            if actions[place] is not Action.COMPUTE and len(sample.past) == 0:
                actions[place], reasons[place] = Action.COMPUTE, "no_snapshot"
        first = self.samples[0].policy
        run = RowsRun(
            self.chain,
            self.layout,
            rows=[place for place, action in enumerate(actions) if action is Action.COMPUTE],
            batch=call.batch,
            watches=first.probe if first.measures else None,
            keeps_state=self.options.keeps_state,
            skip=all(action is Action.SKIP for action in actions),
            measure=Action.MEASURE in actions,
            keeps=first.caches and self.refused is None,
            last_role=self.last_role,
            had_encoder=self.had_encoder,
            forms=self.forms,
        )
        started = RowsPass(self, run, call, actions, reasons)
        if not run.measure:
            started.predict()
        for place in started.asked:
            self.samples[place].past.prefetch()
        return started

    def _resize(self, batch: int) -> None:
        """Another number of samples: each begins with no past, and what was done under its number counts."""
        self.free()
        before = [sample.policy for sample in self.samples]
        origin = {"origin": before[0].origin} if before else {}
        made = [self.make(records=policy.records, **origin) for policy in before[:batch]]
        made += [self.make(**origin) for _ in range(batch - len(made))]
        self.samples = [Sample(self.options, policy) for policy in made]

    def _jumped(self, call: Call) -> frozenset[int]:
        """The samples whose conditioning has changed too much, where no diff is read that this could go with."""
        jumps = None if call.jump is None else call.jump(call.batch)
        if jumps is None:
            return frozenset()
        threshold = self.options.cache.conditioning_diff_threshold
        read = enumerate(read_numbers(list(jumps), call.group))
        return frozenset(place for place, jump in read if exceeds(jump, threshold))

    def policies(self) -> dict[str, StepPolicy]:
        """The samples' policies, by number."""
        return {str(place): sample.policy for place, sample in enumerate(self.samples)}

    def renew(self, options: ChainOptions, layout: Layout, make: Callable[..., StepPolicy]) -> None:
        """Go on with other options from the next step on; the past stays where it serves them too."""
        same = options.predicts_as(self.options) and layout == self.layout
        self.options, self.layout, self.make = options, layout, make
        for sample in self.samples:
            before = sample.policy
            sample.policy = make(records=before.records, origin=before.origin)
            same = same and (sample.policy.probe, sample.policy.measures) == (before.probe, before.measures)
        if not same:
            self.free()
            self.samples = [Sample(options, sample.policy) for sample in self.samples]

    def refresh(self, step: int) -> None:
        """Begin anew at a step."""
        self.free()
        for sample in self.samples:
            sample.policy = self.make(records=sample.policy.records, origin=step)

    def account(self, run: Run) -> None:
        """Count what a pass ran, in calls for one sample."""
        if not isinstance(run, RowsRun):
            return
        self.possible += (run.executed + run.skipped) * run.batch
        self.executed += (run.executed - run.gathered) * run.batch + run.gathered * len(run.rows)

    def forget(self) -> None:
        """Drop the history of all samples."""
        for sample in self.samples:
            sample.past.clear()

    def free(self) -> None:
        """Drop all tensors."""
        super().free()
        self.probe = None

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        return sum(sample.past.nbytes for sample in self.samples) + (0 if self.probe is None else self.probe.nbytes)

    @property
    def pasts(self) -> list[Past]:
        """The samples' pasts."""
        return [sample.past for sample in self.samples]


class RowsPass(Pass):
    """A pass of a ``RowsLane``.

    Args:
        lane, run, call: see ``Pass``.
        actions: what each sample's policy said; MEASURE is settled in ``decide``.
        reasons: why a sample computes, where the engine says so and not its policy.
    """

    lane: RowsLane
    run: RowsRun

    def __init__(
        self, lane: RowsLane, run: RowsRun, call: Call, actions: list[Action], reasons: list[str | None]
    ) -> None:
        super().__init__(lane, run, call)
        self.actions = actions
        self.reasons = reasons
        #: The samples whose policies want to know a diff.
        self.asked = [place for place, action in enumerate(actions) if action is Action.MEASURE]
        run.decide = self.decide

    def predict(self) -> None:
        """Put the predictions of the samples that are skipped where the blocks will take them from."""
        pairs = [
            sample.past.predictions(self.call, summed=False) if action is Action.SKIP else (None, None)
            for sample, action in zip(self.lane.samples, self.actions, strict=True)
        ]
        for place, name in enumerate(("predicted_hidden", "predicted_encoder")):
            rows = [pair[place] for pair in pairs]
            if any(row is not None for row in rows):
                setattr(self.run, name, RowsPrediction(rows))

    @untraced
    def decide(self, run: RowsRun) -> None:
        """Measure all samples by one read, and ask each one's policy that wants to know."""
        lane, call = self.lane, self.call
        probe = lane.thinned(run.probe)
        jumps = None if call.jump is None else call.jump(call.batch)
        reading = None
        if probe is not None and probe.shape[:1] != (call.batch,):
            run.misbatched = True
        elif probe is not None:
            reading = read_relative_l1(
                lane.probe,
                probe,
                call.group,
                samples=call.batch,
                important=lane.options.extra.important_condition_threshold,
                health=self._health(probe),
                beside=() if jumps is None else tuple(jumps),
            )
        self.diffs = None if reading is None else reading.diffs
        for place in self.asked:
            if reading is None:
                self.actions[place] = Action.COMPUTE
                self.reasons[place] = "not_measured" if lane.probe is None or probe is None else "shape"
            else:
                self.actions[place] = self._answer(place, reading)
        run.rows = [place for place, action in enumerate(self.actions) if action is Action.COMPUTE]
        run.skip = not run.rows
        self.predict()

    def _answer(self, place: int, reading: Reading) -> Action:
        """What a sample does, once its diff is known."""
        sample, diff = self.lane.samples[place], reading.diffs[place]
        accepted = sample.policy.accept(diff)
        limit = self.lane.options.cache.conditioning_diff_threshold
        if not math.isfinite(diff):
            sample.past.clear()  # a predictor of a higher order would go on using the step that was not finite
        elif reading.beside and exceeds(reading.beside[place], limit):
            self.reasons[place] = "conditioning"
            return Action.COMPUTE
        return Action.SKIP if accepted else Action.COMPUTE

    def _health(self, probe: torch.Tensor) -> torch.Tensor:
        """For each sample a number that is not finite where a snapshot of it is not."""
        found = [sample.past.health() for sample in self.lane.samples]
        zero = probe.new_zeros((), dtype=torch.float32)
        return torch.stack([zero if health is None else health.to(zero) for health in found])

    @property
    def unfilled(self) -> bool:
        """Whether blocks were skipped, for all samples or for some, and no block handed out the prediction."""
        return (self.run.skipped > 0 or self.run.gathering is not None) and not self.run.filled

    @property
    def computed(self) -> list[int]:
        """The samples that computed."""
        if self.run.skipped:
            return []
        return self.run.rows if self.run.begun else list(range(self.call.batch))

    def commit(self, output: Any) -> None:
        """Enter what happened into the samples' policies and pasts."""
        lane, run = self.lane, self.run
        lane.account(run)
        computed = self.computed
        if computed:
            if run.snapshot_hidden is None:
                take_snapshot(run)
            self._keep(computed)
        self._keep_probe(computed)
        for place, sample in enumerate(lane.samples):
            misfit = run.misfit and self.actions[place] is not Action.COMPUTE
            why = "shape" if misfit else self.reasons[place]
            diff = self.diffs[place] if self.diffs is not None and place in self.asked else None
            sample.policy.commit(self.call.step, computed=place in computed, diff=diff, why=why)

    def _keep(self, rows: list[int]) -> None:
        """Append the computed samples' snapshots, or note why there are none."""
        lane, run = self.lane, self.run
        hidden, encoder = run.snapshot_hidden, run.snapshot_encoder
        if encoder is not None and encoder.shape[:1] != (run.batch,):
            run.misbatched = True
        if hidden is not None and not run.misbatched:
            lane.last_role, lane.had_encoder = run.last_role, run.had_encoder
            for place in rows:
                kept = None if encoder is None else _row(encoder, place)
                lane.samples[place].past.keep(self.call, _row(hidden, place), kept)
        elif run.misbatched or (run.begun and run.keeps):
            lane.refused = "not_batch_first" if run.misbatched else "shape_changes_inside"
            lane.free()
            self.reasons = [lane.refused] * run.batch
        elif not run.begun and run.position < 0:
            self.reasons = ["not_called"] * run.batch

    def _keep_probe(self, computed: list[int]) -> None:
        """Keep of the probe what the next step is compared with."""
        lane, policy = self.lane, self.lane.samples[0].policy
        probe = lane.thinned(self.run.probe)
        if probe is None or self.run.watches is None:
            return
        probe = probe.detach()
        if self.run.traced and probe.is_cuda:  # it lies in a CUDA graph's memory, or may
            probe = probe.clone()
        rows = range(self.call.batch) if policy.against == "previous" else computed
        if lane.probe is None or lane.probe.shape != probe.shape or len(rows) == self.call.batch:
            lane.probe = probe
        elif rows:
            chosen = places(rows, probe.device)
            lane.probe = lane.probe.index_copy(0, chosen, probe.index_select(0, chosen))


def _row(stream: torch.Tensor, place: int) -> torch.Tensor:
    """A sample's part of a stream, a tensor of its own, so that it keeps no batch alive."""
    return stream[place : place + 1].detach().clone()
