"""What happened: statistics of the latest request, as data, as a report and as a short tag."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from cache_dit.api import caches_of
from cache_dit.callable_module import make_callable
from cache_dit.config.cache import DECIDED_BY_PLAN, BasicCacheConfig, CacheType
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.engine.adapters.block_adapter import BlockAdapter, FakeDiffusionPipeline
from cache_dit.engine.adapters.trace import has_blocks_beside
from cache_dit.engine.forward.branch_cache import BranchCache
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.plans.report import PlanOutcome
from cache_dit.engine.policies.base import StepRecord
from cache_dit.engine.policies.plan import outcome
from cache_dit.engine.policies.prune import PrunePolicy
from cache_dit.engine.policies.reasons import step_reason
from cache_dit.engine.sessions.reasons import no_hit
from cache_dit.engine.sessions.session import Session
from cache_dit.errors import ConfigError
from cache_dit.models.catalog import supported_matrix  # noqa: F401 - the reference has it here too

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 200
"""Characters per line where the output is no terminal, so that no line of steps is folded."""

_QUANTILES = {"min": 0.0, "median": 0.5, "P95": 0.95, "max": 1.0}

#: Settings that are told even where they are as usual, and those that the report tells in its own words.
_ALWAYS = ("Fn_compute_blocks", "residual_diff_threshold", "max_warmup_steps")
_TOLD_OTHERWISE = (
    *("cache_type", "num_inference_steps", "steps_computation_mask", "steps_computation_policy"),
    *("plan", "max_sessions"),
)
#: Limits, and when each is none.
_NO_LIMIT: dict[str, Callable[[Any], bool]] = {
    "max_cached_steps": lambda steps: steps < 0,
    "max_continuous_cached_steps": lambda steps: steps < 0,
    "max_accumulated_residual_diff_threshold": lambda diff: diff is None or diff <= 0,
}
#: What a static mask leaves nothing to decide for.
_DECIDED_BY_MASK = tuple(
    name
    for name in DECIDED_BY_PLAN
    if name not in ("Fn_compute_blocks", "Bn_compute_blocks", "force_refresh_step_hint")
)


@dataclass
class CacheStats:
    """What the cache did on one chain of blocks in the latest request.

    The fields without a prefix are those of the first branch, those with ``cfg_`` of the second, where conditional and
    unconditional calls are separate; ``steps_line`` and the counts cover all branches.

    Args:
        name: the chain, or the transformer.
        cache_options: ``cache_config``, ``calibrator_config`` and ``name`` of the chain; empty when nothing is cached.
        cached_steps, cfg_cached_steps: the numbers of the cached steps.
        residual_diffs, cfg_residual_diffs: step number (as text) to measured relative L1 difference.
        pruned_steps, pruned_blocks, actual_blocks, pruned_ratio (and ``cfg_``): of DBPrune: the steps in which a block
            was pruned; for each step how many were, and of how many; their share over all steps. Diffs are then a list
            a step, one for each block that was decided by one.
        steps_line: branch to one letter a step: F computed, C cached, P some blocks pruned, - not called; where samples
            decide for themselves, one line for each.
        step_records: for each such line, what happened to its steps: the diff, and a code for the reason.
        executed_blocks, possible_blocks: block calls that ran, of those that would have run without a cache.
        peak_bytes: the most bytes that the request's snapshots, and what decisions are made by, held at one time.
        bytes_by_device: where the snapshots of that moment were, e.g. ``{"cpu": 1310720}``.
        reason: why nothing was cached, or None.
        parallelism_config: how the transformer is spread over devices, or None.
        plan: the plan, the quality that it was measured to have, and what was not done as planned, or None.
        partial: whether the model has blocks beside these, in another chain or in none: the speed-up is of these alone.
    """

    name: str = ""
    cache_options: dict[str, Any] = field(default_factory=dict)
    cached_steps: list[int] = field(default_factory=list)
    residual_diffs: dict[str, Any] = field(default_factory=dict)
    cfg_cached_steps: list[int] = field(default_factory=list)
    cfg_residual_diffs: dict[str, Any] = field(default_factory=dict)
    pruned_steps: list[int] = field(default_factory=list)
    pruned_blocks: list[int] = field(default_factory=list)
    actual_blocks: list[int] = field(default_factory=list)
    pruned_ratio: float | None = None
    cfg_pruned_steps: list[int] = field(default_factory=list)
    cfg_pruned_blocks: list[int] = field(default_factory=list)
    cfg_actual_blocks: list[int] = field(default_factory=list)
    cfg_pruned_ratio: float | None = None
    steps_line: dict[str, str] = field(default_factory=dict)
    step_records: dict[str, list[StepRecord]] = field(default_factory=dict)
    executed_blocks: int = 0
    possible_blocks: int = 0
    peak_bytes: int = 0
    bytes_by_device: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    parallelism_config: Any = None
    plan: PlanOutcome | None = None
    partial: bool = False

    @property
    def ideal_speedup(self) -> float:
        """Calls of these blocks without a cache over those with it: the speed-up if nothing else took time."""
        return self.possible_blocks / self.executed_blocks if self.executed_blocks else 1.0


def summary(adapter_or_others: Any, details: bool = False, logging: bool = True, **kwargs: Any) -> list[CacheStats]:
    """What the cache did in the latest request: of a pipeline that was given options, in the latest of its own.

    Args:
        adapter_or_others: a pipeline, an adapter, a transformer, or None.
        details: also print a line for each step, with its diff and the reason why it was computed or cached.
        logging: print a report; its settings are those that took part.

    Returns:
        One entry per chain of blocks, then (except for an adapter) one per transformer, which repeats its last
        chain's; one empty entry where no cache is on.
    """
    if isinstance(adapter_or_others, FakeDiffusionPipeline):
        raise ConfigError("a FakeDiffusionPipeline holds no statistics: pass the adapter or the transformer")
    chains: list[CacheStats] = []
    wholes: list[CacheStats] = []
    for transformer, state in caches_of(adapter_or_others):
        latest = state.latest
        asked = state.options if latest is None else latest.options  # a request may have had options of its own
        for index, (chain, _) in enumerate(state.chains):
            stats = chain_stats(latest, index, chain.name, asked[index])
            stats.partial = has_blocks_beside(transformer, chain.blocks)
            stats.reason = state.uncalled or stats.reason
            chains.append(stats)
        whole = copy.copy(chains[-1])
        whole.name = type(transformer).__name__
        wholes.append(whole)
    if logging:
        _print(chains or [CacheStats()], details=details)
    found = chains if isinstance(adapter_or_others, BlockAdapter) else chains + wholes
    return found or [CacheStats()]


def chain_stats(session: Session | None, index: int, name: str, options: ChainOptions) -> CacheStats:
    """The statistics of one chain in one request."""
    stats = CacheStats(name=name, cache_options=_options(options, name))
    if session is None:
        return stats
    known = list(session.caches.items())  # at once: other threads may add to them
    caches = {(branch, passed): cache for (branch, passed, chain), cache in known if chain == index}
    for prefix, cache in zip(("", "cfg_"), branches(caches), strict=False):
        _tell(stats, prefix, list(cache.policies().values()))
    stats.step_records = {
        _label(key, sample): list(policy.records)
        for key, cache in caches.items()
        for sample, policy in cache.policies().items()
    }
    stats.steps_line = {label: steps_line(records) for label, records in stats.step_records.items()}
    stats.executed_blocks = sum(cache.executed for cache in caches.values())
    stats.possible_blocks = sum(cache.possible for cache in caches.values())
    stats.peak_bytes, stats.bytes_by_device = session.peak_bytes, dict(session.bytes_by_device)
    reason = no_hit(session, caches.values())
    stats.reason = None if reason is None else reason.text
    if options.cache.plan is not None:
        by_label = {_label(key, ""): cache for key, cache in caches.items()}
        call = getattr(session.handle, "arguments", None)
        stats.plan = outcome(options.cache, by_label, call=call, differences=session.differences)
    return stats


def _tell(stats: CacheStats, prefix: str, policies: list[Any]) -> None:
    """Enter a branch's policies: one, or one a sample, of which a step counts as cached where it is for all."""
    cached = [set(policy.cached_steps) for policy in policies]
    setattr(stats, f"{prefix}cached_steps", sorted(set.intersection(*cached)) if cached else [])
    diffs: dict[int, list[float]] = {}
    for policy in policies:
        for step, diff in policy.diffs.items():
            diffs.setdefault(step, []).append(diff)
    means: dict[str, Any] = {str(step): sum(found) / len(found) for step, found in sorted(diffs.items())}
    for policy in policies:
        if isinstance(policy, PrunePolicy):
            means = {str(step): found for step, found in policy.block_diffs.items()}
            for field_name in ("pruned_steps", "pruned_blocks", "actual_blocks", "pruned_ratio"):
                setattr(stats, f"{prefix}{field_name}", getattr(policy, field_name))
    setattr(stats, f"{prefix}residual_diffs", means)


