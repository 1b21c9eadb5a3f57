"""The kinds of finding that only groups of this bench are made of."""

import statistics
from collections.abc import Sequence
from typing import Any

import cache_dit
from bench.common import Times, flat, interval, median_ms
from bench.findings import Finding
from bench.peers.cost import Size


def speedups(name: str, times: Times, wrapped: Any, *, least: float | None = None, **details: Any) -> list[Finding]:
    """The measured speed-up over the ideal one by executed blocks, and over one that knows the rest.

    Ideal by blocks: block calls without a cache over block calls with it. It takes all blocks as equal and the rest of
    the transformer as free. The other ideal counts what a step that skips blocks must still do at what it costs in a
    model that has nothing else: the embedders, the output layer, and the blocks that are never skipped.

    Args:
        name: what was run.
        times: of ``"bare"``, ``"cached"``, and ``"rest"``, the model that has only what is never skipped.
        wrapped: the cached transformer.
        least: the share of the first ideal that it should reach.
    """
    stats = cache_dit.summary(wrapped, logging=False)[0]
    line = next(iter(stats.steps_line.values()))
    computed = [letter == "F" for letter in line]
    runs = []
    for bare, quick, rest in zip(times["bare"], times["cached"], times["rest"], strict=True):
        floor = sum(b if full else r for full, b, r in zip(computed, bare, rest, strict=True))
        runs.append((sum(bare), sum(quick), floor))

    def share(samples: Sequence[Any]) -> float:
        return statistics.median(bare / quick for bare, quick, _ in samples) / stats.ideal_speedup

    def share_of_all(samples: Sequence[Any]) -> float:
        return statistics.median(floor / quick for _, quick, floor in samples)

    def step_ms(full: bool) -> float:
        return median_ms(t for row in times["cached"] for f, t in zip(computed, row, strict=True) if f is full)

    measured = statistics.median(bare / quick for bare, quick, _ in runs)
    with_rest = statistics.median(bare / floor for bare, _, floor in runs)
    by_blocks = Finding(
        f"speed-up ÷ ideal by blocks, {name}",
        share(runs),
        "×",
        *interval(runs, share),
        details={
            "measured_speedup": measured,
            "ideal_by_blocks": stats.ideal_speedup,
            "ideal_with_rest": with_rest,
            "bare_step_ms": median_ms(flat(times["bare"])),
            "rest_step_ms": median_ms(flat(times["rest"])),
            "skipped_step_ms": step_ms(False),
            "computed_step_ms": step_ms(True),
            "steps_line": line,
            **details,
        },
    )
    if least is not None:
        by_blocks.target, by_blocks.reached = f"≥ {least:g}", by_blocks.value >= least
    title = f"speed-up ÷ ideal with the rest, {name}"
    return [by_blocks, Finding(title, share_of_all(runs), "×", *interval(runs, share_of_all))]


def live_features(model: Any, size: Size) -> float:
    """The most that the latest request kept, in features, by the cache's own count."""
    return cache_dit.summary(model, logging=False)[0].peak_bytes / size.feature_bytes
