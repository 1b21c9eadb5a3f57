"""A transformer with a cache: its chains, its open requests, and what happens around one forward."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.caching.chain import Chain, ChainRun, IdleRole, untraced
from cache_dit.caching.offload import relied_on_when_skipped, widen_back
from cache_dit.caching.pattern import CallRules, argument_names
from cache_dit.caching.session import ChainOptions, Lane, LaneRun, Request, Session, current_request
from cache_dit.caching.shards import call_key, parallel_group, settle
from cache_dit.caching.stats import no_hit_reason

logger = logging.getLogger(__name__)

#: How many requests a transformer keeps open at most; the longest unused one is closed beyond it.
MAX_OPEN_REQUESTS = 64

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")


@dataclass
class Forward:
    """One forward of a transformer under way: the runs of its chains, and what to put back after it."""

    session: Session
    branch: Hashable
    step: int
    #: Why all chains must compute, or None.
    compute: str | None = None
    #: The process group that decides together, and what the call looks like on all of its ranks; None without one.
    group: Any = None
    key: Hashable = None
    runs: list[LaneRun] = field(default_factory=list)
    previous: list[ChainRun | None] = field(default_factory=list)
    #: The call's arguments, lists and dicts copied, for a model that empties what it was given.
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    @property
    def place(self) -> tuple[Session, Hashable, int]:
        """The session, branch and step that this forward belongs to."""
        return self.session, self.branch, self.step


class TransformerState:
    """Everything that a cached transformer's cache consists of. It lives in the instance, nothing lives elsewhere.

    Args:
        chains: the chains of its blocks, with the options of each.
        module: the transformer.
        separate_cfg: whether unnamed calls are the branches of classifier-free guidance in turn.
        rules: what its record says of its calls.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        chains: list[tuple[Chain, ChainOptions]],
        *,
        separate_cfg: bool = False,
        rules: CallRules | None = None,
    ) -> None:
        self.chains = chains
        #: What the chains were built from, to build them anew with other options.
        self.target: Any = None
        #: Modules between blocks that do nothing while these are skipped, with their roles.
        self.idle: list[tuple[torch.nn.Module, IdleRole]] = []
        self.separate_cfg = separate_cfg
        self.rules = rules or CallRules()
        self.sessions: OrderedDict[Hashable, Session] = OrderedDict()
        self.latest: Session | None = None
        self.direction = 0
        self._single_steps = 0  # requests of one step in a row
        #: The name that ``cache_context`` gave to the calls of this thread or task.
        self.branch: contextvars.ContextVar[Hashable] = contextvars.ContextVar("cache_dit_branch", default=None)
        #: The module whose calls are counted: the transformer, or the compiled wrapper around it.
        self.owner: Callable[[], Any] = lambda: None
        self._lock = threading.Lock()
        self._names = argument_names(type(module).forward)
        self._timestep = next((name for name in _TIMESTEP_NAMES if name in self._names), None)

    @property
    def config(self) -> Any:
        """The cache configuration of the first chain: what concerns the transformer as a whole is read from it."""
        return self.chains[0][1].cache

    # -- around one forward

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
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if self.rules.bypasses is not None and self.rules.bypasses(given):
            return None
        compute = "required" if self.rules.computes is not None and self.rules.computes(given) else None
        if getattr(module, "is_cache_enabled", False):
            compute = "second_cache"
        request = current_request() or Request(("thread", threading.current_thread()))
        if torch.is_grad_enabled() and _needs_grad(module, given):
            self._note_gradients(self.session(request))
            return None
        session, branch, step = self._enter(request, given) if again is None else again.place
        arguments = (tuple(_copied(value) for value in args), {name: _copied(value) for name, value in kwargs.items()})
        forward = Forward(session, branch, step, compute=compute, arguments=arguments)
        forward.group = parallel_group(module)
        forward.key = None if forward.group is None else call_key(given)
        for index in range(len(self.chains)):
            self._start(forward, index, 0)
        for (chain, _), started in zip(self.chains, forward.runs, strict=True):
            forward.previous.append(chain.current.run)
            chain.current.run = started.run
        return forward

    def _start(self, forward: Forward, index: int, passed: int) -> LaneRun:
        """Begin a pass over a chain."""
        chain, options = self.chains[index]
        session, step = forward.session, forward.step
        lane = session.lane(forward.branch, passed, index, lambda: self._open_lane(session, index))
        shared = None if options.cache.cfg_diff_compute_separate else session.shared_diff(chain, step)
        started = lane.start(
            step, compute=forward.compute, shared_diff=shared, group=forward.group, call_key=forward.key
        )
        started.run.next_pass = functools.partial(self._next_pass, forward, index, passed + 1)
        forward.runs.append(started)
        return started

    def _open_lane(self, session: Session, index: int) -> Lane:
        """A lane for a chain, fitted to what else is on its blocks by now: offloading, parallelism."""
        chain, options = self.chains[index]
        refused = settle(chain)
        widen_back(chain)
        if relied_on_when_skipped(chain, last=index == len(self.chains) - 1):
            refused = refused or "prefetched"
        lane = Lane(chain, options, session.num_inference_steps)
        lane.refused = refused
        return lane

    @untraced
    def _next_pass(self, forward: Forward, index: int, passed: int) -> ChainRun:
        """A chain's blocks are called again in one forward: another pass, with a history of its own."""
        run = self._start(forward, index, passed).run
        self.chains[index][0].current.run = run
        return run

    @untraced
    def end(self, forward: Forward) -> bool:
        """Take the blocks' part back and enter what happened. False: the output is wrong, run the step again."""
        self._disarm(forward)
        unfilled = [started.lane for started in forward.runs if started.unfilled]
        for lane in unfilled:
            lane.refused = "last_block_not_called"
            lane.free()
        if unfilled:
            return False
        for started in forward.runs:
            started.check_writes()
            started.commit()
            forward.session.share_diff(started.lane.chain, forward.step, started.diff)
        forward.session.note_bytes()
        self._free_finished(forward)
        return True

    @untraced
    def abandon(self, forward: Forward) -> None:
        """The forward failed: what its request had gathered is not to be trusted."""
        self._disarm(forward)
        forward.session.free()
        with self._lock:
            for key in [key for key, session in self.sessions.items() if session is forward.session]:
                del self.sessions[key]

    def _disarm(self, forward: Forward) -> None:
        for (chain, _), previous in zip(self.chains, forward.previous, strict=True):
            chain.current.run = previous
        for started in forward.runs:  # their cycles would keep tensors until the garbage collector comes by
            started.run.decide = started.run.next_pass = None

    def _free_finished(self, forward: Forward) -> None:
        """A lane that has made its last step needs no history any more."""
        steps = forward.session.num_inference_steps
        if forward.session.counts_down and steps is not None and forward.step == steps - 1:
            for started in forward.runs:
                started.lane.free()

    # -- requests

    def session(self, request: Request) -> Session:
        """The session of a request, made where it is missing."""
        if self not in request.opened:
            request.opened.append(self)
        with self._lock:
            if request.key in self.sessions:
                self.sessions.move_to_end(request.key)
                return self.sessions[request.key]
            steps = request.num_inference_steps or self.config.num_inference_steps
            self._close_dead_threads()
            opened = Session(direction=self.direction, num_inference_steps=steps, counts_down=request.counts_down)
            self.sessions[request.key] = self.latest = opened
            if len(self.sessions) > MAX_OPEN_REQUESTS:
                key, oldest = self.sessions.popitem(last=False)
                oldest.free()
                logger.warning(
                    "more than %d requests are open: closed the longest unused one, %r", MAX_OPEN_REQUESTS, key
                )
            return opened

    def _close_dead_threads(self) -> None:
        """A thread that has ended will not go on with its request."""
        for key in list(self.sessions):
            if isinstance(key, tuple) and key[0] == "thread" and not key[1].is_alive():
                closed = self.sessions.pop(key)
                closed.free()
                self.explain(closed)

    def close(self, key: Hashable) -> None:
        """End a request: its tensors are freed, its record stays for ``summary`` while it is the latest."""
        with self._lock:
            closed = self.sessions.pop(key, None)
        if closed is not None:
            closed.free()
            self.explain(closed)

    def close_all(self) -> None:
        """End all requests."""
        for key in list(self.sessions):
            self.close(key)

    def _enter(self, request: Request, given: Mapping[str, Any]) -> tuple[Session, Hashable, int]:
        """The session, branch and step number of a call."""
        session = self.session(request)
        timestep = self._read_timestep(session, given)
        branch = self._branch_of(session, given, timestep)
        limit = session.num_inference_steps if session.counts_down else None
        if session.clock.begins_request(branch, timestep, limit):
            self._learn_direction(session)
            self.close(request.key)
            session = self.session(request)
            branch = self._branch_of(session, given, timestep)
        return session, branch, session.clock.enter(branch, timestep)

    def _learn_direction(self, ended: Session) -> None:
        """Keep the direction of an ended request's timesteps; forget it when every step begins a request."""
        self._single_steps = self._single_steps + 1 if ended.clock.step == 0 else 0
        if ended.clock.step > 1:  # two moves: one alone may lead from a single call, say a warm-up, to a run
            self.direction = ended.clock.direction
        elif self._single_steps == 3:
            self.direction = 0

    def _branch_of(self, session: Session, given: Mapping[str, Any], timestep: float | None) -> Hashable:
        """What tells this call from the others of its step."""
        variant = tuple(repr(given[name]) for name in self.rules.branch_arguments if given.get(name) is not None)
        name = self.branch.get()
        if name is not None:
            session.named = True
        elif not session.named and not variant:
            name = self._branch_by_turns(session, timestep)
        name = "default" if name is None else name
        return (name, *variant) if variant else name

    def _branch_by_turns(self, session: Session, timestep: float | None) -> str | None:
        """The branch of an unnamed call where conditional and unconditional calls take turns, else None.

        They do where the record or the user says so, and where a pipeline calls its transformer again at the first
        timestep: no scheduler does that.
        """
        cfg_first = bool(self.config.cfg_compute_first)
        unsaid = self.config.enable_separate_cfg is None and not session.counts_down
        if not session.turns and not self.separate_cfg and unsaid and session.clock.at_unmoved_start(timestep):
            session.take_turns(cfg_first=cfg_first)
        if not (self.separate_cfg or session.turns):
            return None
        return session.clock.parity_branch(timestep, cfg_first=cfg_first)

    def _read_timestep(self, session: Session, given: Mapping[str, Any]) -> float | None:
        """The call's timestep, or None where it is unknown or reading it back from a device would be for nothing."""
        value = given.get(self._timestep) if self._timestep else None
        if not isinstance(value, torch.Tensor):
            return float(value) if isinstance(value, (int, float)) else None
        if value.numel() == 0 or value.is_meta:
            return None
        if value.device.type != "cpu" and not self._depends_on_timestep(session):
            return None
        return float(value.max())

    def _depends_on_timestep(self, session: Session) -> bool:
        """Whether a timestep is worth waiting for: not under a static plan whose steps can be told apart without it."""
        if not self.config.is_static:
            return True
        if session.counts_down:
            return session.num_inference_steps is None
        unnamed = self.branch.get() is None and not session.named
        return unnamed and (self.separate_cfg or session.turns or session.clock.step < 1)

    @contextlib.contextmanager
    def branch_named(self, name: Hashable) -> Iterator[None]:
        """Calls inside belong to the branch ``name``."""
        token = self.branch.set(name)
        try:
            yield
        finally:
            self.branch.reset(token)

    def _note_gradients(self, session: Session) -> None:
        if session.note is None:
            session.note = "gradients"
            self.explain(session)

    def explain(self, session: Session) -> None:
        """One line of log that says why, when a request had the cache on and nothing was skipped."""
        reason = no_hit_reason(session, session.lanes.values())
        if reason is not None:
            logger.warning("cache_dit: the cache was on and no step was cached: %s", reason)


def _needs_grad(module: torch.nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a backward could be asked for: then nothing may be skipped or kept."""
    return any(tensor.requires_grad for tensor in (*_tensors(given), *module.parameters()))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _copied(value: Any) -> Any:
    return list(value) if type(value) is list else dict(value) if type(value) is dict else value
