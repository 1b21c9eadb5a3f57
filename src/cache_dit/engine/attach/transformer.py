"""A transformer with a cache: what happens around one forward."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.engine.attach import manager
from cache_dit.engine.forward.chain import untraced
from cache_dit.engine.forward.conditioning import Conditions
from cache_dit.engine.forward.run import Run
from cache_dit.engine.forward.samplewise import RowsRun
from cache_dit.engine.forward.shards import call_key
from cache_dit.engine.forward.stepwise import BaseLane, Call, Judge, Pass
from cache_dit.engine.sessions.call_reader import needs_grad, shallow
from cache_dit.engine.sessions.opening import lane_class, layout_now
from cache_dit.engine.sessions.router import Place, Requests
from cache_dit.engine.sessions.session import Request, Session, current_request, thread_request
from cache_dit.errors import ConfigError
from cache_dit.platforms.groups import parallel_group


@dataclass
class Forward:
    """One forward of a transformer under way: the runs of its chains, and what to put back after it."""

    session: Session
    request: Request
    branch: Hashable
    call: Call
    #: The call's conditioning tensors, by their place.
    conditions: dict[str, torch.Tensor]
    passes: list[Pass] = field(default_factory=list)
    previous: list[Run | None] = field(default_factory=list)
    #: The call's arguments, lists and dicts copied, for a model that empties what it was given.
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


class TransformerState(Requests):
    """Everything that a cached transformer's cache consists of. It lives in the instance, nothing lives elsewhere."""

    @property
    def similarity(self) -> Judge | None:
        """What decides instead of a measurement, given both tensors, ``threshold``, ``parallelized`` and ``prefix``.

        It says whether a step may be skipped, and its diff where it tells one. None: the engine measures.
        """
        if self.manager is None and not manager.eager:
            return None
        judge: Judge | None = manager.manager_of(self).judge()
        return judge

    @untraced
    def begin(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, again: Forward | None = None
    ) -> Forward | None:
        """Count the step, decide what can be decided, and arm the blocks. None: this call is none of the cache's.

        Args:
            module: the transformer.
            args, kwargs: what it was called with.
            again: the forward that this one repeats, because its output was wrong.
        """
        given = self.reader.given(args, kwargs)
        if self.rules.bypasses is not None and self.rules.bypasses(given):
            return None
        request = current_request() or thread_request()
        if torch.is_grad_enabled() and needs_grad(module, given):
            self.note_gradients(self.session(request))
            return None
        if again is not None:
            return self._armed_in(again.session, request, args, kwargs, lambda: _repeated(again))
        place = self.enter(request, given)
        return self._armed_in(
            place.session, request, args, kwargs, lambda: self._forward(module, given, request, place)
        )

    def _armed_in(
        self,
        session: Session,
        request: Request,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        make: Callable[[], Forward],
    ) -> Forward | None:
        """A forward of a session that is held, armed; None where the request is not to be cached: nothing is kept."""
        try:
            forward = make()
            if request.enabled:
                return self._armed(forward, args, kwargs)
            self.pool.free(session)
        except BaseException as error:
            if isinstance(error, ConfigError):  # nothing of this request was as it must be
                self.pool.close(request.key, session)
            self.pool.release(session)
            raise
        self.pool.release(session)
        return None

    def _armed(self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Forward:
        """Decide what can be decided of a forward, and let the blocks know."""
        copies = (tuple(shallow(value) for value in args), {name: shallow(value) for name, value in kwargs.items()})
        forward.arguments = copies
        for index in range(len(self.chains)):
            self._start(forward, index, 0)
        for (chain, _), started in zip(self.chains, forward.passes, strict=True):
            forward.previous.append(chain.current.run)
            chain.current.run = started.run
        return forward

    def _forward(self, module: torch.nn.Module, given: Mapping[str, Any], request: Request, place: Place) -> Forward:
        """What lanes must know of a call."""
        session, branch, step, timestep = place
        if session.refreshes(step):
            for lane in session.lanes.values():
                lane.refresh(step)
        self.check_guidance(session, step)
        call = Call(step, branch=branch, times=self.times(session, request, step, timestep))
        call.latent, call.batch = self.reader.latent(given)
        call.group = parallel_group(module)
        call.key = None if call.group is None else call_key(given)
        call.judge = self.similarity
        call.observer = self.observer
        conditions = self.reader.conditions(given)
        seen = session.conditions.setdefault(branch, Conditions())
        if seen.changed(conditions):
            call.compute = "conditioning"
        if session.options[0].cache.watches_conditioning:
            call.jump = functools.partial(seen.jump, conditions)
        if self.rules.computes is not None and self.rules.computes(given):
            call.compute = "required"
        if getattr(module, "is_cache_enabled", False):
            call.compute = "second_cache"
        if self.observer is not None:
            call.compute = "observed"
        return Forward(session, request, branch, call, conditions)

    def _start(self, forward: Forward, index: int, passed: int) -> Pass:
        """Begin a pass over a chain."""
        chain, _ = self.chains[index]
        session, call = forward.session, forward.call
        lane = session.lane(forward.branch, passed, index, lambda: self._open_lane(forward, index, passed))
        apart = lane.options.cache.cfg_diff_compute_separate or call.judge is not None  # it is asked for each branch
        shared = None if apart else session.shared_diffs(chain, call.step)
        started = lane.start(call, shared)
        started.run.next_pass = functools.partial(self._next_pass, forward, index, passed + 1)
        forward.passes.append(started)
        return started

    def _open_lane(self, forward: Forward, index: int, passed: int) -> BaseLane:
        """A lane for a chain, fitted to what else is on its blocks by now: offloading, parallelism."""
        chain, _ = self.chains[index]
        options = forward.session.options[index]
        layout, refused = layout_now(chain, options, last=index == len(self.chains) - 1)
        latent = forward.call.latent
        make = self.maker_of_policies(forward.session, forward.request, options, forward.branch, latent)
        before = forward.session.replaced.pop((forward.branch, passed, index), None)
        if before is not None:
            make = functools.partial(make, records=next((known.records for known in before.policies().values()), []))
        lane: BaseLane = lane_class(options)(chain, layout, options, make)
        if before is not None:
            lane.executed, lane.possible = before.executed, before.possible
        lane.refused = refused
        return lane

    @untraced
    def _next_pass(self, forward: Forward, index: int, passed: int) -> Run:
        """A chain's blocks are called again in one forward: another pass, with a history of its own."""
        run: Run = self._start(forward, index, passed).run
        self.chains[index][0].current.run = run
        return run

    @untraced
    def end(self, forward: Forward, output: Any) -> bool:
        """Take the blocks' part back and enter what happened. False: the output is wrong, run the step again."""
        self._disarm(forward)
        unfilled = [started.lane for started in forward.passes if started.unfilled]
        for lane in unfilled:
            lane.refused = "last_block_not_called"
            lane.free()
        if unfilled:
            return False
        session, call = forward.session, forward.call
        for started in forward.passes:
            started.check_writes()
            started.commit(output)
            if started.why != "conditioning":  # another branch has tensors of its own to look at
                session.share_diffs(started.lane.chain, call.step, started.diffs)
        samples = call.jump is not None and forward.conditions and _measured(forward)
        if samples and not any(started.run.skipped for started in forward.passes):
            rows = _computed_rows(forward)
            session.conditions[forward.branch].computed(forward.conditions, rows, call.batch)
        session.note_bytes()
        self._free_finished(forward)
        self.pool.release(session)
        return True

    @untraced
    def abandon(self, forward: Forward) -> None:
        """The forward failed: what its request had gathered is not to be trusted."""
        self._disarm(forward)
        self.pool.close(forward.request.key, forward.session)
        self.pool.free(forward.session)
        self.pool.release(forward.session)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Around a call that is none of the cache's: blocks are plain in it, also inside a forward under way."""
        before = [chain.current.run for chain, _ in self.chains]
        for chain, _ in self.chains:
            chain.current.run = None
        try:
            yield
        finally:
            for (chain, _), run in zip(self.chains, before, strict=True):
                chain.current.run = run

    def _disarm(self, forward: Forward) -> None:
        for (chain, _), previous in zip(self.chains, forward.previous, strict=True):
            chain.current.run = previous
        for started in forward.passes:
            started.run.close()

    def _free_finished(self, forward: Forward) -> None:
        """A lane that has made its last step needs no history any more."""
        if forward.session.finished:
            forward.session.conditions.pop(forward.branch, None)
            for started in forward.passes:
                started.lane.free()
            self.explain(forward.session)


def _measured(forward: Forward) -> bool:
    """Whether any of its lanes may decide by a measurement."""
    return any(policy.measures for started in forward.passes for policy in started.lane.policies().values())


def _computed_rows(forward: Forward) -> list[int] | None:
    """The samples of the batch that computed in all chains; None: all did."""
    partial = [set(started.run.rows) for started in forward.passes if isinstance(started.run, RowsRun)]
    return sorted(set.intersection(*partial)) if partial else None


def _repeated(forward: Forward) -> Forward:
    """The same forward, with nothing begun."""
    return Forward(forward.session, forward.request, forward.branch, forward.call, forward.conditions)
