"""The handle on a request: which one the calls of a thread or task belong to, and what it was told."""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache_dit.config.base import check_flag, check_integer, joined, laid_over
from cache_dit.config.cache import BasicCacheConfig, CacheType
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.modifier import refresh_options
from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.options import ChainOptions
from cache_dit.errors import ConfigError, SessionError

_OF_PLANS = ("plan", "policy", "Fn_compute_blocks", "Bn_compute_blocks")
_PRUNE_ONLY = frozenset(DBPruneConfig.field_names()) - frozenset(BasicCacheConfig.field_names())


@dataclass
class RequestOverrides:
    """What a handle was told of its request; the pipeline calls inside it have the same."""

    enabled: bool = True
    #: The options that differ from the transformer's.
    changes: Mapping[str, Any] = field(default_factory=dict)
    calibrator: CalibratorConfig | None = None
    #: Another one whenever they changed; None: they never did.
    revision: object = None
    #: The last ones that a model took; whether those of now were taken.
    _taken: tuple[Mapping[str, Any], CalibratorConfig | None] = field(default_factory=lambda: ({}, None))
    _proven: bool = True

    def lay(self, changes: Mapping[str, Any], calibrator: CalibratorConfig | None) -> None:
        """Lay further options over those of before."""
        if self._proven:
            self._taken, self._proven = (self.changes, self.calibrator), False
        before = self.changes
        if changes.get("policy", "plan") != "plan":
            before = {name: value for name, value in before.items() if name not in _OF_PLANS}
        if changes.get("cache_type") is CacheType.DBCache:
            before = {name: value for name, value in before.items() if name not in _PRUNE_ONLY}
        self.changes = joined(before, changes)
        self.calibrator = self.calibrator if calibrator is None else laid_over(self.calibrator, calibrator)
        self.revision = object()

    def accept(self) -> None:
        """A model took them."""
        self._proven = True

    def refuse(self) -> None:
        """They fit a model not at all: back to those of before, for all models."""
        (self.changes, self.calibrator), self._taken = self._taken, ({}, None)
        self._proven = True
        self.revision = object()


