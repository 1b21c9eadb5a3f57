"""From a description and options to a transformer's state, everything checked, nothing put on yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cache_dit.config.base import defaults_of
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.modifier import effective
from cache_dit.engine.adapters.normalize import ChainSpec, Target
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.attach.holders import Holders
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.forward.chain import Chain, IdleRole
from cache_dit.engine.options import ChainOptions
from cache_dit.errors import ConfigError

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
    scheduler: Any = None,
    beside: TransformerState | None = None,
) -> TransformerState:
    """The state that puts a cache with these options on a transformer.

    Args:
        target: the transformer and its chains.
        cache_config, calibrator_config: the options.
        separate_cfg: whether unnamed calls are the branches of classifier-free guidance in turn.
        rules: what its record says of its calls.
        scheduler: its pipeline's, or None.
        beside: the state of another holder, whose roles its blocks have already.

    Raises:
        ConfigError: if the options do not fit the model, or it has a cache of diffusers on.
        PatternMismatchError: if a block is not called as its pattern says.
    """
    _refuse_second_cache(target.transformer)
    asked = cache_config.enable_separate_cfg
    chains = []
    for index, spec in enumerate(target.chains):
        options = ChainOptions(*effective(cache_config, calibrator_config, spec.modifier))
        known = build_chain(spec, type(target.transformer).__name__) if beside is None else beside.chains[index][0]
        chains.append((known, options))
    _refuse_repeated(chain for chain, _ in chains)
    for spec, (_, options) in zip(target.chains[1:], chains[1:], strict=True):
        _refuse_differing(spec, options, chains[0][1])
    state = TransformerState(
        getattr(target.transformer, "_orig_mod", target.transformer),
        chains,
        separate_cfg=separate_cfg if asked is None else asked,
        rules=rules,
        holders=Holders(target.form()) if beside is None else beside.holders,
    )
    if beside is None:
        state.idle = [(module, IdleRole(chains[0][0], argument)) for module, argument in target.idle]
    else:
        state.idle, state.observed = beside.idle, beside.observed
        state.router.branch = beside.router.branch
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