def branches(caches: dict[tuple[Hashable, int], BranchCache]) -> list[BranchCache]:
    """The conditional branch, then the unconditional one; extra calls of a step and further passes are neither."""
    plain = [branch for branch, passed in caches if passed == 0 and not isinstance(branch, tuple)]
    return [caches[branch, 0] for branch in sorted(plain, key=lambda branch: branch == "uncond")]


def _options(options: ChainOptions, name: str) -> dict[str, Any]:
    calibrator = {} if options.calibrator is None else {"calibrator_config": options.calibrator}
    return {"cache_config": options.cache, **calibrator, "name": name}


def _label(key: tuple[Hashable, int], sample: str) -> str:
    branch, passed = key
    name = " ".join(map(str, branch)) if isinstance(branch, tuple) else str(branch)
    name = f"{name}[{sample}]" if sample else name
    return f"{name} #{passed + 1}" if passed else name


def steps_line(records: Iterable[StepRecord]) -> str:
    """One letter a step, as ``CacheStats`` has them."""
    done = {record.step: _letter(record) for record in records}
    return "".join(done.get(step, "-") for step in range(max(done, default=-1) + 1))


def _letter(record: StepRecord) -> str:
    if record.computed:
        return "F"
    return "P" if record.blocks else "C"


def report(stats: CacheStats, *, details: bool = False) -> str:
    """What ``summary`` prints of one chain, as text."""
    text = io.StringIO()
    _print([stats], details=details, file=text)
    return text.getvalue()