class Request:
    """Which request the calls in this context belong to: a handle on it.

    ``with request:`` lets the calls inside belong to it; it may be entered any number of times, and inside others, in
    any number of threads and tasks. The calls of one request come one after the other, wherever they come from.

    Args:
        key: what tells it from others: a name, or an object of a pipeline call.
        num_inference_steps: the number of steps where it is known.
        counts_down: whether reaching that number ends the request (a bare transformer) or not (a pipeline, whose
            scheduler may call the model more often).
        keep: whether its tensors stay when its steps are done, until ``close``.
        scheduler: the scheduler whose sigmas its steps have, or None.
        outer: the session around a pipeline's call, whose ``enabled`` and options count for it as well.
        scheduled: tells, when the run has begun, how many steps its scheduler has for it, or None.
        arguments: those of that call that lie on the host, by name; None: they are not known.
        holder: gives what has the options of the pipeline whose call it is, as long as that is there; or None.
    """

    def __init__(
        self,
        key: Hashable,
        num_inference_steps: int | None = None,
        *,
        counts_down: bool = True,
        keep: bool = False,
        scheduler: Any = None,
        outer: Request | None = None,
        scheduled: Callable[[], int | None] | None = None,
        arguments: Mapping[str, Any] | None = None,
        holder: Callable[[], Any] | None = None,
    ) -> None:
        self.key = key
        self.holder = holder
        self.num_inference_steps = num_inference_steps
        self.counts_down = counts_down
        self.keep = keep
        self.scheduler = scheduler
        self.scheduled = scheduled
        self.arguments = arguments
        self.overrides: RequestOverrides = RequestOverrides() if outer is None else outer.overrides
        #: What the request was seen on: transformers' states, each with a ``close(key)``.
        self._seen: list[weakref.ref[Any]] = []
        self._lock = threading.Lock()

    @property
    def thread(self) -> threading.Thread | None:
        """The thread whose calls outside of all sessions these are, or None."""
        return self.key[1] if isinstance(self.key, tuple) and self.key[0] == "thread" else None

    @property
    def enabled(self) -> bool:
        """Whether its calls are cached at all; may be set at any time, also between two steps.

        While it is False, calls give what they give without a cache, steps are counted, and nothing is kept.
        """
        return self.overrides.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        check_flag("enabled", value)
        self.overrides.enabled = value

    def update(
        self,
        cache_config: BasicCacheConfig | None = None,
        calibrator_config: CalibratorConfig | None = None,
        **options: Any,
    ) -> Request:
        """Change the options of this request alone, from its next step on.

        Args:
            cache_config: its fields that are not None are taken over.
            calibrator_config: how skipped steps are predicted from now on.
            **options: fields of ``DBCacheConfig`` by name, such as ``residual_diff_threshold=0.2``. All but
                ``max_sessions``, which is the transformer's, can differ from request to request.

        Returns:
            The handle itself.

        Raises:
            ConfigError: if an option is unknown or wrong; nothing has changed then. What does not fit the model is
                found at the next step: that call raises, and the request goes on with the options of its last one.
        """
        if "max_sessions" in options:
            raise ConfigError("update: max_sessions is the transformer's: pass it to enable_cache or refresh_context")
        given = {"cache_config": cache_config, "calibrator_config": calibrator_config, **options}
        changes, calibrator = refresh_options(given, where="update")
        if changes.get("cache_type") is CacheType.NONE:
            raise ConfigError("update: cache_type=NONE would be no cache for this request: set enabled = False on it")
        self.overrides.lay(changes, calibrator)
        return self

    def options(self, shared: Sequence[ChainOptions]) -> list[ChainOptions]:
        """Each chain's options, with this request's own laid over them."""
        return [options.under(self.overrides.changes, self.overrides.calibrator) for options in shared]

    def steps(self, known: int | None) -> int | None:
        """The number of steps: a pipeline's own, else what the handle was told last, else what is ``known``."""
        said = self.overrides.changes.get("num_inference_steps") if self.counts_down else None
        return said or self.num_inference_steps or known

    def call(self, transformer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One call of a transformer as a part of this request: ``with handle: return transformer(*args, **kwargs)``.

        It is for loops that stop between two steps, such as generators: ``with`` around a ``yield`` reaches into
        whatever runs meanwhile in the same thread or task.

        Args:
            transformer: what is called.
            *args, **kwargs: what it is called with.
        """
        with self:
            return transformer(*args, **kwargs)

    def seen_on(self, state: Any) -> None:
        """Remember a transformer's state, for ``close``; it and its model may go all the same."""
        if any(known() is state for known in self._seen):
            return
        with self._lock:
            self._seen = [known for known in self._seen if known() is not None] + [weakref.ref(state)]

    def close(self) -> None:
        """End the request on all transformers that this handle was seen on, and free what they kept of it.

        A call that is under way in another thread ends as it would have; its tensors go with its end. Entered again,
        the handle begins a new request, with the same options.
        """
        with self._lock:
            seen, self._seen = self._seen, []
        for known in seen:
            state = known()
            if state is not None:
                state.close(self.key)

    def __enter__(self) -> Request:
        ENTERED.set((*ENTERED.get(), self))
        return self

    def __exit__(self, *exception: object) -> None:
        entered = ENTERED.get()
        for place in reversed(range(len(entered))):  # generators that take turns do not leave in the order of entering
            if entered[place] is self:
                ENTERED.set(entered[:place] + entered[place + 1 :])
                return


#: The requests that this thread or task is inside of, the innermost last.
ENTERED: contextvars.ContextVar[tuple[Request, ...]] = contextvars.ContextVar("cache_dit_requests", default=())


def current_request() -> Request | None:
    """The request of this context (thread or task), or None."""
    return ENTERED.get()[-1] if ENTERED.get() else None


def thread_request() -> Request:
    """The request of this thread's calls outside of all sessions."""
    return Request(("thread", threading.current_thread()))


def session(name: Hashable, *, num_inference_steps: int | None = None, keep: bool = False) -> Request:
    """A handle on the request ``name``: calls of bare transformers inside ``with session(name):`` belong to it.

    Two requests may take turns on one transformer, each inside its own ``session``, in one thread or in several:
    each gives what it gives alone. A session may be left and entered again, by the same handle or by another with the
    same name (whose options count from its next step on, if it was given any); it ends when its steps are done, when
    its timestep jumps back, by ``refresh_context``, or by ``close()`` of a handle that it was entered with: a request
    that is given up should be closed, since what it keeps is otherwise freed only when many more are open
    (``max_sessions``). Opening, refreshing and closing one takes the same time however many are open.

    A pipeline call is a request of its own and needs none; inside a session the handle's ``enabled`` and the options
    given to ``update`` count for it too, also when they change in the middle of it.

    Args:
        name: tells the request from others; any hashable value, not None.
        num_inference_steps: the number of its steps, where it differs from the configuration's.
        keep: whether its tensors stay when its steps are done, until it is closed.

    Raises:
        SessionError: if ``name`` is None or not hashable.
        ConfigError: if ``num_inference_steps`` is no number of steps, or ``keep`` no flag.

    Example:
        >>> handle = cache_dit.session("request-7", num_inference_steps=28)
        >>> handle.update(residual_diff_threshold=0.2)
        >>> with handle:
        ...     noise = transformer(**inputs)
    """
    try:
        hash(name)
    except TypeError as error:
        raise SessionError(f"a session's name must be hashable, got {type(name).__name__}: pass a string") from error
    if name is None:
        raise SessionError("a session needs a name: pass a string, such as the request's id")
    if num_inference_steps is not None:
        check_integer("num_inference_steps", num_inference_steps, minimum=1)
    check_flag("keep", keep)
    return Request(("session", name), num_inference_steps, keep=keep)
