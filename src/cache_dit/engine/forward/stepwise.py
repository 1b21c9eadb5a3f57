"""One branch of one chain in one request: when to compute, and what a skipped step is filled with."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.engine.forward.chain import BlockRole, Chain, Layout, untraced
from cache_dit.engine.forward.run import ChainRun, Run, take_snapshot
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.policies.base import Action, Probe, StepPolicy
from cache_dit.engine.state.measure import Reading, Transformation, read_back, read_numbers, read_relative_l1
from cache_dit.engine.state.snapshots import Past

#: A replacement of ``CachedContextManager.similarity``: whether a step may be skipped, and the diff if it tells one.
Judge = Callable[..., tuple[bool, float | None]]


@dataclass
class Call:
    """What lanes must know of one call of the transformer.

    Args:
        step: the step's number in its request.
        branch: what tells the call from the others of its step.
        times: the step's place on each coordinate that is known; predictors see it ascend.
        compute: why this step must compute whatever a policy says, or None.
        latent: the transformer's first input.
        batch: its number of samples.
        group: the process group that decides together, or None.
        key: what the call looks like on all ranks of the group: another one than at the last computed step is a miss.
        jump: measures by how much a conditioning tensor differs from the last computed step's, at most, or of each
            sample where their number is given; gives None where none can. None: nobody asks.
        judge: what decides instead of a measurement, with the diff it saw, or None.
        observer: told of every computed step; None: nobody asks.
    """

    step: int
    branch: Hashable = None
    times: Mapping[str, float] = field(default_factory=dict)
    compute: str | None = None
    latent: torch.Tensor | None = None
    batch: int = 1
    group: Any = None
    key: Hashable = None
    jump: Callable[..., torch.Tensor | None] | None = None
    judge: Judge | None = None
    observer: Callable[[Pass, Any], None] | None = None


class BaseLane:
    """What all lanes share: the chain, its layout and options, and the account of what ran.

    Args:
        chain: the chain.
        layout: which of its blocks can be skipped.
        options: its configuration.
    """

    def __init__(self, chain: Chain, layout: Layout, options: ChainOptions) -> None:
        self.chain = chain
        self.layout = layout
        self.options = options
        self.executed = 0
        self.possible = 0
        self.call_key: Hashable = None
        #: Why this lane computes everything from now on, once something showed that it cannot be cached.
        self.refused: str | None = None

    def start(self, call: Call, shared: list[float] | None = None) -> Pass:
        """Decide what can be decided before the forward.

        Args:
            call: the call.
            shared: the diffs that another branch measured in this step, to decide by instead of measuring.
        """
        raise NotImplementedError

    def why_compute(self, call: Call, kept: int) -> str | None:
        """Why a step must compute before any policy is asked, or None.

        Args:
            call: the call.
            kept: how many snapshots there are.
        """
        other = call.key != self.call_key and kept
        self.call_key = call.key
        return (
            call.compute
            or ("shape" if other else None)
            or self.refused
            or (None if self.layout.middle else "no_middle")
        )

    def renew(self, options: ChainOptions, layout: Layout, make: Callable[..., Any]) -> None:
        """Go on with other options from the next step on; the steps done so far count.

        Args:
            options, layout: the new ones.
            make: makes the policy.
        """
        raise NotImplementedError

    def refresh(self, step: int) -> None:
        """Begin anew at a step: warm-up and mask count from it, and nothing from before it is used."""
        raise NotImplementedError

    @property
    def waits(self) -> bool:
        """Whether a step may wait for what was measured in it."""
        return any(policy.measures for policy in self.policies().values())

    def policies(self) -> dict[str, Any]:
        """The policies, by what tells them apart within the lane: nothing, or the number of a sample."""
        raise NotImplementedError

    def thinned(self, probe: Any) -> Any:
        """The part of a probe that is compared."""
        factor = self.options.extra.downsample_factor
        return probe[..., ::factor].contiguous() if factor > 1 and isinstance(probe, torch.Tensor) else probe

    def forget(self) -> None:
        """Drop what predictions are made from: the next step computes."""
        raise NotImplementedError

    def free(self) -> None:
        """Drop all tensors; what is known of the steps stays for ``summary``."""
        self.forget()

    def account(self, run: Run) -> None:
        """Count what a pass ran."""
        self.possible += run.executed + run.skipped
        self.executed += run.executed

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        raise NotImplementedError

    @property
    def pasts(self) -> list[Past]:
        """All that predictions are made from."""
        raise NotImplementedError


class Pass:
    """A lane in one pass of one forward: the bookkeeping around a ``Run``.

    Args:
        run: what the blocks see.
        call: the call.
    """

    def __init__(self, lane: BaseLane, run: Run, call: Call) -> None:
        self.lane: Any = lane
        self.run: Any = run
        self.call = call
        #: What was measured, for another branch to decide by.
        self.diffs: list[float] | None = None
        self.why: str | None = None

    @property
    def unfilled(self) -> bool:
        """Whether blocks were skipped and no block handed out the prediction: the output is then wrong."""
        return False

    def check_writes(self) -> None:
        """After a chain's first computed step: do its blocks write into their input?"""
        chain, run = self.lane.chain, self.run
        if run.originals and chain.writes_input is None:
            home = run.originals[0][0].device
            written = [(stream != copy).any().to(home) for stream, copy in run.originals]
            chain.writes_input = bool(read_back(torch.stack(written).any().reshape(1))[0])
        run.originals.clear()

    def commit(self, output: Any) -> None:
        """Enter what happened into the policy and the history.

        Args:
            output: what the transformer returned.
        """
        raise NotImplementedError


