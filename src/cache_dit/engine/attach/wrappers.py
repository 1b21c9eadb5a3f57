"""What the subclasses of a block's and a transformer's class add to it: where the model's calls meet the cache.

Somebody may have kept a ``__call__`` of theirs, as ``torch.compile`` does of what it wraps, and call it when the
instance has its own class again. Then it is the plain one, which ``super()`` would not find.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cache_dit.engine.adapters.pattern import argument_names
from cache_dit.engine.attach.manager import manager_of, set_manager
from cache_dit.engine.forward.chain import ASK, FILL, LEAVE, WATCH, trace_by
from cache_dit.engine.subclass import STATE


def cached_block(base: Any, metaclass: Any) -> type:
    """The subclass of a block's class: it does what the forward under way has for it.

    This is what a compiled model traces: it reads only what is the same for every full step and for every cached one.
    """

    class CachedBlock(base, metaclass=metaclass):  # type: ignore[metaclass, misc]
        @functools.wraps(base.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            role = self.__dict__.get(STATE)
            if role is None:
                return base.__call__(self, *args, **kwargs)
            forward = role.current.forward
            if forward is None:
                return base.__call__(self, *args, **kwargs)
            place = role.position
            if place <= forward.position:
                forward = forward.next_pass()
            forward.position = place
            part = forward.parts[place]
            if part <= LEAVE:
                output = super().__call__(*args, **kwargs)  # not base's: the compiler knows nothing of that form
                forward.executed += 1
                if part == LEAVE:
                    forward.last = role, output
                return output
            if part == ASK:
                return forward.middle(role, super().__call__, args, kwargs)
            if part == WATCH:
                return forward.front(role, super().__call__, args, kwargs)
            forward.skipped += 1
            io, form = role.io, forward.forms[place]
            if part == FILL:
                forward.owes = False
                hidden, encoder = forward.out_hidden, forward.out_encoder
            else:  # what ``read`` does, without calling it
                given, at, then = len(args), io.hidden_at, io.encoder_at
                hidden = kwargs[io.hidden] if io.hidden in kwargs else args[at] if at < given else None
                encoder = kwargs[io.encoder] if io.encoder in kwargs else args[then] if then < given else None
            if form[0] != 2 or hidden is None:
                return io.build(*((hidden, encoder) if part == FILL else io.read(args, kwargs)), form)
            # what ``build`` does with the most usual form
            second = encoder if form[1] else form[2]
            return (hidden, second) if io.hidden_first else (second, hidden)

    return CachedBlock


def idle_module(base: Any, metaclass: Any) -> type:
    """The subclass of a module between blocks: it hands H back while the blocks around it are skipped."""
    names = argument_names(base.forward)

    class IdleModule(base, metaclass=metaclass):  # type: ignore[metaclass, misc]
        @functools.wraps(base.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            role = self.__dict__.get(STATE)
            if role is None or not role.idles():
                return base.__call__(self, *args, **kwargs)
            return kwargs[role.argument] if role.argument in kwargs else args[names.index(role.argument)]

    return IdleModule


def observed_module(base: Any, metaclass: Any) -> type:
    """The subclass of a module whose input a decision is made by."""

    class ObservedModule(base, metaclass=metaclass):  # type: ignore[metaclass, misc]
        @functools.wraps(base.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            role = self.__dict__.get(STATE)
            if role is not None:
                role.see(args, kwargs)
            return base.__call__(self, *args, **kwargs)

    return ObservedModule


def cached_transformer(base: Any, metaclass: Any) -> type:
    """The subclass of a transformer's class: a step begins and ends here.

    ``__call__`` itself is never traced, what it calls is: the step's number stays outside of compiled code.
    """

    class CachedTransformer(base, metaclass=metaclass):  # type: ignore[metaclass, misc]
        @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
        @functools.wraps(base.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            state = self.__dict__.get(STATE)
            if state is not None and state.owner() is not self:  # the compiled wrapper around it counts
                state = None
            forward = None
            while state is not None:
                traces = trace_by(None)
                try:
                    forward = state.begin(self, args, kwargs, again=forward)
                finally:
                    trace_by(traces)
                if forward is None:
                    break
                try:
                    output = base.__call__(self, *args, **kwargs)
                    traces = trace_by(None)
                    try:
                        if forward.state.end(forward, output):
                            return output
                    finally:
                        trace_by(traces)
                except BaseException:
                    forward.state.abandon(forward)
                    raise
                args, kwargs = forward.arguments
            with contextlib.nullcontext() if state is None else state.set_aside():
                return base.__call__(self, *args, **kwargs)

    if hasattr(base, "cache_context"):
        CachedTransformer.cache_context = _cache_context(CachedTransformer)
    CachedTransformer._context_manager = property(_manager, _set_manager)
    return CachedTransformer


def named_transformer(base: Any, metaclass: Any) -> type:
    """The subclass of a compiled transformer's inner class: only ``cache_context``, since its caller is the wrapper."""

    class NamedTransformer(base, metaclass=metaclass):  # type: ignore[metaclass, misc]
        pass

    if hasattr(base, "cache_context"):
        NamedTransformer.cache_context = _cache_context(NamedTransformer)
    NamedTransformer._context_manager = property(_manager, _set_manager)
    return NamedTransformer


def _manager(self: Any) -> Any:
    """What servers know as a cached transformer's ``_context_manager``."""
    state = self.__dict__.get(STATE)
    if state is None:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute '_context_manager': no cache is on it")
    return manager_of(state)


def _set_manager(self: Any, manager: Any) -> None:
    state = self.__dict__.get(STATE)
    if state is None:
        raise AttributeError(f"no cache is on this {type(self).__name__}: enable it before setting _context_manager")
    set_manager(state, manager)


def _cache_context(owner: Any) -> Callable[..., Any]:
    """diffusers' ``cache_context`` for a subclass: the branch's name reaches the cache too."""

    @contextlib.contextmanager
    def cache_context(self: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        state = self.__dict__.get(STATE)
        name = args[0] if args else kwargs.get("name")
        named = contextlib.nullcontext() if state is None else state.router.branch_named(name)
        with named, super(owner, self).cache_context(*args, **kwargs):
            yield

    return cache_context
