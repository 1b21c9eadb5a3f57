"""A batch of different samples: what deciding for each one saves against computing when any needs it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import cache_dit
from bench.common import NEVER, Times, interval, median_ms
from bench.findings import Finding
from bench.overhead.common import Size, cached, interleaved
from bench.peers.cost import drifting, make_transformer
from bench.reads import reads
from cache_dit.summary import CacheStats

DECISIONS = ("any", "mean", "sample")
#: The samples' drifts, slow ones and fast ones.
SPEEDS = tuple(0.2 * 1.6**place for place in range(8))


def batches(size: Size) -> list[Finding]:
    """Eight samples at one threshold, Taylor 1; a smaller model, since each step is eight."""
    smaller = {"hidden": 256, "double": 2, "single": 4, "image_tokens": 128, "text_tokens": 32, "runs": 6}
    size = replace(size, **{name: min(most, getattr(size, name)) for name, most in smaller.items()})
    model, inputs = make_transformer(size), drifting(size, SPEEDS)
    # Random weights react to the time like nothing trained does; so damped, it is the samples that differ.
    model.time_text_embed.timestep_embedder.linear_2.weight.mul_(0.01)
    threshold = _typical_diff(model, size, inputs)
    options = {"Fn_compute_blocks": 1, "residual_diff_threshold": threshold, "max_warmup_steps": 3, "order": 1}
    models = {decision: cached(model, size, decision=decision, **options) for decision in DECISIONS}
    times = interleaved(models, inputs, size.runs, "batches", size.clock)
    errors = _errors(model, models, inputs)
    details = {"model": asdict(size), "threshold": threshold, "drifts": SPEEDS, "relative_error": errors}
    stats = {decision: cache_dit.summary(wrapped, logging=False)[0] for decision, wrapped in models.items()}
    findings = compare_decisions("batch of 8", times, stats, len(SPEEDS), **details)
    return [*findings, reads("batch of 8, each sample for itself", models["sample"], inputs, 1)]


def _typical_diff(model: Any, size: Size, inputs: Sequence[dict[str, Any]]) -> float:
    """A threshold that slow samples stay below for some steps, and fast ones don't: the median diff of the batch."""
    watched = cached(model, size, Fn_compute_blocks=1, residual_diff_threshold=NEVER)
    for arguments in inputs:
        watched(**arguments)
    return statistics.median(cache_dit.summary(watched, logging=False)[0].residual_diffs.values())


def _errors(model: Any, models: Mapping[str, Any], inputs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """mean|difference| / mean|true output| over all steps of a run: what the saved time costs."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for arguments in inputs:
        true = model(**arguments)[0]
        for name, wrapped in models.items():
            output = wrapped(**arguments)[0]
            found[name].append((float((output - true).abs().mean()), float(true.abs().mean())))
    return {name: sum(e for e, _ in rows) / sum(s for _, s in rows) for name, rows in found.items()}


def compare_decisions(
    name: str, times: Times, stats: Mapping[str, CacheStats], batch: int, **details: Any
) -> list[Finding]:
    """The executed blocks of each decision, and the speed-up of the others against ``"any"``.

    Args:
        name: what was run.
        times: seconds by decision, run and step.
        stats: of a run of each decision.
        batch: the number of samples.
        **details: to save beside the speed-ups.
    """
    samples = {decision: 1 if decision == "sample" else batch for decision in stats}  # that a counted call stands for
    executed = {decision: one.executed_blocks * samples[decision] for decision, one in stats.items()}
    findings = []
    for decision, one in stats.items():
        told = {"possible": one.possible_blocks * samples[decision], "steps_line": one.steps_line}
        findings.append(Finding(f"{name}, {decision}: blocks run", executed[decision], "sample·blocks", details=told))
    for decision in stats:
        if decision == "any":
            continue
        pairs = [(sum(slow), sum(fast)) for slow, fast in zip(times["any"], times[decision], strict=True)]
        told = {
            "ideal_by_blocks": executed["any"] / executed[decision],
            "median_run_ms": {key: median_ms(map(sum, rows)) for key, rows in times.items()},
            **details,
        }
        title = f"{name}, speed-up of {decision!r} against 'any'"
        findings.append(Finding(title, _speedup(pairs), "×", *interval(pairs, _speedup), details=told))
    return findings


def _speedup(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(slow / fast for slow, fast in pairs)