class Lane(BaseLane):
    """A lane of DBCache and its like: the middle blocks compute or are skipped together.

    Args:
        chain, layout, options: see ``BaseLane``.
        make: makes the policy; called again with ``records`` or ``origin`` when the request is refreshed.
    """

    def __init__(self, chain: Chain, layout: Layout, options: ChainOptions, make: Callable[..., StepPolicy]) -> None:
        super().__init__(chain, layout, options)
        self.make = make
        self.policy = make()
        self.past = Past(options, watch=self.policy.measures, predictor=self.policy.predictor)
        self.probe: torch.Tensor | None = None
        self.transformation = Transformation() if self.policy.probe is Probe.LATENT else None
        self.last_role: BlockRole | None = None
        self.had_encoder = False
        self.forms = [role.io.form for role in chain.roles]
        self.traced = False  # whether compiled code reads the predictions

    def start(self, call: Call, shared: list[float] | None = None) -> Pass:
        """Decide what can be decided before the forward."""
        compute = self.why_compute(call, len(self.past))
        action = Action.COMPUTE if compute else self.policy.decide(call.step)
        if action is Action.SKIP and self._judged(call):
            action = Action.MEASURE
        if self.transformation is not None and self._judged(call):
            self.chain.say_once(
                "cache_dit: policy=%r compares no blocks: a replaced similarity is not asked", self.options.cache.policy
            )
        diff: float | None = None
        why = compute
        if action is Action.MEASURE and (shared is not None or self.transformation is not None):
            reading = self._known(call, shared)
            diff = None if reading is None else reading.diffs[0]
            accepted = diff is not None and self.policy.accept(diff)
            if shared is None and diff is not None and not math.isfinite(diff):
                self.forget()  # as in ``LanePass.decide``
            why = "not_measured" if reading is None else None
            if reading is not None and reading.jumped(self.options.cache.conditioning_diff_threshold):
                accepted, why = False, "conditioning"
            action = Action.SKIP if accepted else Action.COMPUTE
        if action is not Action.COMPUTE and len(self.past) == 0:
            action, why = Action.COMPUTE, "no_snapshot"
        run = ChainRun(
            self.chain,
            self.layout,
            watches=self.watches(call),
            keeps_state=(False, False) if call.observer is not None else self.options.keeps_state,
            skip=action is Action.SKIP,
            measure=action is Action.MEASURE,
            keeps=(self.policy.caches or call.observer is not None) and self.refused is None,
            last_role=self.last_role,
            had_encoder=self.had_encoder,
            forms=self.forms,
        )
        if run.skip:
            self.predict(run, call)
        if run.measure or (run.skip and not self.traced):  # traced: fetched already
            self.past.prefetch()
        return LanePass(self, run, call, diffs=None if diff is None else [diff], why=why)

    def _known(self, call: Call, shared: list[float] | None) -> Reading | None:
        """The diff of a step that is decided before the forward; None where there is none yet."""
        jump = None if call.jump is None else call.jump()
        beside = () if jump is None else (jump,)
        if shared is not None:
            return Reading(shared[:1], read_numbers(beside, call.group) if beside else [])
        increment = None if self.transformation is None else self.transformation.increment(call.latent)
        if increment is None:
            return None
        if (health := self.past.health()) is not None:
            increment = increment + 0 * health.to(increment)
        numbers = read_numbers((increment, *beside), call.group)
        return Reading(numbers[:1], numbers[1:])

    def watches(self, call: Call) -> Probe | None:
        """What of the F blocks is kept for the decision."""
        if call.observer is not None:
            return Probe.MODULATED
        if self.policy.measures:
            return self.policy.probe
        return Probe.RESIDUAL if self._judged(call) else None

    def _judged(self, call: Call) -> bool:
        """Whether a replaced ``similarity`` decides: also where the policy alone would not measure."""
        return call.judge is not None and self.policy.caches and not self.policy.static

    def predict(self, run: ChainRun, call: Call) -> None:
        """Put the prediction for a step where the blocks will take it from."""
        run.predicted_hidden, run.predicted_encoder = self.past.predictions(call, summed=self.traced)

    def policies(self) -> dict[str, StepPolicy]:
        """The lane's one policy."""
        return {"": self.policy}

    def renew(self, options: ChainOptions, layout: Layout, make: Callable[..., StepPolicy]) -> None:
        """Go on with other options from the next step on; the history stays where it serves them too."""
        same = options.predicts_as(self.options) and layout == self.layout
        before = self.policy
        self.options, self.layout, self.make = options, layout, make
        self.policy = make(records=before.records, origin=before.origin)
        if self.policy.probe is not before.probe or self.policy.measures != before.measures or not same:
            self.free()
            self.past = Past(options, watch=self.policy.measures, predictor=self.policy.predictor)
            self.transformation = Transformation() if self.policy.probe is Probe.LATENT else None

    def refresh(self, step: int) -> None:
        """Begin anew at a step: warm-up and mask count from it, and nothing from before it is used."""
        self.free()
        self.policy = self.make(records=self.policy.records, origin=step)

    def forget(self) -> None:
        """Drop the history."""
        self.past.clear()

    def free(self) -> None:
        """Drop all tensors."""
        super().free()
        self.probe = None
        if self.transformation is not None:
            self.transformation.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        latents = 0 if self.transformation is None else self.transformation.nbytes
        return self.past.nbytes + latents + (0 if self.probe is None else self.probe.nbytes)

    @property
    def pasts(self) -> list[Past]:
        """The lane's one past."""
        return [self.past]


