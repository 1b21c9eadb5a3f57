"""From a description and options to a transformer's state, all of it checked; how this comes on, and how it leaves."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cache_dit.config.base import defaults_of
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.modifier import effective
from cache_dit.engine.adapters.normalize import ChainSpec, Target, alike
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.attach.pipeline import ITSELF, Holders, PipelineState
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.attach.wrappers import (
    cached_block,
    cached_transformer,
    idle_module,
    named_transformer,
    observed_module,
)
from cache_dit.engine.forward.chain import Chain, IdleRole
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.subclass import base_of, state_of, unwrap, wrap
from cache_dit.errors import ConfigError, UnsupportedModelError

logger = logging.getLogger(__name__)

#: Options that are read from the first chain of a transformer.
_OF_THE_WHOLE = (
    "num_inference_steps",
    "enable_separate_cfg",
    "cfg_compute_first",
    "force_refresh_step_hint",
    "force_refresh_step_policy",
    "conditioning_diff_threshold",
    "max_sessions",
    "plan",
)


def build_state(
    target: Target,
    cache_config: BasicCacheConfig,
    calibrator_config: CalibratorConfig | None,
    *,
    separate_cfg: bool,
    rules: CallRules,
    holder: Any,
    instead_of: Any = None,
    scheduler: Any = None,
) -> TransformerState:
    """The state that puts a cache with these options on a transformer; nothing is put on yet.

    Args:
        target: the transformer and its chains.
        cache_config, calibrator_config: the options.
        separate_cfg: whether unnamed calls are the branches of classifier-free guidance in turn.
        rules: what its record says of its calls.
        holder: who is given the options: a ``PipelineState``, or ``ITSELF``.
        instead_of: the holder whose place it takes.
        scheduler: its pipeline's, or None.

    Raises:
        ConfigError: if the options do not fit the model, it has a cache of diffusers on, or another pipeline holds it
            by other blocks.
        PatternMismatchError: if a block is not called as its pattern says.
    """
    _refuse_second_cache(target.transformer)
    beside = _neighbour(target, holder, instead_of)
    asked = cache_config.enable_separate_cfg
    chains = []
    for index, spec in enumerate(target.chains):
        options = ChainOptions(*effective(cache_config, calibrator_config, spec.modifier))
        known = build_chain(spec, type(target.transformer).__name__) if beside is None else beside.chains[index][0]
        chains.append((known, options))
    _refuse_repeated(chain for chain, _ in chains)
    for spec, (_, options) in zip(target.chains[1:], chains[1:], strict=True):
        _refuse_differing(spec, options, chains[0][1])
    if beside is None:
        idle = [(module, IdleRole(chains[0][0], argument)) for module, argument in target.idle]
    else:
        idle = beside.idle
    state = TransformerState(
        getattr(target.transformer, "_orig_mod", target.transformer),
        chains,
        separate_cfg=separate_cfg if asked is None else asked,
        rules=rules,
        holders=Holders(target.chains, target.idle) if beside is None else beside.holders,
    )
    state.idle = idle
    if beside is not None:
        state.observed, state.router.branch = beside.observed, beside.router.branch
    state.configure(state.options, scheduler)
    for options in state.options:
        if scheduler is not None and options.cache.policy_calibration is not None:
            options.cache.policy_calibration.check(scheduler=type(scheduler).__name__)
    return state


def reconfigured(
    state: TransformerState, changes: Mapping[str, Any], calibrator_config: CalibratorConfig | None
) -> list[ChainOptions]:
    """The options of each of a state's chains with ``changes`` laid over them.

    Raises:
        ConfigError: if they do not fit the model.
    """
    return state.check([options.under(changes, calibrator_config) for options in state.options])


def build_chain(spec: ChainSpec, owner: str) -> Chain:
    """A chain with a role for each block.

    Args:
        spec: where its blocks are.
        owner: the transformer's class name, for messages.

    Raises:
        PatternMismatchError: if a block is not called as its pattern says.
    """
    rounds = len(spec.lists) if spec.interleave else 1
    name, calls = spec.name, spec.calls()
    chain = Chain(name, join=spec.join, rounds=rounds, long_skip=spec.long_skip, owner=owner)
    for index, block, io in calls:
        chain.add(block, index, io)
    return chain


def _refuse_second_cache(transformer: Any) -> None:
    if getattr(transformer, "is_cache_enabled", False):
        raise ConfigError(
            f"{type(transformer).__name__} has a cache of diffusers on already, and two would skip twice: "
            f"call transformer.disable_cache() first"
        )


def _refuse_differing(spec: ChainSpec, options: ChainOptions, first: ChainOptions) -> None:
    """Raise ``ConfigError`` where a modifier says something for a chain that concerns the transformer as a whole."""
    own = spec.modifier.cache_config.given() if spec.modifier and spec.modifier.cache_config else {}
    usual = defaults_of(type(options.cache))
    for name in _OF_THE_WHOLE:
        differs = getattr(options.cache, name) != getattr(first.cache, name)
        if differs and own.get(name, usual[name]) != usual[name]:
            raise ConfigError(
                f"{name} concerns the transformer as a whole and cannot differ for {spec.name}: give it to "
                f"enable_cache, or to the modifier of its first chain"
            )


def _refuse_repeated(chains: Iterable[Chain]) -> None:
    seen: set[int] = set()
    for chain in chains:
        for block in chain.blocks:
            if id(block) in seen:
                raise ConfigError(
                    f"one {type(block).__name__} instance stands twice in {chain.name}: it cannot play two parts"
                )
            seen.add(id(block))


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


def _neighbour(target: Target, holder: Any, instead_of: Any = None) -> TransformerState | None:
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
    if current.owner() is target.transformer and alike(target, current.holders.chains, current.holders.idle):
        return current
    if holder is not ITSELF and others != [ITSELF]:
        raise ConfigError(
            f"{current.model_class} is cached for another pipeline by other blocks, or compiled for one "
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
            others = [(one, known) for one, known in held if beside and one not in (holder, instead_of)]
            _give(state, [*others, (holder, state)])  # first: others' calls may be under way
            attach_transformer(transformer, state)
    except UnsupportedModelError:
        for (_, state), states, held in zip(pairs, before, given, strict=True):
            if state.owner() is not None:
                _take_all_off(state)
            if states:
                attach_transformer(states[0].owner(), states[0])
                _give(states[0], held)
        raise
    for (transformer, state), states in zip(pairs, before, strict=True):
        kept = states_on(transformer) if states else []
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
    for module, role in list(state.observers()):
        try:
            wrap(module, observed_module, role)
        except UnsupportedModelError:
            state.observed.remove((module, role))  # other holders have the same list
            raise


def detach_transformer(transformer: Any) -> bool:
    """Take the cache off a transformer and its blocks, for all holders; whether any pipeline was one of them."""
    states = states_on(transformer)
    for state in states:
        state.close_all()
    pipelines = bool(states) and _forget(states[0])
    if states:
        _take_all_off(states[0])
    return pipelines


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
    _give(last, left)


def _give(last: TransformerState, states: Sequence[tuple[Any, TransformerState]]) -> None:
    """Let these be the holders and their states; all other calls have the state ``last``."""
    holders = last.holders
    holders.states = weakref.WeakKeyDictionary(states)
    holders.several = not all(state is last for _, state in states)


def released(transformer: Any, pipe: Any) -> bool:
    """Whether a pipeline's options were taken off already, and what is on the transformer is that of others."""
    states = states_on(transformer)
    return bool(states) and pipe is not None and states[0].holders.left.get(id(pipe)) is pipe


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
