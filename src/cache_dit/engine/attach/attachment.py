"""How a cache comes onto a transformer and its blocks, and how it leaves."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Sequence
from typing import Any

from cache_dit.engine.adapters.normalize import Target
from cache_dit.engine.adapters.search import base_of
from cache_dit.engine.attach.holders import ITSELF
from cache_dit.engine.attach.pipeline import PipelineState
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.attach.wrappers import (
    cached_block,
    cached_transformer,
    idle_module,
    named_transformer,
    observed_module,
)
from cache_dit.engine.subclass import state_of, unwrap, wrap
from cache_dit.errors import ConfigError, UnsupportedModelError

logger = logging.getLogger(__name__)


def states_on(transformer: Any) -> list[TransformerState]:
    """The states of a transformer, compiled or not: first that of calls outside of all holders, then the holders'."""
    module = base_of(transformer)
    for held in (module, getattr(module, "_orig_mod", None)):
        if isinstance(state := state_of(held), TransformerState):
            return list(dict.fromkeys((state, *state.holders.states.values())))
    return []


def state_for(transformer: Any, holder: Any = None) -> TransformerState | None:
    """The state of a holder's calls; for none in particular, that whose request was opened last; None: no cache."""
    states = states_on(transformer)
    own = states[0].holders.states.get(holder) if states and holder is not None else None
    return own or max(states, key=lambda state: state.opened_at, default=None)


def neighbour(target: Target, holder: Any, instead_of: Any = None) -> TransformerState | None:
    """The state on a transformer beside which ``holder`` can have its own; None where its own comes alone.

    Args:
        target: the transformer, as it is described for the holder.
        holder: a ``PipelineState``, or ``ITSELF``.
        instead_of: the holder whose place it takes.

    Raises:
        ConfigError: another pipeline holds it by other blocks, or in another form, compiled or not.
    """
    current = next(iter(states_on(target.transformer)), None)
    others = [] if current is None else [one for one in current.holders.states if one not in (holder, instead_of)]
    if current is None or not others:
        return None
    if current.owner() is target.transformer and current.holders.form == target.form():
        return current
    if holder is not ITSELF and others != [ITSELF]:
        raise ConfigError(
            f"{type(target.transformer).__name__} is cached for another pipeline by other blocks, or compiled for one "
            "of them alone: give both the same module and blocks, or call disable_cache on the other pipeline first"
        )
    return None


def replace_states(pairs: Sequence[tuple[Any, TransformerState]], holder: Any, instead_of: Any = None) -> None:
    """Put a holder's states on transformers, in place of what it had there; on failure everything is as before."""
    before = [states_on(transformer) for transformer, _ in pairs]
    given = [list(states[0].holders.states.items()) if states else [] for states in before]
    try:
        for (transformer, state), states, held in zip(pairs, before, given, strict=True):
            beside = bool(states) and states[0].holders is state.holders
            if states and not beside:
                _take_all_off(states[0])
            attach_transformer(transformer, state)
            others = [(one, known) for one, known in held if beside and one not in (holder, instead_of)]
            state.holders.give([*others, (holder, state)], state)
    except UnsupportedModelError:
        for (_, state), states, held in zip(pairs, before, given, strict=True):
            if state.owner() is not None:
                _take_all_off(state)
            if states:
                attach_transformer(states[0].owner(), states[0])
                states[0].holders.give(held, states[0])
        raise
    for (transformer, state), states in zip(pairs, before, strict=True):
        kept = states_on(transformer)
        for known in states:
            if known in kept:
                known.close_outside()
            else:
                known.close_all()
        if states and states[0].holders is not state.holders and _forget(states[0], but=(holder, instead_of)):
            logger.warning(
                "cache_dit: %s is cached by other blocks, or compiled, now: pipelines that were given options for it "
                "have these now",
                state.model_class,
            )


def attach_transformer(transformer: Any, state: TransformerState) -> None:
    """Put a state on a transformer and its roles on its blocks; on failure nothing of it is on."""
    state.owner = weakref.ref(transformer)
    try:
        attach_observers(state)
        for chain, _ in state.chains:
            for block, role in zip(chain.blocks, chain.roles, strict=True):
                wrap(block, cached_block, role)
        for module, idle_role in state.idle:
            wrap(module, idle_module, idle_role)
        wrap(transformer, cached_transformer, state)
        if (inner := getattr(transformer, "_orig_mod", None)) is not None:
            wrap(inner, named_transformer, state)
    except UnsupportedModelError:
        _take_all_off(state)
        raise


def attach_observers(state: TransformerState) -> None:
    """Put observers where the options ask for them, and none is yet."""
    for module, role in state.observers():
        wrap(module, observed_module, role)


def detach_transformer(transformer: Any) -> None:
    """Take the cache off a transformer and its blocks, for all holders; nothing happens where there is none."""
    states = states_on(transformer)
    for state in states:
        state.close_all()
    if states:
        _forget(states[0])
        _take_all_off(states[0])


def release_transformer(transformer: Any, holder: Any, pipe: Any) -> None:
    """Take a pipeline's options off a transformer, and the whole cache where they were the last ones.

    Args:
        transformer: the transformer.
        holder: the pipeline's state.
        pipe: the pipeline.
    """
    state = next(iter(states_on(transformer)), None)
    if state is None:
        return
    holders = state.holders
    gone = holders.states.pop(holder, None)
    left = list(holders.states.items())
    if gone is not None:
        gone.close_all()
    if not left:
        detach_transformer(transformer)
        return
    with contextlib.suppress(TypeError):  # an object that nothing can refer to weakly is not remembered
        holders.left[id(pipe)] = pipe
    last = left[-1][1] if state is gone else state
    attach_transformer(state.owner(), last)
    holders.give(left, last)


def released(transformer: Any, pipe: Any) -> bool:
    """Whether a pipeline's options were taken off already, and what is on the transformer is that of others."""
    states = states_on(transformer)
    return bool(states) and states[0].holders.left.get(id(pipe)) is pipe


def _forget(state: TransformerState, but: Sequence[Any] = ()) -> bool:
    """Tell the pipelines that had a cache on a transformer that it is no more; whether there were any."""
    owner: Any = state.owner()
    pipelines = [one for one in state.holders.states if isinstance(one, PipelineState) and one not in but]
    for holder in pipelines:
        holder.forget((owner, getattr(owner, "_orig_mod", owner)))
    return bool(pipelines)


def _take_all_off(state: TransformerState) -> None:
    """Give a transformer and its blocks their classes back."""
    for chain, _ in state.chains:
        for block in chain.blocks:
            unwrap(block)
    for module, _ in (*state.idle, *state.observed):
        unwrap(module)
    owner = state.owner()
    for held in (owner, getattr(owner, "_orig_mod", None)):
        if held is not None:
            unwrap(held)
