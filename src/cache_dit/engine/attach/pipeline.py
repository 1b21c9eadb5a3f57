"""The pipeline's part: a call of it is a request, with the options that the pipeline was given."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_dit.engine.adapters.normalize import ChainSpec
from cache_dit.engine.attach.manager import manager_of, set_manager
from cache_dit.engine.plans.call import arguments_of, host_values
from cache_dit.engine.sessions.request import Request, current_request
from cache_dit.engine.subclass import STATE, base_of, state_of

logger = logging.getLogger(__name__)


class _Itself:
    """Stands for the transformer itself, where no pipeline was given the options."""


ITSELF = _Itself()


class PipelineState:
    """What a cached pipeline knows of its cache. It is the holder of its options, and keeps no transformer alive.

    Args:
        transformers: its cached transformers, by the pipeline's attribute that holds them, or a number where none does.
        enable: puts the cache, with the same options, on a transformer that took the place of the one in an attribute.
    """

    def __init__(
        self,
        transformers: Mapping[str | int, Any],
        enable: Callable[[PipelineState, str, torch.nn.Module], None],
    ) -> None:
        self._known = {place: weakref.ref(transformer) for place, transformer in transformers.items()}
        self._enable = enable
        self._replaced: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def transformers(self) -> list[Any]:
        """Its cached transformers, as far as they are still there."""
        return [transformer for known in self._known.values() if (transformer := known()) is not None]

    @property
    def ever_cached(self) -> list[Any]:
        """These, and those that others took the place of."""
        return list({*self.transformers, *self._replaced})

    def forget(self, forms: Sequence[Any]) -> None:
        """The cache was taken off a transformer, given in all its forms: what takes its place gets none either."""
        self._known = {place: known for place, known in self._known.items() if known() not in forms}
        self._replaced -= set(forms)

    def begin(self, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Request:
        """A request for one call of the pipeline."""
        self._follow(pipe)
        # of several transformers each makes a part of the steps: how many, only its own options can say
        given = arguments_of(pipe, args, kwargs)
        steps = None if len(self._known) > 1 else _steps(given)
        scheduler = getattr(pipe, "scheduler", None)
        return Request(
            object(),
            steps,
            counts_down=False,
            scheduler=scheduler,
            outer=current_request(),
            scheduled=None if self._in_parts(pipe) else _scheduled(pipe, scheduler),
            arguments=host_values(given),
            holder=weakref.ref(self),
        )

    def _in_parts(self, pipe: Any) -> bool:
        """Whether each of several transformers of one kind, cached or not, makes a part of the steps."""
        held = [_kind(value) for value in vars(pipe).values()]
        return len(self._known) > 1 or any(held.count(_kind(one)) > 1 for one in self.transformers)

    def end(self, request: Request) -> None:
        """Free what the call kept."""
        request.close()

    def _follow(self, pipe: Any) -> None:
        """Cache a transformer that was put in the place of a cached one."""
        for attribute, ref in list(self._known.items()):
            if isinstance(attribute, int):
                continue
            known, module = ref(), base_of(getattr(pipe, attribute, None))
            if module is known or not isinstance(module, torch.nn.Module):
                continue
            if known is not None:
                if getattr(module, "_orig_mod", None) is known:  # compiled meanwhile: calls still reach the cached one
                    continue
                self._replaced.add(known)
            self._known[attribute] = weakref.ref(module)
            state = state_of(module)
            if state is None or state.owner() is not module or not {self, ITSELF} & set(state.holders.states):
                logger.warning(
                    "cache_dit: %s.%s is another module now: enabling the cache on it", type(pipe).__name__, attribute
                )
                self._enable(self, attribute, module)


def _kind(value: Any) -> str:
    """The name of an object's class, of what is inside where it is compiled; a cached one has its class's name."""
    return type(getattr(value, "_orig_mod", value)).__name__


def _scheduled(pipe: Any, scheduler: Any) -> Callable[[], int | None]:
    """What tells, once a run of a pipeline's call has begun, how many steps its scheduler has for it.

    That is the rest of its timesteps: a scheduler of second order has each but the first twice, and image-to-image
    begins within them. None where the call has not set the scheduler's timesteps, or makes more steps than it has.
    """
    before, owner = getattr(scheduler, "timesteps", None), weakref.ref(pipe)
    vars(pipe).pop("_num_timesteps", None)  # that of another call

    def scheduled() -> int | None:
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None or timesteps is before or not getattr(timesteps, "ndim", hasattr(timesteps, "__len__")):
            return None
        left = len(timesteps) - (getattr(scheduler, "begin_index", None) or 0)
        told = getattr(owner(), "_num_timesteps", left)  # what diffusers' pipelines say of the loop to come
        if not isinstance(told, int) or told > len(timesteps):
            return None
        return min(left, told) if min(left, told) > 0 else None

    return scheduled


@dataclass(eq=False)
class Holders:
    """What all states of one transformer share; each has the options of one holder.

    A pipeline's calls have the options that it was given, all other calls those that were given last.

    Args:
        chains, idle: how the transformer is described, which is the same for all.
        states: holder -> its ``TransformerState``, in the order of giving. A pipeline that goes is none any more.
        several: whether some holder's calls have other options than those that were given last.
        left: the pipelines, by id, whose options were taken off while others had theirs: these stay when asked again.
    """

    chains: tuple[ChainSpec, ...]
    idle: tuple[tuple[torch.nn.Module, str], ...]
    states: weakref.WeakKeyDictionary[Any, Any] = field(default_factory=weakref.WeakKeyDictionary)
    several: bool = False
    left: weakref.WeakValueDictionary[int, Any] = field(default_factory=weakref.WeakValueDictionary)

    def state_of_call(self, entered: Sequence[Request], last: Any) -> Any:
        """The state of a call made inside these requests: that of the innermost pipeline's call, else ``last``."""
        for request in reversed(entered):
            holder = None if request.holder is None else request.holder()
            if holder is not None and (state := self.states.get(holder)) is not None:
                return state
        return last


