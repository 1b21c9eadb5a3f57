"""What happened: statistics of the latest request, as data, as a report and as a short tag."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cache_dit.caching.policy import StepRecord, why_no_hit
from cache_dit.caching.session import ChainOptions, Lane, Session
from cache_dit.config.cache import CacheType
from cache_dit.config.calibrator import CalibratorConfig

_QUANTILES = (0, 25, 50, 75, 95)
_REFUSALS = {
    "last_block_not_called": "the last middle block was not called on a skipped step, so every step is computed",
    "shape_changes_inside": "the blocks change their input's shape, so nothing can be predicted for them",
    "gathers_inside": "a block that could be skipped gathers tokens from other devices, so every step is computed",
    "no_middle": "Fn_compute_blocks + Bn_compute_blocks leave no block to skip",
    "prefetched": "this diffusers loads an offloaded group only from the one before it, which a cached step skips: "
    "update diffusers to 0.37 or later, or apply group offloading with use_stream=False",
    "second_cache": "a cache of diffusers is on as well, and works alone: call transformer.disable_cache()",
    "not_called": "the model never called its blocks (it may call block.forward, which cannot be intercepted)",
}


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
        steps_line: branch to one letter a step: F computed in full, C cached, - not called.
        executed_blocks, possible_blocks: block calls that ran, of those that would have run without a cache.
        peak_bytes: the most bytes that snapshots held at one time.
        reason: why nothing was cached, or None.
        parallelism_config: how the transformer is spread over devices, or None.
    """

    name: str = ""
    cache_options: dict[str, Any] = field(default_factory=dict)
    cached_steps: list[int] = field(default_factory=list)
    residual_diffs: dict[str, float] = field(default_factory=dict)
    cfg_cached_steps: list[int] = field(default_factory=list)
    cfg_residual_diffs: dict[str, float] = field(default_factory=dict)
    steps_line: dict[str, str] = field(default_factory=dict)
    executed_blocks: int = 0
    possible_blocks: int = 0
    peak_bytes: int = 0
    reason: str | None = None
    parallelism_config: Any = None

    @property
    def ideal_speedup(self) -> float:
        """Block calls without a cache over block calls with it: the speed-up if nothing else took time."""
        return self.possible_blocks / self.executed_blocks if self.executed_blocks else 1.0


def chain_stats(session: Session | None, index: int, name: str, options: ChainOptions) -> CacheStats:
    """The statistics of one chain in one request."""
    stats = CacheStats(name=name, cache_options=_options(options, name))
    if session is None:
        return stats
    lanes = {(branch, passed): lane for (branch, passed, chain), lane in session.lanes.items() if chain == index}
    for prefix, lane in zip(("", "cfg_"), _branches(lanes), strict=False):
        setattr(stats, f"{prefix}cached_steps", lane.policy.cached_steps)
        setattr(stats, f"{prefix}residual_diffs", {str(step): diff for step, diff in lane.policy.diffs.items()})
    stats.steps_line = {_label(key): steps_line(lane.policy.records) for key, lane in lanes.items()}
    stats.executed_blocks = sum(lane.executed for lane in lanes.values())
    stats.possible_blocks = sum(lane.possible for lane in lanes.values())
    stats.peak_bytes = session.peak_bytes
    stats.reason = no_hit_reason(session, lanes.values())
    return stats


def _branches(lanes: dict[tuple[Hashable, int], Lane]) -> list[Lane]:
    """The conditional branch, then the unconditional one; extra calls of a step and further passes are neither."""
    plain = [branch for branch, passed in lanes if passed == 0 and not isinstance(branch, tuple)]
    return [lanes[branch, 0] for branch in sorted(plain, key=lambda branch: branch == "uncond")]


def _options(options: ChainOptions, name: str) -> dict[str, Any]:
    calibrator = {} if options.calibrator is None else {"calibrator_config": options.calibrator}
    return {"cache_config": options.cache, **calibrator, "name": name}


def _label(key: tuple[Hashable, int]) -> str:
    branch, passed = key
    name = " ".join(map(str, branch)) if isinstance(branch, tuple) else str(branch)
    return f"{name} #{passed + 1}" if passed else name


def steps_line(records: Iterable[StepRecord]) -> str:
    """One letter a step: F computed in full, C cached, - not called."""
    done = {record.step: "F" if record.computed else "C" for record in records}
    return "".join(done.get(step, "-") for step in range(max(done, default=-1) + 1))


def no_hit_reason(session: Session, lanes: Iterable[Lane]) -> str | None:
    """Why a request with the cache on had no cached step, in one sentence; None when it had one, or had no step."""
    lanes = list(lanes)
    if session.note == "gradients" and not lanes:
        return "gradients are enabled, so every step is computed: run under torch.no_grad() or torch.inference_mode()"
    if not lanes or any(lane.policy.cached_steps for lane in lanes):
        return None
    for code, sentence in _REFUSALS.items():
        if any(record.why == code for lane in lanes for record in lane.policy.records):
            return sentence
    reasons = (why_no_hit(lane.policy.records, lane.options.cache) for lane in lanes)
    return next((reason for reason in reasons if reason is not None), None)


def report(stats: CacheStats, *, details: bool = False) -> str:
    """A readable report of one chain, in Markdown."""
    if not stats.cache_options:
        return ""
    lines = [f"cache_dit: {stats.name}: {strify_options(stats.cache_options)}"]
    width = max(map(len, stats.steps_line), default=0)
    for branch, line in stats.steps_line.items():
        cached = line.count("C")
        lines.append(f"  {branch:<{width}}  {line}  ({len(line) - line.count('-') - cached} computed, {cached} cached)")
    if stats.possible_blocks:
        lines.append(
            f"  blocks executed: {stats.executed_blocks} of {stats.possible_blocks} "
            f"(ideal speed-up {stats.ideal_speedup:.2f}), live state at most {stats.peak_bytes / 2**20:.2f} MiB"
        )
    for label, steps, diffs in (
        ("", stats.cached_steps, stats.residual_diffs),
        ("CFG ", stats.cfg_cached_steps, stats.cfg_residual_diffs),
    ):
        lines += _diff_table(label, steps, diffs, details=details)
    if stats.reason:
        lines.append(f"  no step was cached: {stats.reason}")
    return "\n".join(lines)


def _diff_table(label: str, steps: list[int], diffs: dict[str, float], *, details: bool) -> list[str]:
    if not diffs:
        return []
    values = sorted(diffs.values())
    heads = [f"{label}Cache Steps", *(f"Diffs P{q:02d}" for q in _QUANTILES), "Diffs Min", "Diffs Max"]
    cells = [str(len(steps)), *(f"{quantile(values, q / 100):.3f}" for q in _QUANTILES)]
    cells += [f"{values[0]:.3f}", f"{values[-1]:.3f}"]
    table = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), cells)]
    if details:
        table.append(f"{label}cached steps: {steps}")
        table.append(f"{label}diffs: " + ", ".join(f"{step}: {diff:.4f}" for step, diff in diffs.items()))
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
    calibrator: CalibratorConfig | None = options.get("calibrator_config")
    tag = "T0O0" if calibrator is None or not calibrator.enable_calibrator else calibrator.strify()
    return f"{config.strify()}_{'T0O0' if tag == 'NONE' else tag}"


def strify_stats(stats: CacheStats) -> str:
    """The tag of what was asked for, and ``_S`` with the number of cached steps."""
    if not stats.cache_options:
        return "NONE"
    steps = f"_S{len(stats.cached_steps)}" if stats.cached_steps else ""
    return strify_options(stats.cache_options) + steps
