"""One request: its steps and branches, and for each branch and chain a policy and a history.

A request is one run of a denoising loop. A pipeline call is a request of its own; around a bare transformer,
``session`` names the request that the calls inside belong to.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.caching.chain import BlockRole, Chain, ChainRun, take_snapshot, untraced
from cache_dit.caching.clock import StepClock
from cache_dit.caching.history import History
from cache_dit.caching.policy import Action, DBCachePolicy
from cache_dit.caching.predictors import Predictor, make_predictor
from cache_dit.caching.shards import relative_l1
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.errors import SessionError


@dataclass(frozen=True)
class ChainOptions:
    """What the user asked for one chain."""

    cache: BasicCacheConfig
    calibrator: CalibratorConfig | None = None

    @property
    def keeps_state(self) -> bool:
        """Whether the state after the middle blocks is predicted, not the residual over them."""
        calibrator = self.calibrator
        return bool(calibrator and calibrator.enable_calibrator and calibrator.calibrator_cache_type == "hidden_states")

    def predictors(self) -> tuple[Predictor, Predictor]:
        """The predictors of H and of E."""
        return make_predictor(self.calibrator), make_predictor(self.calibrator, encoder=True)


class Lane:
    """One branch (and pass) of one chain in one request: when to compute, and what a skipped step is filled with.

    Args:
        chain: the chain.
        options: its configuration.
        num_inference_steps: the request's number of steps where it is known.
    """

    def __init__(self, chain: Chain, options: ChainOptions, num_inference_steps: int | None = None) -> None:
        self.chain = chain
        self.options = options
        self.policy = DBCachePolicy(options.cache, num_inference_steps=num_inference_steps)
        self.hidden_predictor, self.encoder_predictor = options.predictors()
        self.hidden = History(self.hidden_predictor.history)
        self.encoder = History(self.encoder_predictor.history)
        self.probe: torch.Tensor | None = None
        #: The sums of the snapshots, on their device: not finite where a snapshot is not.
        self.health: list[torch.Tensor] = []
        self.last_role: BlockRole | None = None
        self.had_encoder = False
        self.forms = [role.io.form for role in chain.roles]
        self.executed = 0
        self.possible = 0
        self.call_key: Hashable = None
        #: Why this lane computes everything from now on, once something showed that it cannot be cached.
        self.refused: str | None = None

    def start(
        self,
        step: int,
        *,
        compute: str | None = None,
        shared_diff: float | None = None,
        group: Any = None,
        call_key: Hashable = None,
    ) -> LaneRun:
        """Decide what can be decided before the forward.

        Args:
            step: the step's number in its request.
            compute: why this step must compute whatever the policy says, or None.
            shared_diff: the diff that another branch measured in this step, to decide by instead of measuring.
            group: the process group that decides together, or None.
            call_key: what the call looks like on all ranks of the group: another one than at the last computed step
                is a miss.
        """
        if call_key != self.call_key and len(self.hidden):
            compute = compute or "shape"
        self.call_key = call_key
        compute = compute or self.refused or ("no_middle" if self.chain.middle == 0 else None)
        action = Action.COMPUTE if compute else self.policy.decide(step)
        diff = None
        if action is Action.MEASURE and shared_diff is not None:
            diff = shared_diff
            action = Action.SKIP if self.policy.accept(shared_diff) else Action.COMPUTE
        if action is not Action.COMPUTE and len(self.hidden) == 0:
            action, compute = Action.COMPUTE, "no_snapshot"
        run = ChainRun(
            self.chain,
            skip=action is Action.SKIP,
            measure=action is Action.MEASURE,
            keeps=self.policy.caches and self.refused is None,
            last_role=self.last_role,
            had_encoder=self.had_encoder,
            forms=self.forms,
        )
        if run.skip:
            self.predict(run, step)
        return LaneRun(self, run, step, diff=diff, why=compute, group=group)

    def predict(self, run: ChainRun, step: int) -> None:
        """Put the prediction for ``step`` where the blocks will take it from."""
        run.predicted_hidden = _predicted(self.hidden_predictor, self.hidden, step)
        run.predicted_encoder = _predicted(self.encoder_predictor, self.encoder, step)

    def keep(self, step: int, hidden: torch.Tensor, encoder: torch.Tensor | None) -> None:
        """Append a step's snapshots to the history."""
        self.hidden.append(step, hidden)
        if encoder is None:
            self.encoder.clear()
        else:
            self.encoder.append(step, encoder)
        if self.policy.measures:
            sums = [snapshot.sum(dtype=torch.float32) for snapshot in (hidden, encoder) if snapshot is not None]
            self.health.append(sums[0] if len(sums) == 1 else sums[0] + sums[1].to(sums[0].device))
            del self.health[: -len(self.hidden)]

    def forget(self) -> None:
        """Drop the history."""
        self.hidden.clear()
        self.encoder.clear()
        self.health.clear()

    def free(self) -> None:
        """Drop all tensors; what is known of the steps stays for ``summary``."""
        self.forget()
        self.probe = None

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        return self.hidden.nbytes + self.encoder.nbytes + (0 if self.probe is None else self.probe.nbytes)


