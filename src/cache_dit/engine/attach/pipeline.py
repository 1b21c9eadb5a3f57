"""The pipeline's part: a call of it is a request."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from cache_dit.engine.plans.call import arguments_of, host_values
from cache_dit.engine.sessions.request import Request, current_request
from cache_dit.engine.subclass import STATE, state_of

logger = logging.getLogger(__name__)


class PipelineState:
    """What a cached pipeline knows of its cache.

    Args:
        transformers: its cached transformers, by the pipeline's attribute that holds them.
        enable: puts the cache, with the same options, on a transformer that took the place of the one in an attribute.
    """

    def __init__(self, transformers: Mapping[str, Any], enable: Callable[[str, Any], Any]) -> None:
        self.transformers = dict(transformers)
        self.enable = enable
        self.replaced: weakref.WeakSet[Any] = weakref.WeakSet()

    def begin(self, pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Request:
        """A request for one call of the pipeline."""
        self._follow(pipe)
        # of several transformers each makes a part of the steps: how many, only its own options can say
        given = arguments_of(pipe, args, kwargs)
        steps = None if len(self.transformers) > 1 else _steps(given)
        scheduler = getattr(pipe, "scheduler", None)
        return Request(
            object(),
            steps,
            counts_down=False,
            scheduler=scheduler,
            outer=current_request(),
            scheduled=None if self._in_parts(pipe) else _scheduled(pipe, scheduler),
            arguments=host_values(given),
        )

    def _in_parts(self, pipe: Any) -> bool:
        """Whether each of several transformers of one kind, cached or not, makes a part of the steps."""
        held = [_kind(value) for value in vars(pipe).values()]
        return len(self.transformers) > 1 or any(held.count(_kind(one)) > 1 for one in self.transformers.values())

    def end(self, request: Request) -> None:
        """Free what the call kept."""
        request.close()

    def _follow(self, pipe: Any) -> None:
        """Cache a transformer that was put in the place of a cached one."""
        for attribute, known in self.transformers.items():
            module = getattr(pipe, attribute, None)
            if module is known or module is None or state_of(known) is None:  # None: its cache was taken off meanwhile
                continue
            if getattr(module, "_orig_mod", None) is known:  # compiled meanwhile: calls still reach the cached one
                continue
            self.replaced.add(known)
            self.transformers[attribute] = module
            state = state_of(module)
            if state is None or state.owner() is not module:
                logger.warning(
                    "cache_dit: %s.%s is another module now: enabling the cache on it", type(pipe).__name__, attribute
                )
                self.enable(attribute, module)


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
            """The manager of the first transformer's cache, as servers ask a pipeline for it."""
            return next(iter(self.__dict__[STATE].transformers.values()))._context_manager

        @_context_manager.setter
        def _context_manager(self, manager: Any) -> None:
            next(iter(self.__dict__[STATE].transformers.values()))._context_manager = manager

    return CachedPipeline
