"""Runs under observation: no step is cached, and an observer is told of each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from cache_dit.api import caches_of, disable_cache, enable_cache
from cache_dit.config.cache import DBCacheConfig
from cache_dit.engine.attach.build import states_on
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.forward.branch_cache import ChainForward
from cache_dit.engine.sessions.session import Session
from cache_dit.engine.state.measure import first_tensor
from cache_dit.errors import ConfigError

_Result = TypeVar("_Result")


class Observer:
    """Told of the computed steps of a run. Subclasses take note of what they are for.

    Args:
        state: of the transformer.
    """

    def __init__(self, state: TransformerState) -> None:
        self.state = state
        #: The first request of the run, and its scheduler where a pipeline's call is known.
        self.session: Session | None = None
        self.scheduler: Any = None
        #: The host values of that call's arguments, where it is known.
        self.call: Mapping[str, Any] | None = None
        #: How many steps were seen.
        self.steps = 0

    def __call__(self, made: ChainForward, output: Any) -> None:
        """Take note of a computed step of one branch of one chain.

        Args:
            made: the chain's pass.
            output: what the transformer returned.
        """
        if made.snapshot_hidden is None:
            return
        if self.session is None:
            call: Any = made.call
            self.session = call.session
            self.scheduler, self.call = call.request.scheduler, call.request.arguments
        self.steps = max(self.steps, made.call.step + 1)
        self.see(made, first_tensor(output))

    def see(self, made: ChainForward, output: torch.Tensor | None) -> None:
        """Take note of a step whose feature is known: what the middle blocks add, ``made.snapshot_hidden``."""
        raise NotImplementedError


@contextlib.contextmanager
def observable(holder: Any, config: DBCacheConfig, *, several: str) -> Iterator[TransformerState]:
    """The state of the one transformer of a pipeline; inside, a cache is on: the one that was, or else one for this.

    Args:
        holder: a pipeline or a transformer.
        config: the cache to put on where there is none.
        several: what to do where there are several transformers, for the message.

    Raises:
        ConfigError: there are several transformers.
    """
    own = not caches_of(holder)
    if own:
        enable_cache(holder, config)
    try:
        found = caches_of(holder)
        if len(found) != 1:
            raise ConfigError(f"there are {len(found)} transformers: {several}")
        yield found[0][1]
    finally:
        if own:
            disable_cache(holder)


def observe(observer: Observer, run: Callable[[], _Result]) -> _Result:
    """Make a run in which no step is cached, and tell an observer of each; gives what the run gave.

    Raises:
        ConfigError: there was nothing to see.
    """
    states = states_on(observer.state.owner())  # a pipeline's calls in the run may have options of its own
    for state in states:
        state.close_all()
        state.observer = observer
    try:
        made = run()
    finally:
        for state in states:
            state.close_all()  # while it is observed, so that nobody asks why nothing was cached
            state.observer = None
    if not observer.steps:
        raise ConfigError(
            "run() never called the transformer under torch.no_grad(), or no step of it had blocks to skip: nothing "
            "was seen"
        )
    return made