class LanePass(Pass):
    """A pass of a ``Lane``.

    Args:
        lane, run, call: see ``Pass``.
        diffs: what was measured already.
        why: why the step computes, where that is known already.
    """

    lane: Lane
    run: ChainRun

    def __init__(self, lane: Lane, run: ChainRun, call: Call, *, diffs: list[float] | None, why: str | None) -> None:
        super().__init__(lane, run, call)
        self.diffs = diffs
        self.why = why
        run.decide = self.decide

    @untraced
    def decide(self, run: ChainRun) -> None:
        """Measure how much the probe has changed, and skip if the policy accepts it."""
        lane, call = self.lane, self.call
        probe = lane.thinned(run.probe)
        if call.judge is not None:
            self._ask(call.judge, probe)
            return
        cache = lane.options.cache
        jump = None if call.jump is None else call.jump()
        reading = read_relative_l1(
            lane.probe,
            probe,
            call.group,
            samples=self._samples(probe),
            important=lane.options.extra.important_condition_threshold,
            health=lane.past.health(),
            beside=() if jump is None else (jump,),
        )
        if reading is None:
            self.why = "not_measured" if run.probe is None or lane.probe is None else "shape"
            return
        self.diffs = [min(reading.diffs) if cache.decision == "all" else max(reading.diffs)]
        if not all(map(math.isfinite, reading.diffs)):
            self.diffs = [math.nan]
        accepted = lane.policy.accept(self.diffs[0])
        if not math.isfinite(self.diffs[0]):
            lane.forget()  # a predictor of a higher order would go on using the step that was not finite
        elif reading.jumped(cache.conditioning_diff_threshold):
            self.why = "conditioning"
        elif accepted:
            run.skip = True
            lane.predict(run, call)

    def _samples(self, probe: Any) -> int | None:
        """How many samples a batch decides by; None: by the whole of it."""
        lane, decision = self.lane, self.lane.options.cache.decision
        if decision == "mean" or not isinstance(probe, torch.Tensor):
            return None
        if probe.shape[0] != self.call.batch:
            lane.chain.say_once(
                "cache_dit: decision=%r needs the samples along the first dimension of %s: the mean over all decides",
                decision,
                lane.chain.name,
            )
            return None
        return self.call.batch

    def _ask(self, judge: Judge, probe: Any) -> None:
        """Let a replaced ``similarity`` decide."""
        lane = self.lane
        if lane.probe is None or probe is None:
            self.why = "not_measured"
            return
        parallel = self.call.group is not None
        accepted, diff = judge(lane.probe, probe, threshold=lane.policy.threshold, parallelized=parallel, prefix="Fn")
        self.why = "hit" if accepted else "threshold"
        self.diffs = None if diff is None else [diff]
        if accepted:
            self.run.skip = True
            lane.predict(self.run, self.call)

    @property
    def unfilled(self) -> bool:
        """Whether blocks were skipped and no block handed out the prediction: the output is then wrong."""
        return self.run.skipped > 0 and not self.run.filled

    def commit(self, output: Any) -> None:
        """Enter what happened into the policy and the history."""
        lane, run = self.lane, self.run
        lane.account(run)
        computed = not run.skipped
        why = self.why
        if computed:
            if run.snapshot_hidden is None:
                take_snapshot(run)
            why = "shape" if run.misfit else why
            if self.call.observer is not None:
                self.call.observer(self, output)
            why = self._keep() if run.snapshot_hidden is not None else self._explain_missing()
        if run.probe is not None and run.watches is not None and (computed or lane.policy.against == "previous"):
            lane.probe = self._own(lane.thinned(run.probe))
        if lane.transformation is not None:
            lane.transformation.note(self.call.latent, output, computed=computed)
        diff = None if self.diffs is None else self.diffs[0]
        lane.policy.commit(self.call.step, computed=computed, diff=diff, why=why)

    def _keep(self) -> str | None:
        """Append the snapshots of a computed step; gives the reason of its computing."""
        lane, run = self.lane, self.run
        lane.last_role, lane.had_encoder, lane.traced = run.last_role, run.had_encoder, run.traced
        encoder = None if run.snapshot_encoder is None else self._own(run.snapshot_encoder)
        lane.past.keep(self.call, self._own(run.snapshot_hidden), encoder)
        return "shape" if run.misfit else self.why

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor to keep beyond this forward: a copy where it lies in a CUDA graph's memory, or may."""
        return tensor.detach().clone() if self.run.traced and tensor.is_cuda else tensor.detach()

    def _explain_missing(self) -> str | None:
        """Why a computed step left nothing to predict from."""
        if self.run.position < 0:
            return "not_called"
        if not self.run.keeps:
            return self.why
        if self.run.begun and self.lane.layout.middle:
            self.lane.refused = "shape_changes_inside"
            self.lane.free()
            return self.lane.refused
        return self.why or "no_middle"
