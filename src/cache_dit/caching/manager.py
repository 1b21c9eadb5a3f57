"""What ``transformer._context_manager`` is: a view of a transformer's cache, and the place to decide otherwise."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cache_dit.api import refresh_context
from cache_dit.caching.contexts import CachedContext, PrunedContext
from cache_dit.caching.subclassed import Subclassed
from cache_dit.config.base import as_number
from cache_dit.config.cache import CacheType
from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.attach import manager as hook
from cache_dit.engine.sessions.request import current_request, thread_request
from cache_dit.engine.state.measure import read_relative_l1
from cache_dit.errors import ConfigError, SessionError
from cache_dit.platforms.groups import parallel_group
from cache_dit.summary import branches, chain_stats

if TYPE_CHECKING:
    from cache_dit.engine.attach.transformer import TransformerState
    from cache_dit.engine.forward.branch_cache import BranchCache
    from cache_dit.engine.forward.call import SimilarityOverride
    from cache_dit.engine.options import ChainOptions
    from cache_dit.engine.policies.base import StepRecord
    from cache_dit.engine.sessions.session import Session

#: Decides whether a step is like an earlier one: ``similarity(t1, t2, *, threshold, parallelized, prefix)``.
Similarity = Callable[..., bool]

_INSTEAD = {
    "can_cache": "a step is decided by its policy: replace `similarity`, or register a policy of your own",
    "mark_step_begin": "a step begins when the transformer is called",
    "apply_cache": "skipped blocks are filled by the blocks themselves, by the registered predictors",
    "get_Fn_buffer": "what is compared is given to `similarity`; the tensors kept for it are not handed out",
    "set_Fn_buffer": "what is compared is kept when a step was computed",
}


class ContextNotExistError(ConfigError):
    """A context of a name that no chain of blocks has."""


class _Manager(type):
    """Notices that somebody assigns a function to ``CachedContextManager.similarity``: it then decides everywhere."""

    def __setattr__(cls, name: str, value: Any) -> None:
        hook.eager = hook.eager or name == "similarity"
        super().__setattr__(name, value)


class CachedContextManager(Subclassed, metaclass=_Manager):
    """A view of the cache on one transformer: what it tells is of the request of this thread or task, or the latest.

    To decide yourself whether a step may be skipped, replace ``similarity``: in a subclass, whose instance you assign
    to ``transformer._context_manager``, or by assigning a function to it on the class or on the instance.

    Args:
        name: a name for it, for people.
        persistent_context: whether requests begin by themselves, as they do around a bare transformer.
    """

    _state: Callable[[], TransformerState | None] | None = None

    def __init__(self, name: str | None = None, persistent_context: bool = False) -> None:
        self.name = name
        self.persistent_context = persistent_context

    def bind(self, state: TransformerState | None) -> None:
        """Let it be the manager of a transformer's state, which keeps it; None: of none any more."""
        self._state = None if state is None else weakref.ref(state)

    # -- deciding

    def similarity(self, t1: Any, t2: Any, *, threshold: float, parallelized: bool = False, prefix: str = "Fn") -> bool:
        """Whether a tensor has hardly changed: mean|t1 - t2| / mean|t1| < threshold.

        Args:
            t1: the tensor at the step to compare with.
            t2: the tensor now.
            threshold: the relative difference from which on it has changed.
            parallelized: whether the tensors are this rank's part of them: then the means are over all ranks of the
                transformer's own process group.
            prefix: what is compared: "Fn" for what the first blocks do; with DBPrune the block's.

        Returns:
            False too where the two cannot be compared, or the difference is not finite.
        """
        group = parallel_group(self._bound.owner()) if parallelized else None
        important = 0.0 if self._state is None else self._options.extra.important_condition_threshold
        reading = read_relative_l1(t1, t2, group, important=important)
        if reading is None:
            return False
        self.add_residual_diff(reading.diffs[0])
        return reading.diffs[0] < threshold

    def add_residual_diff(self, diff: Any) -> None:
        """For a ``similarity`` of your own: say what was measured, so that the step's record has it.

        Args:
            diff: the relative difference, a number or a tensor of one element (which is read back).
        """
        measured: dict[int, float] = self.__dict__.setdefault("_measured", {})
        measured[threading.get_ident()] = float(diff)

    def replacement(self) -> Similarity | None:
        """What was put in the place of ``similarity``, bound to this manager; None while nothing was."""
        found: Similarity = self.similarity
        return None if getattr(found, "__func__", None) is _SIMILARITY else found

    def judge(self) -> SimilarityOverride | None:
        """What the engine asks instead of measuring: the replacement's answer, and the diff that it has added."""
        replacement = self.replacement()
        if replacement is None:
            return None
        return lambda *probes, **options: (bool(replacement(*probes, **options)), self.take_diff())

    def take_diff(self) -> float | None:
        """The diff that was added last in this thread, and that nobody took yet; None where there is none."""
        measured: dict[int, float] = self.__dict__.get("_measured", {})
        return measured.pop(threading.get_ident(), None)

    # -- looking

    @property
    def context_names(self) -> list[str]:
        """The names of the transformer's chains of blocks."""
        return [chain.name for chain, _ in self._bound.chains]

    def get_context(self, name: str | None = None) -> CachedContext:
        """What is held for a chain of blocks, as values.

        Args:
            name: the chain; None: the first.

        Raises:
            ContextNotExistError: there is no such chain.
            SessionError: this manager is on no transformer.
        """
        return self._context(self._index(name), self._session())

    def _context(self, index: int, session: Session | None) -> CachedContext:
        """What a session holds for a chain; None: a chain whose request has not begun."""
        chain, options = self._bound.chains[index]
        if session is not None:  # a request may have options of its own
            options = session.options[index]
        stats = chain_stats(session, index, chain.name, options)
        kind = PrunedContext if isinstance(options.cache, DBPruneConfig) else CachedContext
        context = kind(chain.name, {}, copy.copy(options.cache), copy.copy(options.extra))
        context.calibrator_config = copy.copy(options.calibrator)  # set later, so that no calibrators are made for it
        for field in vars(context):
            if hasattr(stats, field):
                setattr(context, field, getattr(stats, field))
        if session is not None:
            context.executed_steps = session.clock.step + 1
            caches = {
                (branch, passed): cache for (branch, passed, chain), cache in session.caches.items() if chain == index
            }
            self._fill(context, branches(caches))
            context.transformer_executed_steps = sum(len(_records(cache)) for cache in caches.values())
        return context

    def reset_context(self, name: str | None = None, **options: Any) -> CachedContext:
        """Begin a new request on the transformer, as ``cache_dit.refresh_context`` does; see there.

        Args:
            name: the chain whose context is given back; None: the first. The request is of all chains.
            **options: the options that change.

        Raises:
            ContextNotExistError: there is no such chain.
            ConfigError: an option is unknown or wrong; the old options then stay.
            SessionError: this manager is on no transformer.
        """
        index = self._index(name)
        refresh_context(self._bound.owner(), **options)
        return self._context(index, None)

    @contextlib.contextmanager
    def enter_context(self, context: CachedContext | str | None = None) -> Iterator[CachedContext]:
        """A block in which a context is at hand; blocks find theirs by themselves, in it and outside of it.

        Args:
            context: the context, or its name, as in ``get_context``.

        Raises:
            ContextNotExistError, SessionError: as ``get_context``.
        """
        yield self.get_context(context.name if isinstance(context, CachedContext) else context)

    @staticmethod
    def _fill(context: CachedContext, caches: Sequence[BranchCache]) -> None:
        for prefix, cache in zip(("", "cfg_"), caches, strict=False):
            tail = list(itertools.takewhile(lambda record: not record.computed, reversed(_records(cache))))
            setattr(context, f"{prefix}continuous_cached_steps", len(tail))
            setattr(context, f"{prefix}accumulated_residual_diff", sum(record.diff or 0.0 for record in tail))
            context.buffers[f"{prefix}nbytes"] = cache.nbytes

    def get_current_step(self) -> int:
        """The number of the step that has begun last, from 0; -1 before the first."""
        session = self._session()
        return -1 if session is None else session.clock.step

    def get_cached_steps(self) -> list[int]:
        """The numbers of the first chain's cached steps."""
        return self.get_context().cached_steps

    def get_cfg_cached_steps(self) -> list[int]:
        """The same for the second branch of guidance."""
        return self.get_context().cfg_cached_steps

    def get_residual_diffs(self) -> dict[str, Any]:
        """Step number (as text) to the diff that was measured on the first chain."""
        return self.get_context().residual_diffs

    def get_cfg_residual_diffs(self) -> dict[str, Any]:
        """The same for the second branch of guidance."""
        return self.get_context().cfg_residual_diffs

    def is_l1_diff_enabled(self) -> bool:
        """Whether the hidden states after the first blocks are compared, not what these blocks add."""
        threshold = self._options.extra.l1_hidden_states_diff_threshold
        return threshold is not None and as_number("l1_hidden_states_diff_threshold", threshold) > 0

    def is_calibrator_enabled(self) -> bool:
        """Whether skipped hidden states are predicted by a calibrator, not reused."""
        calibrator = self._options.calibrator
        return bool(calibrator and calibrator.enable_calibrator)

    def is_encoder_calibrator_enabled(self) -> bool:
        """The same for the encoder's hidden states."""
        calibrator = self._options.calibrator
        return bool(calibrator and calibrator.enable_encoder_calibrator)

    # -- inside

    def __getattr__(self, name: str) -> Any:
        hint = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    @property
    def _bound(self) -> TransformerState:
        state = None if self._state is None else self._state()
        if state is None:
            raise SessionError("this manager is on no cached transformer: assign it to transformer._context_manager")
        return state

    def _session(self) -> Session | None:
        request = current_request() or thread_request()
        state = self._bound
        return state.sessions.get(request.key, state.latest)

    def _index(self, name: str | None) -> int:
        names = self.context_names
        if name is None:
            return 0
        if name not in names:
            raise ContextNotExistError(f"name={name!r} is not valid: expected one of the chains {', '.join(names)}")
        return names.index(name)

    @property
    def _options(self) -> ChainOptions:
        options: ChainOptions = self._bound.chains[0][1]
        return options


