"""A transformer's requests: what is asked of its cache, and to which request, branch and step a call belongs."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.attach.wrappers import observed_module as dressed_observed
from cache_dit.engine.forward.chain import Chain, IdleRole
from cache_dit.engine.forward.observe import ObserverRole, observed_module, observes
from cache_dit.engine.forward.stepwise import Pass
from cache_dit.engine.options import ChainOptions, checked
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.scope import PlanScope, branch_name
from cache_dit.engine.policies.plan import departure
from cache_dit.engine.sessions.call_reader import CallReader, sigma_of
from cache_dit.engine.sessions.model_facts import latent_facts, schedule_facts, scheduler_facts, transformer_facts
from cache_dit.engine.sessions.opening import lane_class, layout_now, policy_maker
from cache_dit.engine.sessions.pool import SessionPool
from cache_dit.engine.sessions.reasons import no_hit_reason
from cache_dit.engine.sessions.session import Request, Session
from cache_dit.engine.subclass import put_on
from cache_dit.errors import CacheDitError

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a call belongs: its request's session, branch and step, and its timestep where it is known."""

    session: Session
    branch: Hashable
    step: int
    timestep: float | None


class Requests:
    """What is asked of a transformer's cache, and the requests that are open on it: where each call belongs.

    Args:
        module: the transformer.
        chains: the chains of its blocks, with the options of each.
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
        #: Modules between blocks that do nothing while these are skipped, with their roles.
        self.idle: list[tuple[torch.nn.Module, IdleRole]] = []
        #: Modules whose input decisions are made by, with their roles.
        self.observed: list[tuple[torch.nn.Module, ObserverRole]] = []
        self.separate_cfg = separate_cfg
        self.rules = rules or CallRules()
        self.pool = SessionPool()
        self.direction = 0
        #: Told of every computed step of every lane while it is set: nothing is skipped then.
        self.observer: Callable[[Pass, Any], None] | None = None
        #: What servers know as ``_context_manager``, once somebody has asked for it: see ``attach.manager``.
        self.manager: Any = None
        self._single_steps = 0  # requests of one step in a row
        #: The name that ``cache_context`` gave to the calls of this thread or task.
        self.branch: contextvars.ContextVar[Hashable] = contextvars.ContextVar("cache_dit_branch", default=None)
        #: The module whose calls are counted: the transformer, or the compiled wrapper around it.
        self.owner: Callable[[], Any] = lambda: None
        self.model_class = type(module).__name__
        self._module = weakref.ref(module)
        self.reader = CallReader(type(module), self.rules)

    @property
    def config(self) -> Any:
        """The cache configuration of the first chain: what concerns the transformer as a whole is read from it."""
        return self.chains[0][1].cache

    @property
    def sessions(self) -> Mapping[Hashable, Session]:
        """The open requests by their keys, the longest unused first."""
        return self.pool.sessions

    @property
    def latest(self) -> Session | None:
        """The request that was opened last."""
        return self.pool.latest

    @property
    def options(self) -> list[ChainOptions]:
        """The configuration of each chain."""
        return [options for _, options in self.chains]

    def check(self, options: Sequence[ChainOptions], scheduler: Any = None) -> list[ChainOptions]:
        """The options of all chains, once it is clear that they can work here."""
        for one, (chain, _) in zip(options, self.chains, strict=True):
            checked(one, chain, self.model_class, functools.partial(self.run_scope, scheduler))
            if observes(one):
                observed_module(chain)
        return list(options)

    def run_scope(self, scheduler: Any, plan: Plan) -> PlanScope:
        """What a plan can know of any run here: the transformer, and the scheduler where there is one."""
        facts = {} if scheduler is None else scheduler_facts(scheduler)
        return PlanScope(model_class=self.model_class, **transformer_facts(plan, self._module()), **facts)

    def configure(self, options: Sequence[ChainOptions], scheduler: Any = None) -> None:
        """Take other options for the requests to come, and end those that are open.

        Args:
            options: of each chain.
            scheduler: that of the requests to come, where it is known.

        Raises:
            ConfigError: if they cannot work here; nothing has changed then.
        """
        accepted = self.check(options, scheduler)
        self.close_all()
        self.chains = [(chain, one) for (chain, _), one in zip(self.chains, accepted, strict=True)]
        asked = self.config.enable_separate_cfg
        self.separate_cfg = self.separate_cfg if asked is None else asked

    def observers(self, asked: Sequence[ChainOptions] | None = None) -> list[tuple[torch.nn.Module, ObserverRole]]:
        """The modules that decisions look at, with options of a request or as they are, and those that there were."""
        known = {id(module) for module, _ in self.observed}
        for (chain, _), options in zip(self.chains, self.options if asked is None else asked, strict=True):
            if observes(options) and id(module := observed_module(chain)) not in known:
                self.observed.append((module, ObserverRole(chain, module)))
        return self.observed

    @property
    def lane_classes(self) -> list[type]:
        """The kind of lane of each chain."""
        return [lane_class(options) for options in self.options]

    def session(self, request: Request) -> Session:
        """The session of a request, made where it is missing."""
        request.seen_on(self)
        make = functools.partial(self._opened, request)
        session, ended = self.pool.get(request.key, make, limit=self.config.max_sessions, thread=request.thread)
        for one in ended:
            self.explain(one)
        return session

    def _opened(self, request: Request) -> Session:
        """A new session for a request."""
        return Session(
            self.options,
            direction=self.direction,
            num_inference_steps=request.steps(self.config.num_inference_steps or _planned_steps(self.options)),
            counts_down=request.counts_down,
            keep=request.keep,
        )

    def _follow(self, session: Session, request: Request, branch: Hashable) -> None:
        """Let a request go on with the options that its handle was given, if they are others now.

        Raises:
            CacheDitError: if they cannot work here; the request then has those of before.
        """
        if request.wishes.revision is None or request.wishes.revision is session.revision:
            return
        try:
            revision = request.wishes.revision
            options = self.check(request.options(self.options))
            self._update(session, request, options, branch)
        except CacheDitError:
            request.wishes.refuse()
            raise
        session.revision = revision
        request.wishes.accept()

    def _update(self, session: Session, request: Request, options: Sequence[ChainOptions], branch: Hashable) -> None:
        """Let a request go on with other options from the step on that is about to begin."""
        if list(options) == session.options:
            return
        before, steps = session.options, session.num_inference_steps
        session.options, session.num_inference_steps = list(options), request.steps(steps or _planned_steps(options))
        try:
            if not options[0].plans_as(before[0]):
                session.guidance_checked = False
            branches = {branch, *(key[0] for key in session.lanes)}
            makers = {
                (name, index): self.maker_of_policies(session, request, one, name)
                for name in branches
                for index, one in enumerate(options)
            }
            for make in makers.values():
                make()  # what does not fit is found before anything has changed
            for module, role in self.observers(options):
                put_on(module, dressed_observed, role)
        except BaseException:
            session.options, session.num_inference_steps = before, steps
            raise
        for key, lane in list(session.lanes.items()):
            name, _, index = key
            chain, one = self.chains[index][0], options[index]
            if type(lane) is not lane_class(one):
                lane.free()
                session.replaced[key] = lane
                del session.lanes[key]
                continue
            layout, lane.refused = layout_now(chain, one, last=index == len(self.chains) - 1)
            lane.renew(one, layout, makers[name, index])

    def close(self, key: Hashable, only: Session | None = None) -> None:
        """End a request: its tensors are freed, its record stays for ``summary`` while it is the latest."""
        closed = self.pool.close(key, only)
        if closed is not None:
            self.explain(closed)

    def close_all(self) -> None:
        """End all requests."""
        for closed in self.pool.close_all():
            self.explain(closed)

    def enter(self, request: Request, given: Mapping[str, Any]) -> Place:
        """Where a call belongs; its session is held."""
        session = self._entered(request)
        timestep = self.reader.timestep(given, waits=self._depends_on_timestep(session))
        branch = self._branch_of(session, given, timestep)
        limit = session.num_inference_steps if session.counts_down else None
        # In a pipeline's call the first timestep may last: where frames are denoised in turn, others wait for theirs.
        lasts = not session.counts_down and session.clock.at_unmoved_start(timestep)
        again = session.goes_back(getattr(request.scheduler, "step_index", None)) and timestep is None
        if again or (not lasts and session.clock.begins_request(branch, timestep, limit)):
            self._learn_direction(session)
            self.close(request.key, session)
            session = self._entered(request)
            branch = self._branch_of(session, given, timestep)
        if session.clock.begins_step(branch, timestep):
            self._follow(session, request, branch)
        self.pool.hold(session)
        return Place(session, branch, session.clock.enter(branch, timestep), timestep)

    def _entered(self, request: Request) -> Session:
        """The session of a request, with the handle's options from its first step on."""
        session = self.session(request)
        if session.clock.step < 0:
            self._follow(session, request, self.branch.get())
        return session

    def times(self, session: Session, request: Request, step: int, timestep: float | None) -> dict[str, float]:
        """A step's place on each coordinate that is known, so turned that it ascends."""
        times = {"step": float(step)}
        if timestep is not None:
            times["timestep"] = session.elapsed(timestep)
        sigma = sigma_of(request.scheduler, step)
        if sigma is not None:
            times["sigma"] = -sigma
        for coordinate in session.coordinates - times.keys():
            self.chains[0][0].say_once("cache_dit: %s is not known here: predictions go by steps", coordinate)
        return times

    def _learn_direction(self, ended: Session) -> None:
        """Keep the direction of an ended request's timesteps; forget it when every step begins a request."""
        self._single_steps = self._single_steps + 1 if ended.clock.step == 0 else 0
        if ended.clock.step > 1:  # two moves: one alone may lead from a single call, say a warm-up, to a run
            self.direction = ended.clock.direction
        elif self._single_steps == 3:
            self.direction = 0

    def _branch_of(self, session: Session, given: Mapping[str, Any], timestep: float | None) -> Hashable:
        """What tells this call from the others of its step."""
        variant = self.reader.variant(given)
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
            return True
        if session.counts_down:
            return session.waits or session.num_inference_steps is None
        if self.branch.get() is not None or session.named:
            return False
        return session.waits or self._separate_cfg(session) or session.turns or session.clock.step < 1

    def _separate_cfg(self, session: Session) -> bool:
        """Whether unnamed calls take turns in this request."""
        asked = session.options[0].cache.enable_separate_cfg
        return self.separate_cfg if asked is None else asked

    @contextlib.contextmanager
    def branch_named(self, name: Hashable) -> Iterator[None]:
        """Calls inside belong to the branch ``name``."""
        token = self.branch.set(name)
        try:
            yield
        finally:
            self.branch.reset(token)

    def note_gradients(self, session: Session) -> None:
        """Say once why a request is not cached: gradients are asked for."""
        if session.note is None:
            session.note = "gradients"
            self.explain(session)

    def explain(self, session: Session) -> None:
        """One line of log that says why, when a request had the cache on and nothing was skipped."""
        if session.explained or self.observer is not None:
            return
        reason = no_hit_reason(session, session.lanes.values())
        if reason is not None:
            session.explained = True
            logger.warning("cache_dit: the cache was on and no step was cached: %s", reason)
        elif (left := departure(session.lanes)) is not None:
            session.explained = True
            logger.warning("cache_dit: %s", left)

    def maker_of_policies(
        self, session: Session, request: Request, options: ChainOptions, branch: Hashable, latent: Any = None
    ) -> Callable[..., Any]:
        """What makes the policy of a branch of a chain; ``latent`` is the transformer's first input, or None."""
        scheduler = request.scheduler

        def run(plan: Plan) -> PlanScope:
            steps = request.steps(options.cache.num_inference_steps)
            facts: dict[str, Any] = {"num_inference_steps": steps, **latent_facts(latent)}
            if scheduler is not None and session.clock.step == 0:  # later it does not tell where it began
                facts |= schedule_facts(plan, scheduler, steps)
            weighs = plan.scope.weights is not None
            known: PlanScope = session.known.get(weighs) or self.run_scope(scheduler, plan)
            session.known[weighs] = known
            return replace(known, **facts)

        return policy_maker(options, session, branch, model_class=self.model_class, scheduler=scheduler, run=run)

    def check_guidance(self, session: Session, step: int) -> None:
        """Raise ``ConfigError`` where the first step called other branches of guidance than a plan was made with."""
        if step < 1 or session.guidance_checked:
            return
        called = tuple({branch_name(branch) for branch, _, _ in list(session.lanes)})
        for one in session.options:
            if one.cache.plan is not None and called:
                one.cache.plan.check(branches=called)
        session.guidance_checked = True


def _planned_steps(options: Sequence[ChainOptions]) -> int | None:
    """The steps that a plan was made for, or None."""
    plan = options[0].cache.plan
    return None if plan is None else plan.scope.num_inference_steps
