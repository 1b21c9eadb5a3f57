"""The functions a user calls: put a cache on, take it off, renew it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from cache_dit.config.base import refuse_unbuilt
from cache_dit.config.cache import BasicCacheConfig, CacheType, DBCacheConfig
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.config.modifier import ParamsModifier, check_classes, flat_options, overlay, refresh_options
from cache_dit.config.parallelism import ParallelismConfig
from cache_dit.engine.adapters.block_adapter import BlockAdapter, FakeDiffusionPipeline
from cache_dit.engine.adapters.normalize import Target, as_list
from cache_dit.engine.attach.build import (
    attach_observers,
    build_state,
    detach_transformer,
    reconfigured,
    release_transformer,
    released,
    replace_states,
    state_for,
    states_on,
)
from cache_dit.engine.attach.pipeline import ITSELF, PipelineState, cached_pipeline
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.subclass import STATE, base_of, unwrap, wrap
from cache_dit.errors import CacheDitError, ConfigError, UnsupportedModelError

logger = logging.getLogger(__name__)

Cacheable = TypeVar("Cacheable")


def enable_cache(
    pipe_or_adapter: Cacheable,
    cache_config: BasicCacheConfig | Plan | str | os.PathLike[str] | None = None,
    calibrator_config: CalibratorConfig | None = None,
    params_modifiers: ParamsModifier | list[ParamsModifier] | list[list[ParamsModifier]] | None = None,
    parallelism_config: Any = None,
    *,
    attention_backend: Any = None,
    quantize_config: Any = None,
    **kwargs: Any,
) -> Cacheable:
    """Put a cache on a pipeline, a described model or a bare transformer; it is used as before.

    Calling it again on the same object replaces the configuration. Two pipelines with one transformer each have their
    own; calls of the transformer outside of both have the one given last. Where anything is wrong, nothing has changed.

    Args:
        pipe_or_adapter: a diffusers pipeline, modular or not, a ``BlockAdapter``, or a transformer; of a PEFT model
            its base is cached.
        cache_config: when to compute. A ``Plan``, or the path of one, is ``DBCacheConfig(plan=…)``. Where no option at
            all is given, this and ``calibrator_config`` are those of ``cache_dit.preset(pipe)``; where only others are,
            it is ``DBCacheConfig()``, with Fn such that blocks are left to skip.
        calibrator_config: how skipped steps are predicted; by reuse of the last computed step when None.
        params_modifiers: options that differ from these, one per chain of blocks, in order.
        parallelism_config: parallelism is not in this version: None, or a ``ParallelismConfig`` that spreads nothing.
            With such a one and no cache options nothing is cached, and a line of log says so.
        attention_backend, quantize_config: these are not in this version: None.
        **kwargs: options of ``DBCacheConfig`` and ``TaylorSeerCalibratorConfig`` by name (deprecated).

    Returns:
        ``pipe_or_adapter`` itself.

    Raises:
        UnsupportedModelError: if there is no record of the model, or its blocks cannot be intercepted.
        ConfigError: if an option is unknown, wrong, or does not fit the model; also if another cache is on.
        PatternMismatchError: if a block is not called as its pattern says.
    """
    _refuse_parallelism(parallelism_config)
    refuse_unbuilt(attention_backend=attention_backend, quantize_config=quantize_config)
    options, flat_calibrator = flat_options(kwargs, where="enable_cache")
    if parallelism_config is not None and cache_config is None and not options:
        logger.warning(
            "cache_dit: parallelism_config is given and no cache_config: nothing is cached, nothing is spread"
        )
        return pipe_or_adapter
    calibrator_config = flat_calibrator or calibrator_config
    if isinstance(cache_config, (Plan, str, os.PathLike)):
        cache_config = DBCacheConfig(plan=cache_config)
    check_classes(cache_config, calibrator_config)
    adapter = _described(pipe_or_adapter)
    if cache_config is None:
        modified = params_modifiers is not None or adapter.params_modifiers is not None
        if options or modified or calibrator_config is not None:
            cache_config = _reference(adapter)
        else:
            cache_config, calibrator_config = _default()
    if options:
        cache_config = overlay(cache_config, options)
    if cache_config.cache_type is CacheType.NONE:
        disable_cache(pipe_or_adapter)
        return pipe_or_adapter
    _enable(adapter, cache_config, calibrator_config, params_modifiers)
    return pipe_or_adapter


def _default() -> tuple[BasicCacheConfig, CalibratorConfig]:
    """What is chosen where nothing is named."""
    from cache_dit.models.presets import COMMON

    chosen = COMMON["default"].arguments(1)
    return chosen["cache_config"], chosen["calibrator_config"]


def _reference(adapter: BlockAdapter) -> DBCacheConfig:
    """What single options are laid over: the reference's numbers, with fewer F blocks where a chain has not as many."""
    config = DBCacheConfig()
    most = min(spec.most_front for target in adapter.targets() for spec in target.chains)
    if most < config.Fn_compute_blocks:
        config.update(Fn_compute_blocks=max(most, 1))
        logger.info("cache_dit: few blocks: Fn_compute_blocks is %d, so that some can be skipped", max(most, 1))
    return config


