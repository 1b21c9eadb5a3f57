"""A transformer with a cache: what happens around one forward."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.attach import manager
from cache_dit.engine.attach.check import checked
from cache_dit.engine.attach.pipeline import Holders
from cache_dit.engine.attach.wrappers import observed_module as observed_subclass
from cache_dit.engine.forward.branch_cache import BranchCache, ChainForward
from cache_dit.engine.forward.call import Call, SimilarityOverride
from cache_dit.engine.forward.chain import Chain, IdleRole, untraced, untraced_by_caller
from cache_dit.engine.forward.conditioning import ConditioningMonitor
from cache_dit.engine.forward.lora import AdapterReader
from cache_dit.engine.forward.observe import ObserverRole, observed_module
from cache_dit.engine.forward.shards import call_key
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.plans.scope import PlanScope, branch_name
from cache_dit.engine.policies.plan import departure
from cache_dit.engine.sessions.call_reader import CallReader, needs_grad, shallow, sigma_of
from cache_dit.engine.sessions.opening import cache_class, check_plan, layout_now, policy_maker, scope_of
from cache_dit.engine.sessions.reasons import NEVER_CALLED, NO_STEP, misfit, no_hit, slow
from cache_dit.engine.sessions.request import ENTERED, Request
from cache_dit.engine.sessions.router import CallKey, Router
from cache_dit.engine.sessions.session import CacheKey, Session
from cache_dit.engine.state.measure import HostCopy
from cache_dit.engine.subclass import wrap
from cache_dit.errors import CacheDitError, ConfigError
from cache_dit.platforms.groups import parallel_group

logger = logging.getLogger(__name__)


class Forward(Call):
    """One forward of a transformer under way, and what to put back after it.

    Args:
        state: the transformer's.
        key: where the call belongs.
        request: whose it is.
        times: see ``Call``.
        given: the call's arguments by name.
    """

    #: The call's conditioning tensors, by their place.
    conditions: Mapping[str, torch.Tensor] = {}
    #: The call's arguments, lists and dicts copied, for a model that empties what it was given.
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})

    def __init__(
        self,
        state: TransformerState,
        key: CallKey,
        request: Request,
        times: Mapping[str, float],
        given: Mapping[str, Any],
    ) -> None:
        self.state = state
        self.key = key
        self.session, self.branch, self.step, _ = key
        self.request = request
        self.times = times
        self.given = given
        self.chains: list[ChainForward] = []
        self.previous: list[ChainForward | None] = []

    def read_latent(self) -> tuple[torch.Tensor | None, int]:
        """The transformer's first input, or None, and its number of samples."""
        return self.state.reader.latent(self.given)

    @untraced
    def next_pass(self, before: ChainForward) -> ChainForward:
        """A chain's blocks are called again in one forward: another pass, with a cache of its own."""
        following = self.state.start(self, before.index, before.passed + 1)
        self.state.chains[before.index][0].current.forward = following
        return following


