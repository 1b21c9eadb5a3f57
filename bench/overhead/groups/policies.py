"""Every policy: a step when nothing is cached, and how often it waits for a device."""

from typing import Any

import cache_dit
from bench.common import ALWAYS, NEVER, pairs_of, static, twin
from bench.findings import Finding, ratio
from bench.overhead.common import Size, cached, half_mask, interleaved
from bench.overhead.speedups import live_features
from bench.peers.cost import make_inputs, make_transformer
from bench.reads import reads

#: Host reads of a step, at most.
READS = {"dbcache": 1, "teacache": 1, "easycache": 1, "magcache": 0, "static": 0}


def policies(size: Size) -> list[Finding]:
    """A budget so small that every step is computed, Taylor 1; then one so large that every other step is skipped."""
    model, inputs = make_transformer(size), make_inputs(size)
    options = policy_options(model, size)
    spent = {"residual_diff_threshold": NEVER}
    plenty = {"residual_diff_threshold": ALWAYS, "max_continuous_cached_steps": 1}
    never = {name: cached(model, size, order=1, **given, **spent) for name, given in options.items()}
    half = {name: cached(model, size, order=1, **given, **plenty) for name, given in options.items()}
    never["static"] = cached(model, size, order=1, Fn_compute_blocks=0, **static([1] * size.steps + [0]))
    half["static"] = cached(model, size, order=1, Fn_compute_blocks=0, **static(half_mask(size)))
    times = interleaved({"bare": model, **never}, inputs, size.runs, "policies", size.clock)
    findings = []
    for name, wrapped in never.items():
        title = f"wrapped ÷ bare, {name}, nothing cached"
        lines = cache_dit.summary(wrapped, logging=False)[0].steps_line
        held = live_features(wrapped, size)
        findings.append(ratio(title, pairs_of(times, name, "bare"), most=1.01, live_features=held, steps_line=lines))
    for what, models in (("nothing cached", never), ("half of the steps cached", half)):
        for name, wrapped in models.items():
            finding = reads(f"{name}, {what}", wrapped, inputs, READS[name])
            finding.details["steps_line"] = cache_dit.summary(wrapped, logging=False)[0].steps_line
            findings.append(finding)
    return findings


def policy_options(model: Any, size: Size) -> dict[str, dict[str, Any]]:
    """What each policy that decides in the run needs; MagCache is calibrated here."""
    watched, inputs = twin(model), make_inputs(size)
    known = cache_dit.calibrate(watched, lambda: [watched(**arguments) for arguments in inputs], policy="magcache")
    return {
        "dbcache": {"policy": "dbcache", "Fn_compute_blocks": 1},
        "teacache": {"policy": "teacache", "Fn_compute_blocks": 1},
        "easycache": {"policy": "easycache", "Fn_compute_blocks": 0},
        "magcache": {"policy": "magcache", "Fn_compute_blocks": 1, "policy_calibration": known},
    }
