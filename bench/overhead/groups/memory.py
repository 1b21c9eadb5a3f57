"""Live state: by what is really alive, and kept in fewer bytes."""

from bench.common import ALWAYS, pairs_of, static
from bench.findings import Finding, at_most, ratio
from bench.overhead.common import Size, cached, half_mask, interleaved
from bench.overhead.speedups import live_features
from bench.peers.cost import make_inputs, make_transformer, most_alive

#: None: as they come, in float32.
DTYPES = (None, "bfloat16", "float8_e4m3fn")


def memory(size: Size) -> list[Finding]:
    return [*live_state(size), *fewer_bytes(size)]


def live_state(size: Size) -> list[Finding]:
    """Features held between two steps, by the cache's own count and by what is really alive."""
    model = make_transformer(size)
    planned = {"Fn_compute_blocks": 0, **static(half_mask(size))}
    threshold = {"Fn_compute_blocks": 1, "residual_diff_threshold": ALWAYS, "max_continuous_cached_steps": 2}
    cases = (
        ("reuse, threshold", threshold, None, 2),
        ("reuse, static mask", planned, None, 1),
        ("Taylor 1, threshold", threshold, 1, 3),
        ("Taylor 1, static mask", planned, 1, 3),
        ("Taylor 2, threshold", threshold, 2, 4),
        ("Taylor 2, static mask", planned, 2, 4),
    )
    findings = []
    for name, options, order, most in cases:
        wrapped = cached(model, size, order=order, **options)
        alive = most_alive(wrapped, make_inputs(size)) / size.feature_bytes
        counted = live_features(wrapped, size)
        finding = at_most(f"live state, {name}", alive, "features", most, counted_by_the_cache=counted)
        finding.reached = max(alive, counted) <= most
        findings.append(finding)
    return findings


def fewer_bytes(size: Size) -> list[Finding]:
    """What snapshots of another dtype hold, and what a step costs that converts them; Taylor 1, Fn=0."""
    size = size.shallow
    model, mask = make_transformer(size), half_mask(size)
    models = {
        dtype: cached(model, size, order=1, Fn_compute_blocks=0, cache_dtype=dtype, **static(mask)) for dtype in DTYPES
    }
    named = {str(dtype): wrapped for dtype, wrapped in models.items()}
    times = interleaved(named, make_inputs(size), size.runs, "dtypes", size.clock)
    skipped = [step for step, computed in enumerate(mask) if not computed]
    full = [step for step, computed in enumerate(mask) if computed]
    findings = []
    for dtype in DTYPES:
        held = live_features(models[dtype], size)
        findings.append(Finding(f"live state, Taylor 1, static mask, kept as {dtype or 'it comes'}", held, "features"))
        if dtype is not None:
            pairs = pairs_of(times, dtype, "None", skipped)
            findings.append(ratio(f"cached step, kept as {dtype} ÷ kept as float32", pairs))
            pairs = pairs_of(times, dtype, "None", full)
            findings.append(ratio(f"computed step, kept as {dtype} ÷ kept as float32, 3 blocks", pairs))
    return findings