def _print(chains: Iterable[CacheStats], *, details: bool, file: TextIO | None = None) -> None:
    """Print what happened on some chains, to the standard output where no file is given."""
    from rich.console import Console

    console = Console(file=file)
    if not console.is_terminal:
        console.width = _WIDTH
    for part in (part for stats in chains for part in _parts(stats, details)):
        console.print(part, markup=False, highlight=False, emoji=False, soft_wrap=isinstance(part, str))


def _parts(stats: CacheStats, details: bool) -> Iterator[str | Table]:
    """The lines and tables of one chain's report."""
    if not stats.cache_options:
        yield "cache_dit: no cache is on"
        return
    config = stats.cache_options["cache_config"]
    yield f"cache_dit: {stats.name}: {', '.join(settings(config, stats.cache_options.get('calibrator_config')))}"
    if stats.steps_line:
        yield _branches_table(stats)
    where = f" of the blocks in {stats.name}" if stats.partial else ""
    if stats.possible_blocks:
        yield (
            f"{stats.executed_blocks} of {stats.possible_blocks} blocks run, ideal speed-up{where} "
            f"{stats.ideal_speedup:.2f}, at most {stats.peak_bytes / 2**20:.3g} MiB kept"
        )
    if stats.plan is not None:
        yield from stats.plan.lines(where)
    if stats.reason:
        yield f"no step was cached: {stats.reason}"
    if details:
        for label, records in stats.step_records.items():
            yield _steps_table(label, records, config)


def settings(config: BasicCacheConfig, calibrator: CalibratorConfig | None) -> Iterator[str]:
    """The type of cache, and the settings that took part: what a plan or a static mask decides is left to it."""
    yield str(config.cache_type)
    decided: tuple[str, ...] = _TOLD_OTHERWISE
    if config.plan is not None:
        yield "by a plan"
        decided += DECIDED_BY_PLAN
    elif config.steps_computation_mask is not None:
        yield f"{config.steps_computation_policy} mask"
        decided += _DECIDED_BY_MASK if config.is_static else ()
    usual = type(config)()
    for name in (name for name in config.field_names() if name not in decided):
        value = getattr(config, name)
        off = name in _NO_LIMIT and _NO_LIMIT[name](value)
        if name in _ALWAYS or not (off or value == getattr(usual, name)):
            yield f"{name}={value}"
    if config.plan is None:
        on = calibrator is not None and calibrator.enable_calibrator
        yield f"predicted by {calibrator}" if on else "predicted by the last computed step"