class TransformerState:
    """Everything that a cached transformer's cache consists of. It lives in the instance, nothing lives elsewhere.

    Args:
        module: the transformer.
        chains: the chains of its blocks, with the options of each.
        separate_cfg: whether unnamed calls are the branches of classifier-free guidance in turn.
        rules: what its record says of its calls.
        holders: whom else options were given to.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        chains: list[tuple[Chain, ChainOptions]],
        *,
        separate_cfg: bool = False,
        rules: CallRules | None = None,
        holders: Holders,
    ) -> None:
        self.chains = chains
        self.holders = holders
        #: Modules between blocks that do nothing while these are skipped, with their roles.
        self.idle: list[tuple[torch.nn.Module, IdleRole]] = []
        #: Modules whose input decisions are made by, with their roles.
        self.observed: list[tuple[torch.nn.Module, ObserverRole]] = []
        self.rules = rules or CallRules()
        self.reader = CallReader(type(module), self.rules)
        self.router = Router(self.reader, separate_cfg=separate_cfg)
        #: Told of every computed step of every cache while it is set: nothing is skipped then.
        self.observer: Callable[[Any, Any], None] | None = None
        #: What servers know as ``_context_manager``, once somebody has asked for it: see ``attach.manager``.
        self.manager: Any = None
        #: The module whose calls are counted: the transformer, or the compiled wrapper around it.
        self.owner: Callable[[], Any] = lambda: None
        self.model_class = type(module).__name__
        #: What the log has said of this model, by what tells one reason from another.
        self.said: set[Hashable] = set()
        self._passed_by = False  # whether a call was none of the cache's
        self._module = weakref.ref(module)
        #: When its last request was opened, among those of all models.
        self.opened_at = -1

    # -- what is asked of it

    @property
    def config(self) -> Any:
        """The cache configuration of the first chain: what concerns the transformer as a whole is read from it."""
        return self.chains[0][1].cache

    @property
    def options(self) -> list[ChainOptions]:
        """The configuration of each chain."""
        return [options for _, options in self.chains]

    @property
    def max_sessions(self) -> int:
        """How many requests may be open."""
        limit: int = self.config.max_sessions
        return limit

    @property
    def sessions(self) -> Mapping[Hashable, Session]:
        """The open requests by their keys, the longest unused first."""
        return self.router.pool.sessions

    @property
    def latest(self) -> Session | None:
        """The request that was opened last."""
        return self.router.pool.latest

    @property
    def uncalled(self) -> str | None:
        """Why there is no request to tell of, or None where there is one."""
        if self.latest is not None:
            return None
        return NO_STEP if self._passed_by else NEVER_CALLED

    @property
    def cache_classes(self) -> list[type]:
        """The kind of cache of each chain."""
        return [cache_class(options) for options in self.options]

    @property
    def similarity(self) -> SimilarityOverride | None:
        """What decides instead of a measurement, given both tensors, ``threshold``, ``parallelized`` and ``prefix``.

        It says whether a step may be skipped, and its diff where it tells one. None: the engine measures.
        """
        if self.manager is None and not manager.eager:
            return None
        judge: SimilarityOverride | None = manager.manager_of(self).judge()
        return judge

    def check(self, options: Sequence[ChainOptions], scheduler: Any = None) -> list[ChainOptions]:
        """The options of all chains, once it is clear that they can work here."""
        for one, (chain, _) in zip(options, self.chains, strict=True):
            checked(one, chain, self.model_class, functools.partial(scope_of, self._module(), scheduler))
            if one.observes:
                observed_module(chain)
        return list(options)

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
        if (asked := self.config.enable_separate_cfg) is not None:
            self.router.separate_cfg = asked

    def observers(self, asked: Sequence[ChainOptions] | None = None) -> list[tuple[torch.nn.Module, ObserverRole]]:
        """The modules that decisions look at, with options of a request or as they are, and those that there were."""
        known = {id(module) for module, _ in self.observed}
        for (chain, _), options in zip(self.chains, self.options if asked is None else asked, strict=True):
            if options.observes and id(module := observed_module(chain)) not in known:
                self.observed.append((module, ObserverRole(chain, module)))
        return self.observed

    # -- requests

    def opened(self, request: Request, direction: int) -> Session:
        """A new session for a request."""
        self.opened_at = next(_openings)
        scheduled = None if request.scheduled is None else request.scheduled()
        asked = request.steps(self.config.num_inference_steps or _planned_steps(self.options))
        return Session(
            self.options,
            direction=direction,
            num_inference_steps=scheduled or asked,
            exact=request.counts_down or scheduled is not None,
            counts_down=request.counts_down,
            keep=request.keep,
        )

    def close(self, key: Hashable, only: Session | None = None) -> None:
        """End a request: its tensors are freed, its record stays for ``summary`` while it is the latest."""
        if (closed := self.router.pool.close(key, only)) is not None:
            self.explain(closed)

    def close_all(self) -> None:
        """End all requests."""
        for closed in self.router.pool.close_all():
            self.explain(closed)

    def close_outside(self) -> None:
        """End the requests that are no pipeline's calls: their next calls have the options that were given last."""
        for key, session in list(self.sessions.items()):
            if session.handle is None or session.handle.holder is None:
                self.close(key, session)

    def follow(self, session: Session, request: Request, branch: Hashable) -> None:
        """Let a request go on with the options that its handle was given, if they are others now.

        Raises:
            CacheDitError: if they cannot work here; the request then has those of before.
        """
        revision = request.overrides.revision
        if revision is None or revision is session.revision:
            return
        try:
            self._update(session, request, self.check(request.options(self.options)), branch)
        except CacheDitError:
            request.overrides.refuse()
            raise
        session.revision = revision
        request.overrides.accept()

    def _update(self, session: Session, request: Request, options: Sequence[ChainOptions], branch: Hashable) -> None:
        """Let a request go on with other options from the step on that is about to begin."""
        if list(options) == session.options:
            return
        before, steps, known = session.options, session.num_inference_steps, session.guidance_checked
        session.use(options)
        if session.counts_down or not session.exact:
            session.num_inference_steps = request.steps(steps or _planned_steps(options))
        try:
            if not options[0].plans_as(before[0]):
                session.guidance_checked, session.differences = False, []
            makers = {
                (name, index): policy_maker(one, session, request, name, self._module(), chain=self.chains[index][0])
                for name in {branch, *(key[0] for key in session.caches)}
                for index, one in enumerate(options)
            }
            for make in makers.values():
                make()  # what does not fit is found before anything has changed
            for module, role in self.observers(options):
                wrap(module, observed_subclass, role)
        except BaseException:
            session.use(before)
            session.num_inference_steps, session.guidance_checked = steps, known
            raise
        for one in options:
            self._say_misfit(session, one)
        for key, cache in list(session.caches.items()):
            name, _, index = key
            chain, one = self.chains[index][0], options[index]
            if type(cache) is not cache_class(one):
                cache.free()
                session.replaced[key] = cache
                del session.caches[key]
                continue
            layout, cache.refused = layout_now(chain, one, last=index == len(self.chains) - 1)
            cache.renew(one, layout, makers[name, index])

    def explain(self, session: Session) -> None:
        """One line of log where a request had the cache on and little or nothing was skipped: why, unless it was said.

        Nothing is said of a threshold of 0, which asks for that.
        """
        if session.explained or self.observer is not None:
            return
        reason = no_hit(session, session.caches.values())
        left = departure(session.caches) if reason is None else None
        session.explained = reason is not None or left is not None
        if reason is not None and not reason.asked:
            self.say(reason.code, "cache_dit: the cache was on and no step was cached: %s", reason.text)
        elif left is not None:
            self.say(left, "cache_dit: %s", left)
        elif reason is None and (hardly := slow(session)) is not None:
            session.explained = True
            self.say(f"slow: {hardly[0]}", "cache_dit: %s", hardly[1])

    def _say_misfit(self, session: Session, options: ChainOptions) -> None:
        if (unfit := misfit(session, options.cache)) is not None:
            self.say(unfit, "cache_dit: %s", unfit)

    def say(self, what: Hashable, message: str, *values: object) -> None:
        """Warn in the log, but only once for each ``what``."""
        if what not in self.said:
            self.said.add(what)
            logger.warning(message, *values)

    # -- a forward

    @untraced_by_caller
    def begin(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, again: Forward | None = None
    ) -> Forward | None:
        """Count the step, decide what can be decided, and arm the blocks. None: this call is none of the cache's.

        Args:
            module: the transformer.
            args, kwargs: what it was called with.
            again: the forward that this one repeats, because its output was wrong.
        """
        entered = ENTERED.get()
        if entered and self.holders.several and (own := self.holders.state_of_call(entered, self)) is not self:
            made: Forward | None = own.begin(module, args, kwargs, again=again)
            return made
        given = self.reader.given(args, kwargs) if args else kwargs
        if self.rules.bypasses is not None and self.rules.bypasses(given):
            self._passed_by = True
            return None
        request = entered[-1] if entered else self.router.own.request
        if torch.is_grad_enabled() and needs_grad(module, given):
            self._note_gradients(self.router.session(request, self))
            return None
        key = self.router.locate(request, given, self) if again is None else again.key
        pool, session = self.router.pool, key[0]
        try:
            forward = self._forward(module, given, request, key) if again is None else again
            if request.overrides.enabled:
                for index in range(len(self.chains)):
                    self.start(forward, index, 0)
                for value in (*args, *kwargs.values()):
                    if (type(value) is list or type(value) is dict) and value:
                        args, kwargs = tuple(map(shallow, args)), {name: shallow(one) for name, one in kwargs.items()}
                        break
                forward.arguments = args, kwargs
                for started in forward.chains:  # nothing can fail any more: the blocks may know
                    current = started.cache.chain.current
                    forward.previous.append(current.forward)
                    current.forward = started
                return forward
            pool.free(session)
        except BaseException as error:
            if isinstance(error, ConfigError):  # nothing of this request was as it must be
                pool.close(request.key, session)
            pool.release(session)
            raise
        pool.release(session)
        return None

    def _forward(self, module: torch.nn.Module, given: Mapping[str, Any], request: Request, key: CallKey) -> Forward:
        """What the caches must know of a call."""
        session, branch, step, timestep = key
        if session.refreshes_at is not None:
            session.refresh(step)
        if step > 0 and not session.guidance_checked:
            self._check_guidance(session)
        if session.adapters is None:
            session.adapters = AdapterReader(module)
        if step == 0:
            session.group = parallel_group(module)
            session.second_cache = bool(getattr(module, "is_cache_enabled", False))
        times = {"step": float(step)}
        if session.coordinates != _STEPS:
            self._place(times, session, request, step, timestep)
        forward = Forward(self, key, request, times, given)
        if session.group is not None:
            forward.group, forward.key_of_ranks = session.group, call_key(given)
        if self.manager is not None or manager.eager:
            forward.similarity = self.similarity
        conditions, texts = self.reader.conditions(given)
        forward.conditions = conditions
        monitor = session.monitors.get(branch)
        if monitor is None:
            monitor = session.monitors[branch] = ConditioningMonitor()
            monitor.adapted(session.adapters, given)
        if monitor.pending is not None:
            _look_back(session, branch, *monitor.pending)
            monitor.pending = None
        since: int | None = None
        if monitor.reads or monitor.seen is None or texts is not monitor.names:
            since = monitor.text_changed(given, texts, step)
        if (conditions or monitor.seen or monitor.seen is None) and monitor.changed(conditions):
            since = step
        adapters = session.adapters
        if (adapters.layers or "peft_config" in adapters.home or monitor.adapters) and monitor.adapted(adapters, given):
            since = step
        if since is not None:
            session.since(branch, since)
        if since == step:
            forward.compute = "conditioning"
        if conditions and session.options[0].cache.watches_conditioning:
            forward.jump = functools.partial(monitor.jump, conditions)
            if since != step:
                forward.look = functools.partial(monitor.look, conditions, step, session.group)
        if self.rules.computes is not None and self.rules.computes(given):
            forward.compute = "required"
        if session.second_cache:
            forward.compute = "second_cache"
        if self.observer is not None:
            forward.compute, forward.observer = "observed", self.observer
        return forward

    def _place(
        self, times: dict[str, float], session: Session, request: Request, step: int, timestep: float | None
    ) -> None:
        """A step's place on the coordinates that are asked for, as far as they are known, so turned that it ascends."""
        if timestep is not None:
            times["timestep"] = session.elapsed(timestep)
        if (sigma := sigma_of(request.scheduler, step)) is not None:
            times["sigma"] = -sigma
        for coordinate in session.coordinates - times.keys():
            self.chains[0][0].say_once("cache_dit: %s is not known here: predictions go by steps", coordinate)

    def _check_guidance(self, session: Session) -> None:
        """Raise ``ConfigError`` where the first step called other branches of guidance than a plan was made with."""
        called = tuple({branch_name(branch) for branch, _, _ in list(session.caches)})
        for one in session.options:
            if one.cache.plan is not None and called:
                check_plan(one.cache.plan, PlanScope(branches=called), session, self.chains[0][0])
        session.guidance_checked = True

    def _note_gradients(self, session: Session) -> None:
        """Say once why a request is not cached: gradients are asked for."""
        if session.note is None:
            session.note = "gradients"
            self.explain(session)

    def start(self, forward: Forward, index: int, passed: int) -> ChainForward:
        """Begin a pass over a chain."""
        session = forward.session
        key = (forward.branch, passed, index)
        cache = session.caches.get(key)
        if cache is None:
            cache = self._opened_cache(forward, key)
        shared = None
        if forward.similarity is None and cache.options.shares_diffs:
            shared = session.shared_diffs(cache.chain, forward.step)
        started = cache.start(forward, shared)
        started.index, started.passed = index, passed
        forward.chains.append(started)
        return started

    def _opened_cache(self, forward: Forward, key: CacheKey) -> BranchCache:
        """A cache for a branch of a chain, fitted to what else is on its blocks by now: offloading, parallelism."""
        session, (branch, _, index) = forward.session, key
        chain, options = self.chains[index][0], session.options[index]
        layout, refused = layout_now(chain, options, last=index == len(self.chains) - 1)
        self._say_misfit(session, options)
        make = policy_maker(
            options, session, forward.request, branch, self._module(), chain=chain, latent=forward.latent
        )
        before = session.replaced.pop(key, None)
        if before is not None:
            make = functools.partial(make, records=next((known.records for known in before.policies().values()), []))
        cache: BranchCache = cache_class(options)(chain, layout, options, make)
        if before is not None:
            cache.executed, cache.possible = before.executed, before.possible
        cache.refused = refused
        session.caches[key] = cache
        session.settled()
        return cache

    @untraced_by_caller
    def end(self, forward: Forward, output: Any) -> bool:
        """Take the blocks' part back and enter what happened. False: the output is wrong, run the step again."""
        chains = self._disarmed(forward)
        for started in chains:
            if started.owes:
                return self._refuse(chains)
        session, grew = forward.session, False
        for started in chains:
            if started.originals:
                started.check_writes()
            started.commit(output)
            cache = started.cache
            if started.diffs is not None and cache.options.shares_diffs and started.why != "conditioning":
                session.share_diffs(cache.chain, forward.step, started.diffs)
            grew, cache.grew = grew or cache.grew, False
        if forward.jump is not None:
            grew = self._sample_conditions(forward, chains) or grew
        if grew:
            session.note_bytes()
        if session.num_inference_steps == forward.step + 1 and session.finished:
            self._free_finished(forward, chains)
        self.router.pool.release(session)
        return True

    def _refuse(self, chains: list[ChainForward]) -> bool:
        """No block has handed out a prediction: compute everything from now on; False."""
        for started in chains:
            if started.owes:
                started.cache.refused = "last_block_not_called"
                started.cache.free()
        return False

    def _sample_conditions(self, forward: Forward, chains: list[ChainForward]) -> bool:
        """Keep samples of what conditions a computed step, where any step can be skipped."""
        if any(started.skipped for started in chains) or not any(
            policy.caches for started in chains for policy in started.cache.policies().values()
        ):
            return False
        partial = [set(rows) for started in chains if (rows := started.computed_samples) is not None]
        rows = sorted(set.intersection(*partial)) if partial else None
        monitor = forward.session.monitors.get(forward.branch)
        if monitor is not None:
            monitor.computed(forward.conditions, rows, forward.batch)
        return True

    @untraced_by_caller
    def abandon(self, forward: Forward) -> None:
        """The forward failed: what its request had gathered is not to be trusted."""
        self._disarmed(forward)
        self.router.pool.close(forward.request.key, forward.session)
        self.router.pool.free(forward.session)
        self.router.pool.release(forward.session)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Around a call that is none of the cache's: blocks are plain in it, also inside a forward under way."""
        before = [chain.current.forward for chain, _ in self.chains]
        for chain, _ in self.chains:
            chain.current.forward = None
        try:
            yield
        finally:
            for (chain, _), forward in zip(self.chains, before, strict=True):
                chain.current.forward = forward

    def _disarmed(self, forward: Forward) -> list[ChainForward]:
        """Give the blocks what they had before; gives the forwards over the chains, which the forward lets go of."""
        chains, forward.chains = forward.chains, []
        for place, previous in enumerate(forward.previous):
            self.chains[place][0].current.forward = previous
        forward.previous = []
        return chains

    def _free_finished(self, forward: Forward, chains: list[ChainForward]) -> None:
        """A branch that has made its last step needs nothing of what was kept any more."""
        forward.session.monitors.pop(forward.branch, None)
        for started in chains:
            started.cache.free()
        self.explain(forward.session)


def _look_back(session: Session, branch: Hashable, step: int, travelled: HostCopy) -> None:
    """Begin a new history where what conditions a branch jumped in an earlier step, and nobody waited for it."""
    jumps = travelled.arrived()
    for cache in session.caches_of(branch):
        if places := cache.jumped(jumps):
            cache.since(step, places if len(jumps) > 1 else None)


#: Tells which of several states opened a request last.
_openings = itertools.count()

#: The coordinates of who goes by steps alone.
_STEPS = {"step"}


def _planned_steps(options: Sequence[ChainOptions]) -> int | None:
    """The steps that a plan was made for, or None."""
    plan = options[0].cache.plan
    return None if plan is None else plan.scope.num_inference_steps