def _refuse_parallelism(config: Any) -> None:
    """Raise ``ConfigError`` for a ``ParallelismConfig`` that spreads anything, or what is none."""
    if config is None:
        return
    if not isinstance(config, ParallelismConfig):
        raise ConfigError(f"parallelism_config is a {type(config).__name__}: pass a ParallelismConfig, or None")
    if config.enabled():
        raise ConfigError(
            f"parallelism_config asks for {config.strify(details=True)}: parallelism is not in this version, pass None"
        )


def parse_extra_modules(pipe_or_adapter: Any, extra_parallel_modules: Any = None) -> list[torch.nn.Module]:
    """The modules beside the transformer that are to be spread too: none, as parallelism is not in this version.

    Args:
        pipe_or_adapter: what has the modules.
        extra_parallel_modules: their names, or themselves: None.

    Raises:
        ConfigError: ``extra_parallel_modules`` is not None.
    """
    refuse_unbuilt(extra_parallel_modules=extra_parallel_modules)
    return []


def _described(pipe_or_adapter: Any) -> BlockAdapter:
    """The adapter of what a user passed."""
    if isinstance(pipe_or_adapter, BlockAdapter):
        return pipe_or_adapter
    if not isinstance(pipe_or_adapter, torch.nn.Module) and not _is_pipeline(pipe_or_adapter):
        raise UnsupportedModelError(
            f"cannot cache a {type(pipe_or_adapter).__module__}.{type(pipe_or_adapter).__qualname__}: "
            f"pass a DiffusionPipeline, a transformer or a BlockAdapter"
        )
    adapter = get_adapter(pipe_or_adapter)
    if adapter is None:
        from cache_dit.models.unsupported import unrecorded

        raise UnsupportedModelError(unrecorded(pipe_or_adapter))
    return adapter


def _is_pipeline(value: Any) -> bool:
    import diffusers

    modular = getattr(diffusers, "ModularPipeline", diffusers.DiffusionPipeline)  # not in every version
    return isinstance(value, (diffusers.DiffusionPipeline, modular))


def _enable(
    adapter: BlockAdapter,
    cache_config: BasicCacheConfig,
    calibrator_config: CalibratorConfig | None,
    params_modifiers: Any = None,
    holder: PipelineState | None = None,
) -> None:
    """Check everything, then replace what was on before for the same holder.

    Args:
        adapter: the description.
        cache_config, calibrator_config, params_modifiers: the options.
        holder: the pipeline's, where one of its transformers was replaced; None: who ``adapter`` says.
    """
    targets = adapter.targets(params_modifiers)
    # a pipeline that is not called (but has a method of another name, say) has no requests of its own
    called = not isinstance(adapter.pipe, FakeDiffusionPipeline) and callable(adapter.pipe)
    previous = _holder_of(adapter.pipe) if called else None
    made = _pipeline_state(adapter, targets, cache_config, calibrator_config) if called else None
    given_to = holder or made or ITSELF
    pairs = [
        (
            target.transformer,
            build_state(
                target,
                cache_config,
                calibrator_config,
                separate_cfg=adapter.has_separate_cfg,
                rules=adapter.rules,
                scheduler=getattr(adapter.pipe, "scheduler", None),
                holder=given_to,
                instead_of=previous,
            ),
        )
        for target in targets
    ]
    if made is None:
        replace_states(pairs, given_to)
        return
    wrap(adapter.pipe, cached_pipeline, made)
    try:
        replace_states(pairs, made, previous)
    except CacheDitError:
        unwrap(adapter.pipe)
        if previous is not None:
            wrap(adapter.pipe, cached_pipeline, previous)
        raise
    if previous is not None:
        for transformer in previous.ever_cached:
            if all(transformer is not target.transformer for target in targets):
                release_transformer(transformer, previous, adapter.pipe)


def _pipeline_state(
    adapter: BlockAdapter,
    targets: list[Target],
    cache_config: BasicCacheConfig,
    calibrator_config: CalibratorConfig | None,
) -> PipelineState:
    """What lets each call of an adapter's pipeline be a request with its own options; it keeps no transformer alive."""
    held = _components(adapter.pipe)
    places: dict[str | int, Target] = {}
    for index, target in enumerate(targets):
        place: str | int | None = next((name for name, one in held.items() if one is target.transformer), None)
        if place is None:
            place = next((name for name, one in held.items() if base_of(one) is target.transformer), index)
        places[place] = target
    modifiers = {place: [spec.modifier for spec in target.chains] for place, target in places.items()}

    def enable(holder: PipelineState, attribute: str, module: torch.nn.Module) -> None:
        from cache_dit.models import adapter_of

        found = adapter_of(module)
        if found is None:
            logger.warning("cache_dit: there is no record of %s: it runs without a cache", type(module).__name__)
            return
        own = [modifier or ParamsModifier() for modifier in modifiers[attribute]]
        _enable(found, cache_config, calibrator_config, own, holder)

    return PipelineState({place: target.transformer for place, target in places.items()}, enable)


