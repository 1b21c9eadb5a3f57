"""What happened: statistics of the latest request, as data, as a report and as a short tag."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cache_dit.api import cached_transformers
from cache_dit.callable_module import make_callable
from cache_dit.config.cache import CacheType
from cache_dit.config.calibrator import CalibratorConfig
from cache_dit.engine.adapters.block_adapter import BlockAdapter, FakeDiffusionPipeline
from cache_dit.engine.forward.stepwise import BaseLane
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.plans.report import PlanOutcome
from cache_dit.engine.policies.base import StepRecord
from cache_dit.engine.policies.plan import outcome
from cache_dit.engine.policies.prune import PrunePolicy
from cache_dit.engine.sessions.reasons import no_hit_reason
from cache_dit.engine.sessions.session import Session
from cache_dit.engine.subclass import state_of
from cache_dit.errors import ConfigError
from cache_dit.models.catalog import supported_matrix  # noqa: F401 - the reference has it here too

_QUANTILES = (0, 25, 50, 75, 95)


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
        steps_line: branch to one letter a step: F computed in full, C cached, P some blocks pruned, - not called; where
            samples decide for themselves, one line for each.
        executed_blocks, possible_blocks: block calls that ran, of those that would have run without a cache.
        peak_bytes: the most bytes that the request's snapshots, and what decisions are made by, held at one time.
        bytes_by_device: where the snapshots of that moment were, e.g. ``{"cpu": 1310720}``.
        reason: why nothing was cached, or None.
        parallelism_config: how the transformer is spread over devices, or None.
        plan: the plan, the quality that it was measured to have, and what was not done as planned, or None.
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
    executed_blocks: int = 0
    possible_blocks: int = 0
    peak_bytes: int = 0
    bytes_by_device: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    parallelism_config: Any = None
    plan: PlanOutcome | None = None

    @property
    def ideal_speedup(self) -> float:
        """Block calls without a cache over block calls with it: the speed-up if nothing else took time."""
        return self.possible_blocks / self.executed_blocks if self.executed_blocks else 1.0


def summary(adapter_or_others: Any, details: bool = False, logging: bool = True, **kwargs: Any) -> list[CacheStats]:
    """What the cache did in the latest request.

    Args:
        adapter_or_others: a pipeline, an adapter, a transformer, or None.
        details: also list the cached steps and their diffs.
        logging: print a report.

    Returns:
        One entry per chain of blocks, then (except for an adapter) one per transformer, which repeats its last
        chain's; one empty entry where no cache is on.
    """
    if isinstance(adapter_or_others, FakeDiffusionPipeline):
        raise ConfigError("a FakeDiffusionPipeline holds no statistics: pass the adapter or the transformer")
    chains: list[CacheStats] = []
    wholes: list[CacheStats] = []
    for transformer in cached_transformers(adapter_or_others):
        state: Any = state_of(transformer)
        latest = state.latest
        asked = state.options if latest is None else latest.options  # a request may have had options of its own
        for index, (chain, _) in enumerate(state.chains):
            chains.append(chain_stats(latest, index, chain.name, asked[index]))
        whole = copy.copy(chains[-1])
        whole.name = type(transformer).__name__
        wholes.append(whole)
    if logging:
        for stats in chains:
            print(report(stats, details=details))
    found = chains if isinstance(adapter_or_others, BlockAdapter) else chains + wholes
    return found or [CacheStats()]


def chain_stats(session: Session | None, index: int, name: str, options: ChainOptions) -> CacheStats:
    """The statistics of one chain in one request."""
    stats = CacheStats(name=name, cache_options=_options(options, name))
    if session is None:
        return stats
    known = list(session.lanes.items())  # at once: other threads may add to them
    lanes = {(branch, passed): lane for (branch, passed, chain), lane in known if chain == index}
    for prefix, lane in zip(("", "cfg_"), branches(lanes), strict=False):
        _tell(stats, prefix, list(lane.policies().values()))
    stats.steps_line = {
        _label(key, sample): steps_line(policy.records)
        for key, lane in lanes.items()
        for sample, policy in lane.policies().items()
    }
    stats.executed_blocks = sum(lane.executed for lane in lanes.values())
    stats.possible_blocks = sum(lane.possible for lane in lanes.values())
    stats.peak_bytes, stats.bytes_by_device = session.peak_bytes, dict(session.bytes_by_device)
    stats.reason = no_hit_reason(session, lanes.values())
    if options.cache.plan is not None:
        stats.plan = outcome(options.cache, {_label(key, ""): lane for key, lane in lanes.items()})
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


def branches(lanes: dict[tuple[Hashable, int], BaseLane]) -> list[BaseLane]:
    """The conditional branch, then the unconditional one; extra calls of a step and further passes are neither."""
    plain = [branch for branch, passed in lanes if passed == 0 and not isinstance(branch, tuple)]
    return [lanes[branch, 0] for branch in sorted(plain, key=lambda branch: branch == "uncond")]


def _options(options: ChainOptions, name: str) -> dict[str, Any]:
    calibrator = {} if options.calibrator is None else {"calibrator_config": options.calibrator}
    return {"cache_config": options.cache, **calibrator, "name": name}


def _label(key: tuple[Hashable, int], sample: str) -> str:
    branch, passed = key
    name = " ".join(map(str, branch)) if isinstance(branch, tuple) else str(branch)
    name = f"{name}[{sample}]" if sample else name
    return f"{name} #{passed + 1}" if passed else name


def steps_line(records: Iterable[StepRecord]) -> str:
    """One letter a step: F computed in full, C cached, P cached in part (some blocks pruned), - not called."""
    done = {record.step: _letter(record) for record in records}
    return "".join(done.get(step, "-") for step in range(max(done, default=-1) + 1))


def _letter(record: StepRecord) -> str:
    if record.computed:
        return "F"
    return "P" if record.blocks else "C"


def report(stats: CacheStats, *, details: bool = False) -> str:
    """A readable report of one chain, in Markdown."""
    if not stats.cache_options:
        return ""
    lines = [f"cache_dit: {stats.name}: {strify_options(stats.cache_options)}"]
    width = max(map(len, stats.steps_line), default=0)
    for branch, line in stats.steps_line.items():
        counts = (("computed", "F"), ("cached", "C"), ("pruned", "P"))
        told = [f"{line.count(letter)} {word}" for word, letter in counts if word != "pruned" or letter in line]
        lines.append(f"  {branch:<{width}}  {line}  ({', '.join(told)})")
    if stats.possible_blocks:
        lines.append(
            f"  blocks executed: {stats.executed_blocks} of {stats.possible_blocks} "
            f"(ideal speed-up {stats.ideal_speedup:.2f}), live state at most {stats.peak_bytes / 2**20:.2f} MiB"
        )
    for label, prefix in (("", ""), ("CFG ", "cfg_")):
        steps, diffs, ratio = (getattr(stats, prefix + of) for of in ("cached_steps", "residual_diffs", "pruned_ratio"))
        pruned, actual = (sum(getattr(stats, prefix + of)) for of in ("pruned_blocks", "actual_blocks"))
        lines += _diff_table(label, steps, diffs, pruned=None if ratio is None else pruned, details=details)
        if ratio is not None:
            lines.append(f"  {label}blocks pruned: {pruned} of {actual} ({ratio:.1%})")
    if stats.plan is not None:
        lines += [f"  {line}" for line in stats.plan.lines()]
    if stats.reason:
        lines.append(f"  no step was cached: {stats.reason}")
    return "\n".join(lines)


def _diff_table(label: str, steps: list[int], diffs: dict[str, Any], *, pruned: int | None, details: bool) -> list[str]:
    """The quantiles of a branch's diffs; ``pruned`` is the number of pruned blocks, of DBPrune."""
    by_step = {step: diff if isinstance(diff, list) else [diff] for step, diff in diffs.items()}
    values = sorted(diff for found in by_step.values() for diff in found if math.isfinite(diff))
    if not values:
        return []
    head, count = ("Cache Steps", len(steps)) if pruned is None else ("Pruned Blocks", pruned)
    heads = [f"{label}{head}", *(f"Diffs P{q:02d}" for q in _QUANTILES), "Diffs Min", "Diffs Max"]
    cells = [str(count), *(f"{quantile(values, q / 100):.3f}" for q in _QUANTILES)]
    cells += [f"{values[0]:.3f}", f"{values[-1]:.3f}"]
    table = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), cells)]
    if details:
        table.append(f"{label}{'cached' if pruned is None else 'pruned'} steps: {steps}")
        told = (f"{step}: " + " ".join(f"{diff:.4f}" for diff in found) for step, found in by_step.items())
        table.append(f"{label}diffs: " + ", ".join(told))
    return table


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
