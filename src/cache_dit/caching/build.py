"""From a description and options to a transformer's state, everything checked, nothing put on yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from cache_dit.caching.adapter import ChainSpec, Target, block_io
from cache_dit.caching.chain import Chain, IdleRole
from cache_dit.caching.pattern import CallRules
from cache_dit.caching.session import ChainOptions
from cache_dit.caching.transformer import TransformerState
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.modifier import ParamsModifier, effective, overlay
from cache_dit.errors import ConfigError


def build_state(
    target: Target,
    cache_config: BasicCacheConfig,
    calibrator_config: CalibratorConfig | None,
    *,
    separate_cfg: bool,
    rules: CallRules,
) -> TransformerState:
    """The state that puts a cache with these options on a transformer.

    Raises:
        ConfigError: if the options do not fit the model.
        PatternMismatchError: if a block is not called as its pattern says.
    """
    asked = cache_config.enable_separate_cfg
    chains = []
    for spec in target.chains:
        options = ChainOptions(*effective(cache_config, calibrator_config, spec.modifier))
        chains.append((build_chain(spec, options, type(target.transformer).__name__), options))
    _refuse_repeated(chain for chain, _ in chains)
    state = TransformerState(
        getattr(target.transformer, "_orig_mod", target.transformer),
        chains,
        separate_cfg=separate_cfg if asked is None else asked,
        rules=rules,
    )
    state.target = target
    state.idle = [(module, IdleRole(chains[0][0], argument)) for module, argument in target.idle]
    return state


def rebuild_state(
    state: TransformerState, changes: Mapping[str, Any], calibrator_config: CalibratorConfig | None
) -> TransformerState:
    """The same state with changed options: those of each chain with ``changes`` laid over them."""
    if state.target is None:
        raise ConfigError("this transformer's cache was not built from a description")
    sparse = type(state.config)().reset(**changes) if changes else None
    specs = []
    for spec, (_, options) in zip(state.target.chains, state.chains, strict=True):
        cache = overlay(options.cache, {} if sparse is None else sparse.given())
        calibrator = effective(options.cache, options.calibrator, ParamsModifier(None, calibrator_config))[1]
        specs.append(replace(spec, modifier=ParamsModifier(cache, calibrator)))
    target = replace(state.target, chains=tuple(specs))
    # Each chain's options are complete: none may come from another chain.
    base = type(state.config)()
    if sparse is not None and sparse.enable_separate_cfg is not None:
        base.enable_separate_cfg = sparse.enable_separate_cfg
    return build_state(target, base, None, separate_cfg=state.separate_cfg, rules=state.rules)


def build_chain(spec: ChainSpec, options: ChainOptions, owner: str) -> Chain:
    """A chain with a role for each block.

    Args:
        spec: where its blocks are.
        options: its configuration.
        owner: the transformer's class name, for messages.

    Raises:
        ConfigError: if Fn or Bn exceed the number of blocks, or the predictor is unknown.
        PatternMismatchError: if a block is not called as its pattern says.
    """
    options.predictors()
    length = sum(len(blocks.blocks) for blocks in spec.lists)
    front, back = options.cache.Fn_compute_blocks, options.cache.Bn_compute_blocks
    if spec.interleave:  # the middle begins and ends in the last list, whose layout the residual has
        rounds = len(spec.lists)
        front, back = rounds * front + rounds - 1, rounds * back
    if front + back > length:
        raise ConfigError(
            f"Fn_compute_blocks={front} and Bn_compute_blocks={back} exceed the {length} blocks of {spec.name} "
            f"in {owner}: pass smaller ones, for example DBCacheConfig(Fn_compute_blocks=1)"
        )
    chain = Chain(
        spec.name,
        front=front,
        back=back,
        join=spec.join,
        keeps_state=options.keeps_state,
        measures=not options.cache.is_static,
    )
    for index, block in spec.ordered():
        chain.add(block, index, block_io(block, spec.lists[index], strict=spec.strict))
    chain.set_back(back)
    return chain


def _refuse_repeated(chains: Iterable[Chain]) -> None:
    seen: set[int] = set()
    for chain in chains:
        for block in chain.blocks:
            if id(block) in seen:
                raise ConfigError(
                    f"one {type(block).__name__} instance stands twice in {chain.name}: it cannot play two parts"
                )
            seen.add(id(block))
