"""The functions a user calls: put a cache on, take it off, renew it."""

from __future__ import annotations

import logging
import os
import weakref
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
from cache_dit.engine.attach.build import build_state, reconfigured
from cache_dit.engine.attach.pipeline import PipelineState, cached_pipeline
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.attach.wrappers import (
    cached_block,
    cached_transformer,
    idle_module,
    named_transformer,
    observed_module,
)
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.subclass import state_of, unwrap, wrap
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

    Calling it again replaces the configuration. Where anything is wrong, nothing has changed.

    Args:
        pipe_or_adapter: a diffusers pipeline, a ``BlockAdapter``, or a transformer.
        cache_config: when to compute; ``DBCacheConfig()`` when None, with Fn such that blocks are left to skip. A
            ``Plan``, or the path of one, is ``DBCacheConfig(plan=…)``.
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
        cache_config = _default(adapter)
    if options:
        cache_config = overlay(cache_config, options)
    if cache_config.cache_type is CacheType.NONE:
        disable_cache(pipe_or_adapter)
        return pipe_or_adapter
    _enable(adapter, cache_config, calibrator_config, params_modifiers)
    return pipe_or_adapter


def _default(adapter: BlockAdapter) -> DBCacheConfig:
    """The configuration of who asks for none: the default one, with fewer F blocks where a chain has not as many."""
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
        from cache_dit.models.unsupported import refusal_of

        raise UnsupportedModelError(
            refusal_of(pipe_or_adapter)
            or f"there is no record of {type(pipe_or_adapter).__name__}: call cache_dit.inspect(transformer, *args, "
            f"**kwargs) with its forward's arguments, which shows the BlockAdapter(...) to pass instead. "
            f"cache_dit.supported_pipelines() lists the models with a record"
        )
    return adapter


def _is_pipeline(value: Any) -> bool:
    from diffusers import DiffusionPipeline

    return isinstance(value, DiffusionPipeline)


def _enable(
    adapter: BlockAdapter,
    cache_config: BasicCacheConfig,
    calibrator_config: CalibratorConfig | None,
    params_modifiers: Any = None,
) -> None:
    """Check everything, then replace what was on before."""
    targets = adapter.targets(params_modifiers)
    scheduler = getattr(adapter.pipe, "scheduler", None)
    states = []
    for target in targets:
        states.append(
            build_state(
                target,
                cache_config,
                calibrator_config,
                separate_cfg=adapter.has_separate_cfg,
                rules=adapter.rules,
                scheduler=scheduler,
            )
        )
    pairs = [(target.transformer, state) for target, state in zip(targets, states, strict=True)]
    # a pipeline that is not called (but has a method of another name, say) has no requests of its own
    if isinstance(adapter.pipe, FakeDiffusionPipeline) or not callable(adapter.pipe):
        replace_states(pairs)
        return
    made = _pipeline_state(adapter, targets, cache_config, calibrator_config)
    previous = state_of(adapter.pipe)
    wrap(adapter.pipe, cached_pipeline, made)
    try:
        replace_states(pairs)
    except CacheDitError:
        unwrap(adapter.pipe)
        if previous is not None:
            wrap(adapter.pipe, cached_pipeline, previous)
        raise
    if isinstance(previous, PipelineState):
        for transformer in {*map(_owner, (*previous.transformers.values(), *previous.replaced))}:
            if all(transformer is not target.transformer for target in targets):
                detach_transformer(transformer)


def _pipeline_state(
    adapter: BlockAdapter,
    targets: list[Target],
    cache_config: BasicCacheConfig,
    calibrator_config: CalibratorConfig | None,
) -> PipelineState:
    """What lets each call of an adapter's pipeline be a request."""
    held = {
        name: target
        for target in targets
        for name, value in _components(adapter.pipe).items()
        if value is target.transformer
    }

    def enable(attribute: str, module: torch.nn.Module) -> None:
        from cache_dit.models import adapter_of

        found = adapter_of(module)
        if found is None:
            logger.warning("cache_dit: there is no record of %s: it runs without a cache", type(module).__name__)
            return
        modifiers = [spec.modifier or ParamsModifier() for spec in held[attribute].chains]
        _enable(found, cache_config, calibrator_config, modifiers)

    return PipelineState({name: target.transformer for name, target in held.items()}, enable)


def _components(holder: Any) -> Mapping[str, Any]:
    """What a pipeline, or an object that somebody uses as one, holds; None holds nothing.

    Raises:
        ConfigError: if it is a list, a string or the like.
    """
    if holder is not None and not hasattr(holder, "__dict__"):
        raise ConfigError(f"a {type(holder).__name__} was passed: pass a pipeline, a transformer or a BlockAdapter")
    return getattr(holder, "components", None) or getattr(holder, "__dict__", {})