def _branches_table(stats: CacheStats) -> Table:
    """A row for each branch, or sample: the number of computed and cached steps, its diffs, its steps as letters."""
    from rich.table import Table

    records = [stats.step_records.get(label, []) for label in stats.steps_line]
    diffs = [sorted(diff for record in found for diff in _diffs(record) if math.isfinite(diff)) for found in records]
    pruned = any(record.blocks for found in records for record in found)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("branch")
    columns = ["computed", "pruned" if pruned else "cached", *(["blocks pruned"] if pruned else [])]
    columns += [f"diff {name}" for name in _QUANTILES] if any(diffs) else []
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column(f"steps (F computed, {'P pruned' if pruned else 'C cached'})", overflow="fold")
    for (label, line), found, values in zip(stats.steps_line.items(), records, diffs, strict=True):
        cells = [str(line.count("F")), str(len(line) - line.count("F") - line.count("-"))]
        if pruned:
            cells.append(f"{sum(record.pruned for record in found)} of {sum(record.blocks for record in found)}")
        if any(diffs):
            cells += [f"{quantile(values, share):.4f}" if values else "" for share in _QUANTILES.values()]
        table.add_row(label, *cells, line)
    return table


def _steps_table(label: str, records: Iterable[StepRecord], config: BasicCacheConfig) -> Table:
    """A row for each step of a branch, or sample: what was done, its diff, and why."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(label)
    for heading in ("step", "diff"):
        table.add_column(heading, justify="right")
    table.add_column("reason")
    done = {"F": "computed", "C": "cached"}
    for record in records:
        what = done.get(_letter(record), f"{record.pruned} of {record.blocks} blocks pruned")
        diffs = " – ".join(f"{diff:.4f}" for diff in sorted({*_diffs(record)[:1], *_diffs(record)[-1:]}))
        table.add_row(what, str(record.step), diffs, step_reason(record, config))
    return table


def _diffs(record: StepRecord) -> list[float]:
    """What was measured in a step, ascending: one diff, or one for each block that was decided by one."""
    return sorted(record.block_diffs) or ([] if record.diff is None else [record.diff])


def quantile(ordered: list[float], share: float) -> float:
    """The quantile of ascending numbers, interpolated linearly between them."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def strify_options(options: dict[str, Any]) -> str:
    """The tag of a ``cache_config`` and ``calibrator_config``: what was asked for."""
    config = options.get("cache_config")
    if config is None or config.cache_type is CacheType.NONE:
        return "NONE"
    if config.plan is not None:
        return str(config.strify())
    calibrator: CalibratorConfig | None = options.get("calibrator_config")
    tag = "T0O0" if calibrator is None or not calibrator.enable_calibrator else calibrator.strify()
    return f"{config.strify()}_{'T0O0' if tag == 'NONE' else tag}"


def strify_stats(stats: CacheStats) -> str:
    """The tag of what was asked for, then ``_S`` and the number of cached steps, or ``_P`` and the share pruned."""
    if not stats.cache_options:
        return "NONE"
    done = f"_S{len(stats.cached_steps)}" if stats.cached_steps else ""
    if stats.pruned_ratio is not None:
        done = f"_P{100 * stats.pruned_ratio:.1f}"
    return strify_options(stats.cache_options) + done


def strify(adapter_or_others: Any) -> str:
    """A short tag that says what was asked for and how many steps were cached, for file names.

    Args:
        adapter_or_others: an adapter, pipeline, transformer, ``CacheStats``, list of them (the first counts), or a
            dict with ``cache_config`` and ``calibrator_config``.

    Returns:
        For example ``DBCache_F1B0_W2I1M0MC0_R0.5_N6_CFG0_T0O0_S4``; ``NONE`` where no cache is on.
    """
    if isinstance(adapter_or_others, Mapping):
        return strify_options(dict(adapter_or_others))
    if isinstance(adapter_or_others, (list, tuple)):
        return strify(adapter_or_others[0]) if adapter_or_others else "NONE"
    if isinstance(adapter_or_others, CacheStats):
        return strify_stats(adapter_or_others)
    return strify_stats(summary(adapter_or_others, logging=False)[-1])


make_callable(__name__, summary)  # `cache_dit.summary` is this module, and is called as its function
