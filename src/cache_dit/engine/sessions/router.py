"""Whose call it is: the one place that says to which request, branch and step a call of the transformer belongs."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol

from cache_dit.engine.sessions.call_reader import CallReader
from cache_dit.engine.sessions.clock import Arrival
from cache_dit.engine.sessions.pool import SessionPool
from cache_dit.engine.sessions.request import Request, thread_request
from cache_dit.engine.sessions.session import Session

#: Where a call belongs: its request's session, branch and step, and its timestep where it is known.
CallKey = tuple[Session, Hashable, int, float | None]


class _OfThread(threading.local):
    """The request of a thread's calls outside of all sessions."""

    def __init__(self) -> None:
        self.request = thread_request()


class Host(Protocol):
    """The transformer's state, as far as its router needs it."""

    def opened(self, request: Request, direction: int) -> Session:
        """A new session for a request, the model's timesteps going in a direction."""

    def follow(self, session: Session, request: Request, branch: Hashable) -> None:
        """Let a session go on with its request's options of now, where they are others."""

    def explain(self, session: Session) -> None:
        """Say of a request that has ended what is to be said."""

    def close(self, key: Hashable) -> None:
        """End a request."""

    @property
    def max_sessions(self) -> int:
        """How many requests may be open."""


class Router:
    """The open requests on one transformer, and the answer to which of them a call belongs.

    Args:
        reader: reads the transformer's calls.
        separate_cfg: whether unnamed calls are the branches of classifier-free guidance in turn.
    """

    def __init__(self, reader: CallReader, *, separate_cfg: bool) -> None:
        self.reader = reader
        self.separate_cfg = separate_cfg
        #: The name that ``cache_context`` gave to the calls of this thread or task.
        self.branch: contextvars.ContextVar[Hashable] = contextvars.ContextVar("cache_dit_branch", default=None)
        #: The request of this thread's calls outside of all sessions.
        self.own = _OfThread()
        self.pool = SessionPool()
        self._direction = 0
        self._single_steps = 0  # requests of one step in a row

    def locate(self, request: Request, given: Mapping[str, Any], host: Host) -> CallKey:
        """Where a call belongs; its session is held.

        Args:
            request: the request of this thread or task.
            given: the call's arguments by name.
            host: the transformer's state.
        """
        found = self.pool.sessions.get(request.key)
        session = self.session(request, host) if found is None or found.handle is not request else found
        revision = request.overrides.revision
        if revision is not session.revision and session.clock.step < 0:
            host.follow(session, request, self.branch.get())
        waits = session.reads_timestep
        timestep = self.reader.timestep(given, waits=self._depends_on_timestep(session) if waits is None else waits)
        branch = self.branch.get()
        if branch is None or not session.named or self.reader.branching:
            branch = self._branch_of(session, given, timestep)
        arrival = session.clock.arrival(branch, timestep, session.num_inference_steps if session.counts_down else None)
        if request.scheduler is not None and self._goes_back(session, request.scheduler) and timestep is None:
            arrival = Arrival.REQUEST
        elif arrival is Arrival.REQUEST and not session.counts_down and session.clock.at_unmoved_start(timestep):
            arrival = Arrival.STEP  # where frames are denoised in turn, others wait at their first timestep
        if arrival is Arrival.REQUEST:
            session = self._next_request(session, request, host)
            branch = self._branch_of(session, given, timestep)
        begins_step = arrival is not Arrival.BRANCH
        if begins_step and revision is not session.revision:
            host.follow(session, request, branch)
        self.pool.hold(request.key, session)
        return session, branch, session.clock.enter(branch, timestep, begins_step=begins_step), timestep

    def session(self, request: Request, host: Host) -> Session:
        """The session of a request, opened where it is missing."""
        session = self.pool.sessions.get(request.key)
        if session is None:
            make = functools.partial(host.opened, request, self._direction)
            session, ended = self.pool.open(request.key, make, limit=host.max_sessions, thread=request.thread)
            for one in ended:
                host.explain(one)
        if session.handle is not request:
            session.handle = request
            request.seen_on(host)
        return session

    def _next_request(self, session: Session, request: Request, host: Host) -> Session:
        """The session of the run that begins, once the one before has ended."""
        self._learn_direction(session)
        if (closed := self.pool.close(request.key, session)) is not None:
            host.explain(closed)
        session = self.session(request, host)
        host.follow(session, request, self.branch.get())
        return session

    @contextlib.contextmanager
    def branch_named(self, name: Hashable) -> Iterator[None]:
        """Calls inside belong to the branch ``name``."""
        token = self.branch.set(name)
        try:
            yield
        finally:
            self.branch.reset(token)

    def _branch_of(self, session: Session, given: Mapping[str, Any], timestep: float | None) -> Hashable:
        """What tells this call from the others of its step."""
        variant = self.reader.variant(given) if self.reader.branching else ()
        name = self.branch.get()
        if name is not None:
            if not session.named:
                session.named = True
                session.settled()
        elif not session.named and not variant:
            name = self._branch_by_turns(session, timestep)
        name = "default" if name is None else name
        return (name, *variant) if variant else name

    def _branch_by_turns(self, session: Session, timestep: float | None) -> str | None:
        """The branch of an unnamed call where conditional and unconditional calls take turns, else None.

        They do where the record or the user says so, and where a pipeline calls its transformer again at the first
        timestep: no scheduler does that.
        """
        cache = session.options[0].cache
        cfg_first = bool(cache.cfg_compute_first)
        unsaid = cache.enable_separate_cfg is None and not session.counts_down
        separate = self._separate_cfg(session)
        if not session.turns and not separate and unsaid and session.clock.at_unmoved_start(timestep):
            session.take_turns(cfg_first=cfg_first)
        if not (separate or session.turns):
            return None
        return session.clock.parity_branch(timestep, cfg_first=cfg_first)

    def _depends_on_timestep(self, session: Session) -> bool:
        """Whether a timestep is worth waiting for: not where nothing else is, nor where names tell steps apart."""
        if "timestep" in session.coordinates:
            waits = True
        elif session.counts_down:
            waits = session.waits or session.num_inference_steps is None
        elif self.branch.get() is not None or session.named:
            waits = False
        else:
            waits = session.waits or self._separate_cfg(session) or session.turns or session.clock.step < 1
        if session.clock.step > 0:
            session.reads_timestep = waits
        return waits

    def _separate_cfg(self, session: Session) -> bool:
        """Whether unnamed calls take turns in this request."""
        asked = session.options[0].cache.enable_separate_cfg
        return self.separate_cfg if asked is None else asked

    def _goes_back(self, session: Session, scheduler: Any) -> bool:
        """Whether the scheduler is at an earlier step than at the call before: another loop in one pipeline's call."""
        before, session.index = session.index, getattr(scheduler, "step_index", None) or 0
        return session.index < before

    def _learn_direction(self, ended: Session) -> None:
        """Keep the direction of an ended request's timesteps; forget it when every step begins a request."""
        self._single_steps = self._single_steps + 1 if ended.clock.step == 0 else 0
        if ended.clock.step > 1:  # two moves: one alone may lead from a single call, say a warm-up, to a run
            self._direction = ended.clock.direction
        elif self._single_steps == 3:
            self._direction = 0