def _records(cache: BranchCache) -> list[StepRecord]:
    """What happened to a cache's steps; where samples decide for themselves, to those of the first."""
    records: list[StepRecord] = next(iter(cache.policies().values())).records
    return records


_SIMILARITY = CachedContextManager.similarity


class PrunedContextManager(CachedContextManager):
    """The same for DBPrune; its ``similarity`` is asked for each block.

    Args:
        name: a name for it, for people.
        **kwargs: ``persistent_context``, as in ``CachedContextManager``.
    """

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)


class ContextManager:
    """``ContextManager(cache_type)`` makes the manager for a kind of cache.

    Args:
        cache_type: ``CacheType.DBCache`` or ``CacheType.DBPrune``, or a name of one.
        name, persistent_context: as in ``CachedContextManager``.

    Raises:
        ConfigError: another kind of cache.
    """

    def __new__(  # type: ignore[misc]
        cls, cache_type: CacheType, name: str = "default", persistent_context: bool = False
    ) -> CachedContextManager:
        """The manager."""
        kind = CacheType.type(cache_type)
        if kind is CacheType.DBCache:
            return CachedContextManager(name, persistent_context)
        if kind is CacheType.DBPrune:
            return PrunedContextManager(name, persistent_context=persistent_context)
        raise ConfigError(f"cache_type={cache_type!r} has no contexts: pass CacheType.DBCache or CacheType.DBPrune")


def make_manager(state: TransformerState, name: str = "default") -> CachedContextManager:
    """The manager of a transformer's state, bound to it; the state should keep it.

    Args:
        state: the state; its chains and options are known already.
        name: a name for the manager.
    """
    manager: CachedContextManager = ContextManager(state.config.cache_type, name)
    manager.bind(state)
    return manager