class LaneRun:
    """A lane in one pass of one forward: the bookkeeping around a ``ChainRun``."""

    def __init__(
        self, lane: Lane, run: ChainRun, step: int, *, diff: float | None, why: str | None, group: Any = None
    ) -> None:
        self.lane = lane
        self.run = run
        #: The process group that decides together, or None.
        self.group = group
        self.step = step
        self.diff = diff
        self.why = why
        run.decide = self.decide

    @untraced
    def decide(self, run: ChainRun) -> None:
        """Measure how much the first blocks changed since the last computed step, and skip if the policy accepts it."""
        lane = self.lane
        health = torch.stack(lane.health).sum() if lane.health else None
        self.diff = relative_l1(lane.probe, run.probe, self.group, health=health)
        if self.diff is None:
            self.why = "not_measured" if run.probe is None or lane.probe is None else "shape"
        elif lane.policy.accept(self.diff):
            run.skip = True
            lane.predict(run, self.step)
        elif not math.isfinite(self.diff):
            lane.forget()  # a predictor of a higher order would go on using the step that was not finite

    def check_writes(self) -> None:
        """After a chain's first computed step: do its blocks write into their input?"""
        chain, run = self.lane.chain, self.run
        if run.originals and chain.writes_input is None:
            chain.writes_input = any(not torch.equal(stream, copy) for stream, copy in run.originals)
        run.originals.clear()

    @property
    def unfilled(self) -> bool:
        """Whether blocks were skipped and no block handed out the prediction: the output is then wrong."""
        return self.run.skipped > 0 and not self.run.filled

    def commit(self) -> None:
        """Enter what happened into the policy and the history."""
        lane, run = self.lane, self.run
        lane.possible += run.executed + run.skipped
        lane.executed += run.executed
        if run.skipped:
            lane.policy.commit(self.step, computed=False, diff=self.diff)
            return
        if run.snapshot_hidden is None:
            take_snapshot(run)
        why = "shape" if run.misfit else self.why
        if run.snapshot_hidden is None:
            why = self._explain_missing()
        else:
            lane.last_role, lane.had_encoder = run.last_role, run.had_encoder
            encoder = None if run.snapshot_encoder is None else self._kept(run.snapshot_encoder)
            lane.keep(self.step, self._kept(run.snapshot_hidden), encoder)
            if run.probe is not None and lane.policy.measures:
                lane.probe = self._kept(run.probe)
        lane.policy.commit(self.step, computed=True, diff=self.diff, why=why)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor to keep beyond this forward: a copy where it lies in a CUDA graph's memory, or may."""
        return tensor.detach().clone() if self.run.traced and tensor.is_cuda else tensor.detach()

    def _explain_missing(self) -> str | None:
        """Why a computed step left nothing to predict from."""
        if self.run.position < 0:
            return "not_called"
        if not self.run.keeps:
            return self.why
        if self.run.begun and self.lane.chain.middle:
            self.lane.refused = "shape_changes_inside"
            self.lane.free()
            return self.lane.refused
        return self.why or "no_middle"


def _predicted(predictor: Predictor, history: History, step: int) -> torch.Tensor | None:
    if len(history) == 0:
        return None
    return history.weighted_sum(predictor.coefficients(history.times, step))