def replace_states(pairs: list[tuple[Any, TransformerState]]) -> None:
    """Put states on transformers, in place of those that are on; on failure these stay on, all of them."""
    before = [(transformer, _owner(transformer), state_of(transformer)) for transformer, _ in pairs]
    try:
        for transformer, state in pairs:
            if isinstance(previous := state_of(transformer), TransformerState):
                _take_all_off(_owner(transformer), previous)
            attach_transformer(transformer, state)
    except UnsupportedModelError:
        for transformer, owner, previous in before:
            if isinstance(current := state_of(transformer), TransformerState) and current is not previous:
                _take_all_off(transformer, current)
            if isinstance(previous, TransformerState):
                attach_transformer(owner, previous)
        raise
    for _, _, previous in before:
        if isinstance(previous, TransformerState):
            previous.close_all()


def attach_transformer(transformer: Any, state: TransformerState) -> None:
    """Put a state on a transformer and its roles on its blocks; on failure everything is as before."""
    inner = getattr(transformer, "_orig_mod", None)
    for held in (transformer,) if inner is None else (transformer, inner):  # put on before compiling, or the wrapper
        if (owner := _owner(held)) is not transformer:
            detach_transformer(owner)
    try:
        attach_observers(state)
        for chain, _ in state.chains:
            for block, role in zip(chain.blocks, chain.roles, strict=True):
                wrap(block, cached_block, role)
        for module, idle_role in state.idle:
            wrap(module, idle_module, idle_role)
        wrap(transformer, cached_transformer, state)
        if inner is not None:
            wrap(inner, named_transformer, state)
        state.owner = weakref.ref(transformer)
    except UnsupportedModelError:
        _take_all_off(transformer, state)
        raise


def attach_observers(state: TransformerState) -> None:
    """Put observers where the options ask for them, and none is yet."""
    for module, role in state.observers():
        wrap(module, observed_module, role)


def detach_transformer(transformer: Any) -> None:
    """Take the cache off a transformer and its blocks; nothing happens where there is none."""
    state = state_of(transformer)
    if isinstance(state, TransformerState):
        state.close_all()
        _take_all_off(_owner(transformer), state)


def _owner(transformer: Any) -> Any:
    """The module that a transformer's cache was put on: itself, or the compiled wrapper around it."""
    state = state_of(transformer)
    owner = state.owner() if isinstance(state, TransformerState) else None
    return transformer if owner is None else owner


def _take_all_off(transformer: Any, state: TransformerState) -> None:
    for chain, _ in state.chains:
        for block in chain.blocks:
            unwrap(block)
    for module, _ in (*state.idle, *state.observed):
        unwrap(module)
    unwrap(transformer)
    if (inner := getattr(transformer, "_orig_mod", None)) is not None:
        unwrap(inner)


def disable_cache(pipe_or_adapter: Any) -> None:
    """Take the cache off; afterwards everything is as it was before ``enable_cache``.

    Args:
        pipe_or_adapter: whatever ``enable_cache`` was given, or the pipeline or a transformer inside it. Nothing
            happens where no cache is on.
    """
    if isinstance(pipe_or_adapter, BlockAdapter):
        if pipe_or_adapter.pipe is not None:
            disable_cache(pipe_or_adapter.pipe)
        for transformer in as_list(pipe_or_adapter.transformer):
            detach_transformer(transformer)
        return
    state = state_of(pipe_or_adapter)
    if isinstance(state, PipelineState):
        for transformer in (*state.transformers.values(), *state.replaced):
            detach_transformer(transformer)
        unwrap(pipe_or_adapter)
    for transformer in cached_transformers(pipe_or_adapter):
        detach_transformer(transformer)


def cached_transformers(holder: Any) -> list[Any]:
    """The cached transformers in a pipeline, an adapter, or the transformer itself."""
    if isinstance(holder, BlockAdapter):
        found = as_list(holder.transformer)
    elif isinstance(holder, torch.nn.Module):
        found = [holder]
    elif isinstance(state := state_of(holder), PipelineState):
        found = list(state.transformers.values())
    else:
        found = [value for value in _components(holder).values() if isinstance(value, torch.nn.Module)]
    return [transformer for transformer in found if isinstance(state_of(transformer), TransformerState)]


def refresh_context(transformer: torch.nn.Module, **force_refresh_kwargs: Any) -> None:
    """Begin a new request on a bare transformer, with changed options where some are given.

    All requests that are open on it end, and their snapshots are freed.

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
    state = state_of(transformer)
    if not isinstance(state, TransformerState):
        hint = "; pass the transformer in it" if isinstance(state, PipelineState) else ""
        logger.warning("cache_dit: no cache is on this %s: nothing to refresh%s", type(transformer).__name__, hint)
        return
    verbose = force_refresh_kwargs.pop("verbose", False)
    changes, calibrator = refresh_options(force_refresh_kwargs)
    state.configure(reconfigured(state, changes, calibrator))
    attach_observers(state)
    if verbose:
        for chain, options in state.chains:
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
