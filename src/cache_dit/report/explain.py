"""The latest request in words: what was asked, what happened step by step and why, and what would make it faster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from cache_dit.api import cached_transformers
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.engine.policies.base import StepRecord
from cache_dit.engine.policies.reasons import held_back, step_reason
from cache_dit.engine.sessions.reasons import misfit
from cache_dit.engine.sessions.session import Session
from cache_dit.engine.subclass import state_of
from cache_dit.summary import CacheStats, chain_stats, settings


def explain(pipe_or_adapter: Any, logging: bool = True) -> str:
    """What the cache was asked in the latest request, what it did step by step and why, and what would be faster.

    ``summary`` has the same as data.

    Args:
        pipe_or_adapter: a pipeline, a ``BlockAdapter`` or a transformer.
        logging: also print it.

    Returns:
        A short text, for each chain of blocks of each transformer.
    """
    lines = [line for transformer in cached_transformers(pipe_or_adapter) for line in _transformer(transformer)]
    text = "\n".join(lines) or f"no cache is on this {type(pipe_or_adapter).__name__}: call cache_dit.enable_cache"
    if logging:
        print(text)
    return text


def _transformer(transformer: Any) -> Iterator[str]:
    state: Any = state_of(transformer)
    session: Session | None = state.latest
    asked = state.options if session is None else session.options
    for index, (chain, _) in enumerate(state.chains):
        stats = chain_stats(session, index, chain.name, asked[index])
        config: BasicCacheConfig = asked[index].cache
        yield f"{type(transformer).__name__}, {chain.name} ({len(chain.blocks)} blocks)"
        yield f"  asked: {', '.join(settings(config, asked[index].calibrator))}"
        if session is None:
            yield f"  nothing ran yet: {state.uncalled}"
            continue
        yield from (f"  {line}" for line in _happened(stats, config))
        if (unfit := misfit(session, config)) is not None:
            yield f"  note: {unfit}."
        for place, line in enumerate(_faster(stats, config, len(chain.blocks))):
            yield f"  {' ' * 7 if place else 'faster:'} {line}"


def _happened(stats: CacheStats, config: BasicCacheConfig) -> Iterator[str]:
    """What was done in which steps, and why, steps in a row together."""
    if not stats.step_records:
        yield f"happened: no step was cached: {stats.reason or 'the cache was switched off for this request.'}"
    for label, records in stats.step_records.items():
        skipped = "P pruned" if any(record.blocks for record in records) else "C cached"
        yield f"happened, {label}: {stats.steps_line[label]} (F computed, {skipped})"
        for (what, why), found in groupby(records, key=lambda record: (_done(record), step_reason(record, config))):
            run = list(found)
            diffs = sorted(record.diff for record in run if record.diff is not None and math.isfinite(record.diff))
            span = _range(str(run[0].step), str(run[-1].step))
            measured = f" (diff {_range(f'{diffs[0]:.3g}', f'{diffs[-1]:.3g}')})" if diffs else ""
            yield f"  {'step' if len(run) == 1 else 'steps'} {span} {what}: {why}{measured}"
    if stats.possible_blocks:
        ideal = f"ideal speed-up {stats.ideal_speedup:.2f}"
        yield f"in all: {stats.executed_blocks} of {stats.possible_blocks} blocks run, {ideal}"
    if stats.plan is not None:
        yield from stats.plan.lines()


def _done(record: StepRecord) -> str:
    if record.computed:
        return "computed"
    return "pruned" if record.blocks else "cached"


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first}–{last}"


def _faster(stats: CacheStats, config: BasicCacheConfig, blocks: int) -> list[str]:
    """What held the cache back, and what to pass instead."""
    records = [record for found in stats.step_records.values() for record in found]
    if not records:
        return ["let the cache take part: see above."]
    if hints := [stats.reason] if stats.reason else list(held_back(records, config, blocks).values()):
        return hints
    if config.plan is not None:
        return ["the plan decides: select a point with fewer full steps."]
    if config.is_static:
        return ["the mask decides: pass one with more zeros, or let cache_dit.plan look for one."]
    return ["no option held it back: cache_dit.plan looks for a schedule at a quality that you name."]