class Session:
    """All that is kept of one request on one transformer.

    Args:
        direction: in which direction the model's timesteps go (see ``StepClock``).
        num_inference_steps: the number of steps where it is known.
        counts_down: whether reaching that number ends the request; see ``Request``.
    """

    def __init__(self, *, direction: int = 0, num_inference_steps: int | None = None, counts_down: bool = True) -> None:
        self.clock = StepClock(direction)
        self.counts_down = counts_down
        #: Whether ``cache_context`` has named a call, and whether unnamed ones turned out to take turns.
        self.named = False
        self.turns = False
        self.num_inference_steps = num_inference_steps
        self.lanes: dict[tuple[Hashable, int, int], Lane] = {}  # (branch, pass, chain) -> lane
        self.peak_bytes = 0
        self.note: str | None = None
        self._diffs: dict[Chain, float] = {}  # the diff measured first in this step
        self._diffs_step = -1

    def lane(self, branch: Hashable, index: int, chain: int, make: Callable[[], Lane]) -> Lane:
        """The lane of a branch, pass and chain, made where it is missing."""
        key = (branch, index, chain)
        if key not in self.lanes:
            self.lanes[key] = make()
        return self.lanes[key]

    def take_turns(self, *, cfg_first: bool) -> None:
        """The calls turn out to be the branches of guidance in turn: the first one gets its name."""
        first = self.clock.take_turns(cfg_first=cfg_first)
        self.turns = True
        self.lanes = {(first, passed, chain): lane for (_, passed, chain), lane in self.lanes.items()}

    def shared_diff(self, chain: Chain, step: int) -> float | None:
        """The diff that the first branch of this step measured on a chain."""
        return self._diffs.get(chain) if self._diffs_step == step else None

    def share_diff(self, chain: Chain, step: int, diff: float | None) -> None:
        """Keep the diff that the first branch of a step measured, for the others."""
        if self._diffs_step != step:
            self._diffs_step = step
            self._diffs.clear()
        if diff is not None:
            self._diffs.setdefault(chain, diff)

    def note_bytes(self) -> None:
        """Bring the peak of live bytes up to date."""
        self.peak_bytes = max(self.peak_bytes, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors now."""
        return sum(lane.nbytes for lane in self.lanes.values())

    def free(self) -> None:
        """Drop all tensors; what is known of the steps stays for ``summary``."""
        for lane in self.lanes.values():
            lane.free()


@dataclass(frozen=True)
class Request:
    """Which request the calls in this context belong to.

    Args:
        key: what tells it from others: a name, or an object of a pipeline call.
        num_inference_steps: the number of steps where it is known.
        counts_down: whether reaching that number ends the request (a bare transformer) or not (a pipeline, whose
            scheduler may call the model more often).
        opened: what the request was seen on: transformers' states, each with a ``close(key)``.
    """

    key: Hashable
    num_inference_steps: int | None = None
    counts_down: bool = True
    opened: list[Any] = field(default_factory=list, compare=False, repr=False)

    def close(self) -> None:
        """End the request on all transformers that it was seen on, and free what they kept of it."""
        for state in self.opened:
            state.close(self.key)


_request: contextvars.ContextVar[Request | None] = contextvars.ContextVar("cache_dit_request", default=None)


def current_request() -> Request | None:
    """The request of this context (thread or task), or None."""
    return _request.get()


@contextlib.contextmanager
def entered(request: Request) -> Iterator[Request]:
    """Let the calls inside belong to ``request``."""
    token = _request.set(request)
    try:
        yield request
    finally:
        _request.reset(token)


@contextlib.contextmanager
def session(name: str, *, num_inference_steps: int | None = None) -> Iterator[Request]:
    """Let the calls of bare transformers inside belong to the request ``name``.

    Two requests may take turns on one transformer, each inside its own ``session``, in one thread or in several:
    each gives what it gives alone. A session may be left and entered again with the same name; it ends when its
    steps are done, when its timestep jumps back, by ``refresh_context``, or by ``close()`` of what this gives: a
    request that is given up should be closed, since what it keeps is otherwise freed only when many more are open. A
    pipeline call is a request of its own and needs none.

    Args:
        name: tells the request from others; any hashable value, not None.
        num_inference_steps: the number of its steps, where it differs from the configuration's.

    Raises:
        SessionError: if ``name`` is None or not hashable.
    """
    try:
        hash(name)
    except TypeError as error:
        raise SessionError(f"a session's name must be hashable, got {type(name).__name__}: pass a string") from error
    if name is None:
        raise SessionError("a session needs a name: pass a string, such as the request's id")
    with entered(Request(("session", name), num_inference_steps)) as request:
        yield request
