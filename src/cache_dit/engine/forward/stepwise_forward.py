"""A forward in which a decision is made for all middle blocks together.

They compute, or pass their input on while the last of them hands out a prediction of what they would have made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from cache_dit.engine.forward.branch_cache import ChainForward, copied, difference
from cache_dit.engine.forward.call import SimilarityOverride
from cache_dit.engine.forward.chain import BlockRole, untraced
from cache_dit.engine.policies.base import Action, Probe
from cache_dit.engine.state.measure import Reading, exceeds, read_relative_l1
from cache_dit.engine.state.snapshots import Snapshots, leaps

#: What the first blocks make, so that a change of what conditions the run shows in it.
_OF_BLOCKS = (Probe.RESIDUAL, Probe.STATE)


class StepwiseForward(ChainForward):
    """A forward in which the middle blocks are skipped together; a ``StepwiseCache`` starts it."""

    #: Whether a computed step leaves a snapshot, and for H and E whether of the state, not of the residual.
    keeps = False
    keeps_state = (False, False)
    #: Whether the forms of the blocks' results are to be seen.
    learns = True
    #: The M block that hands out the prediction, which was called last in the last computed step.
    last_role: BlockRole | None = None
    had_encoder = False
    #: What each sample does, and why it computes where the engine says so and not its policy.
    actions: list[Action]
    reasons: list[str | None]
    skip = False
    #: Whether ``decide`` is asked at the first M block.
    measure = False
    begun = False
    #: Whether a cached step had to compute, since nothing that is kept fitted its streams.
    misfit = False
    #: Whether the samples do not lie along the first dimension.
    misbatched = False
    #: Whether a graph made the snapshots: with CUDA graphs it will overwrite them.
    traced = False
    #: Whether the last block returned another form than is known, so that those of the others are to be seen anew.
    stale = False
    entry: Any = None  # H at the first F block
    reading: Reading | None = None
    first_role: BlockRole | None = None
    anchor_hidden: Any = None
    anchor_encoder: Any = None
    out_hidden: Any = None
    out_encoder: Any = None
    snapshot_encoder: Any = None
    predicted_hidden: Any = None
    predicted_encoder: Any = None
    #: What predicts both streams at once, in the place of these two.
    snapshots: Snapshots | None = None
    weights: tuple[list[float], list[float]] = ([], [])

    # -- what blocks call

    def front(self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute an F block, and keep what the decision or the M blocks need of it."""
        if self.watches is Probe.RESIDUAL and self.entry is None:
            entry = role.io.read(args, kwargs)[0]
            self.entry = self.anchored(entry) if self.copies else entry
        output = call(*args, **kwargs)
        self.executed += 1
        if role.position == self.layout.last_front:
            hidden, encoder, _ = role.io.split(output)
            if self.watches is Probe.RESIDUAL:
                same = hidden.shape == self.entry.shape and hidden.dtype == self.entry.dtype
                self.probe = hidden - self.entry if same else hidden.clone()
                self.entry = None
            elif self.watches is Probe.STATE:
                self.probe = hidden.clone() if self.copies else hidden
            if not role.io.reads_encoder:
                self.emitted = encoder
        return output

    def middle(
        self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute an M block, or pass its input on, or hand out the prediction."""
        if self.skip or not self.begun:
            hidden, encoder = role.io.read(args, kwargs)
            if not role.io.reads_encoder:
                encoder = self.emitted
            if not self.begun:
                self.enter(role, hidden, encoder)
            if self.skip:
                self.skipped += 1
                if self.last_role is not None and role.position == self.last_role.position:
                    self.owes = False
                    hidden, encoder = self.out_hidden, self.out_encoder
                elif encoder is None and not role.io.reads_encoder:
                    encoder = copied(self.out_encoder)
                elif self.layout.last_front < 0 and self.first_role is role:
                    hidden, encoder = hidden.clone(), copied(encoder)  # the caller's own: the loop may write into them
                return role.io.build(hidden, encoder, self.forms[role.position])
        output = call(*args, **kwargs)
        self.executed += 1
        if role.position == self.layout.last_middle:
            self.leave(role, output)
        else:
            self.last = role, output
            if self.learns:
                self.forms[role.position] = role.io.split(output)[2]
        return output

    def enter(self, role: BlockRole, hidden: torch.Tensor, encoder: Any) -> None:
        """The first M block: decide, where that is still open; the last moment at which a skip can become a compute."""
        self.begun = True
        self.first_role = role
        if self.measure:
            self.decide()
        if self.skip:
            if self.predict(role, hidden, encoder):
                self.parts, self.owes = self.cache.parts.passing, True
                return
            self.skip = False
            self.misfit = True
        if not self.learns and self.had_encoder == (encoder is not None):
            self.parts = self.cache.parts.leaving
        else:  # compiled code always comes here, and must not read what the first step alone finds otherwise
            self.had_encoder, self.learns = encoder is not None, True
        if self.keeps:
            self.anchor_hidden = self.anchored(hidden) if self.copies else hidden
            self.anchor_encoder = self.anchored(encoder) if self.copies else encoder

    def predict(self, role: BlockRole, hidden: torch.Tensor, encoder: Any) -> bool:
        """Make both streams what they are predicted to be after the middle blocks; False: nothing here fits them."""
        if self.had_encoder != (encoder is not None):
            return False
        if role.join is not None and self.last_role is not None and self.last_role.list_index != role.list_index:
            hidden, encoder = _joined(role, hidden, encoder)
        if self.snapshots is not None:
            after = self.snapshots.over(*self.weights, hidden, encoder)
            if after is not None:
                self.out_hidden, self.out_encoder = after
            return after is not None
        predicted, held = self.predicted_hidden, self.predicted_encoder
        if predicted is None or not predicted.fits(hidden):
            return False
        if held is not None and encoder is not None and not held.fits(encoder):
            return False
        hidden_state, encoder_state = self.keeps_state
        self.out_hidden = predicted.alone() if hidden_state else predicted.over(hidden)
        if held is None:
            self.out_encoder = encoder
        else:
            self.out_encoder = held.alone() if encoder_state or encoder is None else held.over(encoder)
        return True

    def leave(self, role: BlockRole, output: Any) -> None:
        """After the last M block: keep the residual over the middle blocks, or the state after them."""
        hidden, encoder, form = role.io.split(output)
        if self.learns:
            self.traced = torch.compiler.is_compiling()
        elif self.forms[role.position] != form:
            self.stale = True
        self.forms[role.position] = form
        self.last, self.last_role = None, role
        first = self.first_role
        if not self.keeps or first is None:
            return
        before, before_encoder = self.anchor_hidden, self.anchor_encoder
        self.anchor_hidden = self.anchor_encoder = None
        if role.list_index != first.list_index and first.join is not None:
            before, before_encoder = _joined(first, before, before_encoder)
        hidden_state, encoder_state = self.keeps_state
        self.snapshot_hidden = difference(hidden, before, state=hidden_state)
        if encoder is not None:
            if not isinstance(encoder, torch.Tensor):
                role.io.check_object(before_encoder, encoder, output)
            self.snapshot_encoder = difference(encoder, before_encoder, state=encoder_state)
            if self.snapshot_encoder is None and isinstance(encoder, torch.Tensor):
                self.snapshot_hidden = None  # without a prediction of E there is none at all

    def idles(self) -> bool:
        """Whether the blocks are being skipped, and the prediction is still to come."""
        return self.skip and self.owes

    # -- deciding

    @untraced
    def decide(self) -> None:
        """Measure how much the probe has changed, and let the policies say what to do."""
        cache, call = self.cache, self.call
        probe = self.probe if cache.options.extra.downsample_factor == 1 else cache.thinned(self.probe)
        if call.similarity is not None and not cache.apart:
            self._ask(call.similarity, probe)
        else:
            self._measure(probe)
            missing = "not_measured" if probe is None or cache.probe is None else "shape"
            for place, action in enumerate(self.actions):
                if action is Action.MEASURE:
                    self.answer(place, missing)
        if Action.SKIP in self.actions:
            self.settle()

    def _measure(self, probe: Any) -> None:
        """Read the diffs, and what is to be known beside them, by one host read."""
        cache, call = self.cache, self.call
        samples = None
        if not cache.pools and isinstance(probe, torch.Tensor):
            if probe.shape[:1] == (call.batch,):
                samples = call.batch
            elif cache.apart:
                self.misbatched = True
                return
            else:
                cache.say_that_all_decide()
        jump = None if call.jump is None else call.jump(samples if cache.apart else None)
        reading = read_relative_l1(
            cache.probe,
            probe,
            call.group,
            samples=samples,
            important=cache.options.extra.important_condition_threshold,
            health=cache.samples[0].snapshots.health if samples is None else cache.health(samples),
            beside=() if jump is None else tuple(jump) if jump.dim() else (jump,),
            sizes=cache.probe_sizes,
        )
        if reading is not None:
            self.reading, cache.probe_sizes = reading, reading.before
            self.diffs = reading.diffs if cache.apart or samples is None else cache.pooled(reading.diffs)

    def answer(self, place: int, missing: str, *, own: bool = True) -> None:
        """What a sample does, once its diff is known.

        Args:
            place: the sample.
            missing: why it computes where there is no diff.
            own: whether the diff was measured here; another branch's says nothing of the snapshots of this one.
        """
        diffs, sample = self.diffs, self.cache.samples[place]
        if diffs is None:
            self.actions[place], self.reasons[place] = Action.COMPUTE, missing
            return
        accepted = sample.policy.accept(diffs[place])
        if own:
            if self.watches in _OF_BLOCKS and leaps(sample.recent, diffs[place]) and not accepted:
                sample.snapshots.since(self.call.step)
            if math.isfinite(diffs[place]):
                sample.snapshots.unread = 0
            else:
                sample.snapshots.clear()  # a predictor of a higher order would go on using what was not finite
        if self.reading is not None and self.reading.beside and (not own or math.isfinite(diffs[place])):
            limit = self.cache.options.cache.conditioning_diff_threshold
            if exceeds(self.reading.beside[place], limit):
                accepted, self.reasons[place] = False, "conditioning"
                sample.snapshots.since(self.call.step)
        self.actions[place] = Action.SKIP if accepted else Action.COMPUTE

    def _ask(self, similarity: SimilarityOverride, probe: Any) -> None:
        """Let a replaced ``similarity`` decide."""
        cache, accepted = self.cache, False
        if cache.probe is None or probe is None:
            self.reasons[0] = "not_measured"
        else:
            parallel, threshold = self.call.group is not None, cache.samples[0].policy.threshold
            accepted, diff = similarity(cache.probe, probe, threshold=threshold, parallelized=parallel, prefix="Fn")
            self.reasons[0] = "hit" if accepted else "threshold"
            self.diffs = None if diff is None else [diff]
        self.actions[0] = Action.SKIP if accepted else Action.COMPUTE

    def settle(self) -> None:
        """All have answered, and some skip: put the prediction where the blocks will take it from."""
        self.skip = True
        snapshots = self.cache.samples[0].snapshots
        if self.cache.traced or any(self.keeps_state):
            predicted = snapshots.predictions(self.call.times, summed=self.cache.traced)
            self.predicted_hidden, self.predicted_encoder = predicted
        else:
            self.snapshots, self.weights = snapshots, snapshots.coefficients(self.call.times)

    # -- after the forward

    def commit(self, output: Any) -> None:
        """Enter what happened into the policy and what is kept."""
        cache, call, sample = self.cache, self.call, self.cache.samples[0]
        cache.possible += self.executed + self.skipped
        cache.executed += self.executed
        computed = not self.skipped
        self.why = self.reasons[0]
        if computed:
            if self.last is not None:
                self.leave(*self.last)
            self.why = "shape" if self.misfit else self.why
            if call.observer is not None:
                call.observer(self, output)
            if self.snapshot_hidden is not None:
                if self.learns or self.stale or self.last_role is not cache.last_role:
                    cache.learn(self)
                hidden, encoder = self.snapshot_hidden, self.snapshot_encoder
                if self.traced:
                    hidden, encoder = self.own(hidden), None if encoder is None else self.own(encoder)
                cache.grew = sample.snapshots.keep(call.times, hidden, encoder) or cache.grew
            else:
                self.why = self._explain_missing()
        if self.probe is not None and (computed or sample.policy.against == "previous"):
            probe = self.probe if cache.options.extra.downsample_factor == 1 else cache.thinned(self.probe)
            cache.grew = cache.grew or cache.probe is None
            cache.probe = self.own(probe) if self.traced or probe.requires_grad else probe
            cache.probe_sizes = None if self.reading is None else self.reading.sizes
        if cache.easycache is not None:
            cache.easycache.note(call.latent, output, computed=computed)
            cache.grew = True
        diff = None if self.diffs is None else self.diffs[0]
        sample.policy.commit(call.step, computed=computed, diff=diff, why=self.why)

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor to keep beyond this forward: a copy where it lies in a CUDA graph's memory, or may."""
        if self.traced and tensor.is_cuda:
            return tensor.detach().clone()
        return tensor.detach() if tensor.requires_grad else tensor

    def _explain_missing(self) -> str | None:
        """Why a computed step left nothing to predict from."""
        if self.position < 0:
            return "not_called"
        if not self.keeps:
            return self.why
        if self.begun and self.cache.layout.middle:
            self.cache.refused = why = "shape_changes_inside"
            self.cache.free()
            return why
        return self.why or "no_middle"


def _joined(role: BlockRole, hidden: torch.Tensor, encoder: Any) -> tuple[torch.Tensor, Any]:
    """Both streams as the second list of a merged chain reads them."""
    if role.join is None or not isinstance(encoder, torch.Tensor):
        return hidden, encoder
    return role.join(hidden, encoder), None