def _holder_of(pipe: Any) -> PipelineState | None:
    """What has a pipeline's own options, or None where it was given none."""
    state = getattr(pipe, "__dict__", {}).get(STATE)
    return state if isinstance(state, PipelineState) else None


def _components(holder: Any) -> Mapping[str, Any]:
    """What a pipeline, or an object that somebody uses as one, holds; None holds nothing.

    Raises:
        ConfigError: if it is a list, a string or the like.
    """
    if holder is not None and not hasattr(holder, "__dict__"):
        raise ConfigError(f"a {type(holder).__name__} was passed: pass a pipeline, a transformer or a BlockAdapter")
    held: Mapping[str, Any] = getattr(holder, "__dict__", {})
    try:
        return getattr(holder, "components", None) or held
    except (ValueError, TypeError, LookupError, RuntimeError):  # diffusers: its __init__ does not name what it holds
        return held


def disable_cache(pipe_or_adapter: Any) -> None:
    """Take the cache off; afterwards everything is as it was before ``enable_cache``.

    Options that another pipeline was given on the same transformer stay. The transformer is plain when the last ones
    are taken off, or when it is named itself.

    Args:
        pipe_or_adapter: whatever ``enable_cache`` was given, or the pipeline or a transformer inside it. Nothing
            happens where no cache is on.
    """
    described = isinstance(pipe_or_adapter, BlockAdapter)
    pipe = pipe_or_adapter.pipe if described else pipe_or_adapter
    holder = _holder_of(pipe)
    if holder is not None:
        for transformer in holder.ever_cached:
            release_transformer(transformer, holder, pipe)
        unwrap(pipe)
        return
    found = as_list(pipe_or_adapter.transformer) if described else cached_transformers(pipe)
    for transformer in found:
        if not released(transformer, pipe) and detach_transformer(transformer) and pipe is not transformer:
            logger.warning(
                "cache_dit: this %s has no options of its own: the cache is taken off %s for all pipelines",
                type(pipe).__name__,
                type(transformer).__name__,
            )


def caches_of(holder: Any) -> list[tuple[Any, TransformerState]]:
    """The cached transformers in a pipeline, an adapter, or the transformer itself, each with the state of its calls.

    A pipeline that was given options has its own; for all others it is that whose request was opened last.
    """
    own = _holder_of(holder.pipe if isinstance(holder, BlockAdapter) else holder)
    if isinstance(holder, BlockAdapter):
        found = as_list(holder.transformer)
    elif isinstance(holder, torch.nn.Module):
        found = [holder]
    elif own is not None and own.transformers:
        found = own.transformers
    else:
        found = [value for value in _components(holder).values() if isinstance(value, torch.nn.Module)]
    states = [(base_of(transformer), state_for(transformer, own)) for transformer in found]
    return [(transformer, state) for transformer, state in states if state is not None]


def cached_transformers(holder: Any) -> list[Any]:
    """The cached transformers in a pipeline, an adapter, or the transformer itself."""
    return [transformer for transformer, _ in caches_of(holder)]


def refresh_context(transformer: torch.nn.Module, **force_refresh_kwargs: Any) -> None:
    """Begin a new request on a bare transformer, with changed options where some are given.

    All requests that are open on it end, and their snapshots are freed. The options change for all who have some on
    it: pipelines, and calls outside of them.

    Args:
        transformer: a cached transformer.
        **force_refresh_kwargs: ``cache_config`` (its fields that are not None are taken over;
            ``DBCacheConfig().reset(…)`` makes a sparse one; a dict will do), ``calibrator_config``, or options by name,
            such as ``num_inference_steps=28`` or ``enable_taylorseer=True``. ``verbose`` logs the options.

    Raises:
        ConfigError: if an option is unknown or wrong; the old options then stay.

    Where no cache is on, a line of log says so and nothing happens. Call this after a run that was given up between
    two steps, where a static plan of known length runs on an accelerator: nothing is read back there, so the next
    run could not be told from the rest of it.
    """
    states = states_on(transformer)
    if not states:
        hint = "; pass the transformer in it" if _holder_of(transformer) is not None else ""
        logger.warning("cache_dit: no cache is on this %s: nothing to refresh%s", type(transformer).__name__, hint)
        return
    verbose = force_refresh_kwargs.pop("verbose", False)
    changes, calibrator = refresh_options(force_refresh_kwargs)
    changed = [(state, reconfigured(state, changes, calibrator)) for state in states]
    for state, accepted in changed:
        state.configure(accepted)
        attach_observers(state)
        for chain, options in state.chains if verbose else ():
            logger.info("cache_dit: %s: %s", chain.name, options)


def get_adapter(pipe: Any) -> BlockAdapter | None:
    """The description by which a pipeline or transformer is cached, or None where there is no record of it.

    Args:
        pipe: a pipeline or a transformer.
    """
    from cache_dit.models import adapter_of

    return adapter_of(pipe)


def supported_pipelines(**kwargs: Any) -> tuple[int, list[str]]:
    """The number of supported model families, and what the class names of their pipelines begin with."""
    from cache_dit.models import known_pipelines

    names = known_pipelines()
    return len(names), names