def _steps(given: Mapping[str, Any]) -> int | None:
    """The number of steps of a pipeline's call: of its own schedule, or its ``num_inference_steps``."""
    for name in ("timesteps", "sigmas"):  # a schedule of one's own comes before a number
        schedule = given.get(name)
        if schedule is not None and hasattr(schedule, "__len__"):
            return len(schedule)
    # a pipeline that has both denoises with a U-Net after its prior, and the prior is what can be cached
    numbers = (given.get(f"{part}num_inference_steps") for part in ("prior_", ""))
    return next((steps for steps in numbers if isinstance(steps, int) and steps > 0), None)


def cached_pipeline(base: Any, metaclass: Any) -> type:
    """The subclass of a pipeline's class: each call is a request of its own."""

    class _Kept(metaclass):  # type: ignore[misc]
        """Servers delete ``_is_cached`` from the class, where the reference keeps it, to enable a second pipeline."""

        def __delattr__(cls, name: str) -> None:
            if name != "_is_cached":
                super().__delattr__(name)

    class CachedPipeline(base, metaclass=_Kept):  # type: ignore[misc]
        _is_cached = True

        @functools.wraps(base.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            state = self.__dict__.get(STATE)
            if state is None:  # somebody may have kept this method from when the cache was on
                return base.__call__(self, *args, **kwargs)
            request = state.begin(self, args, kwargs)
            with request:
                try:
                    return super().__call__(*args, **kwargs)
                finally:
                    state.end(request)

        @property
        def _context_manager(self) -> Any:
            """The manager of the first transformer's cache for this pipeline's calls, as servers ask for it."""
            return manager_of(_first_state(self))

        @_context_manager.setter
        def _context_manager(self, manager: Any) -> None:
            set_manager(_first_state(self), manager)

    return CachedPipeline


def _first_state(pipe: Any) -> Any:
    """The state of a pipeline's first transformer that has the pipeline's options."""
    holder = pipe.__dict__.get(STATE)
    for transformer in () if holder is None else holder.transformers:
        state = state_of(transformer)
        if state is not None:
            return state.holders.states.get(holder, state)
    raise AttributeError(f"no cache is on this {type(pipe).__name__}'s transformer: it has no _context_manager")
