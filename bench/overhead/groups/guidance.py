"""Guidance by separate calls: two branches a step."""

from typing import Any

from bench.common import ALWAYS, NEVER, pairs_of, static
from bench.findings import Finding, at_most, ratio
from bench.overhead.common import Size, cached, half_mask, interleaved
from bench.overhead.speedups import live_features, speedups
from bench.peers.cost import drifting, make_inputs, make_transformer, with_blocks
from bench.reads import reads


class Guided:
    """A step with guidance: the transformer is called for each branch, by name or in turn."""

    def __init__(self, model: Any, *, named: bool) -> None:
        self.model = model
        self.named = named

    def __call__(self, **branches: dict[str, Any]) -> None:
        for name, arguments in branches.items():
            if self.named:
                with self.model.cache_context(name):
                    self.model(**arguments)
            else:
                self.model(**arguments)


def guided_inputs(size: Size) -> list[dict[str, Any]]:
    pairs = zip(make_inputs(size), drifting(size, [1.0], seed=1), strict=True)
    words = ("encoder_hidden_states", "pooled_projections")  # the branches differ in what they are told
    return [{"cond": cond, "uncond": {**cond, **{key: other[key] for key in words}}} for cond, other in pairs]


def guidance(size: Size) -> list[Finding]:
    """Nothing cached, by turns and by name; half of the steps cached, by threshold and by plan."""
    model, inputs = make_transformer(size), guided_inputs(size)
    runs = max(1, size.runs // 2)  # each is two
    findings = []
    for named in (False, True):
        options = {} if named else {"enable_separate_cfg": True}
        wrapped = cached(model, size, order=1, Fn_compute_blocks=1, residual_diff_threshold=NEVER, **options)
        models = {"bare": Guided(model, named=named), "cached": Guided(wrapped, named=named)}
        times = interleaved(models, inputs, runs, "guidance, nothing cached", size.clock)
        title = f"wrapped ÷ bare, two branches {'by name' if named else 'by turns'}, every step measured"
        findings.append(ratio(title, pairs_of(times, "cached", "bare"), runs=runs))
    threshold = {"Fn_compute_blocks": 1, "residual_diff_threshold": ALWAYS, "max_continuous_cached_steps": 1}
    planned = {"Fn_compute_blocks": 0, **static(half_mask(size))}
    for name, options, waits in (("threshold", threshold, 2), ("static mask", planned, 0)):
        wrapped = cached(model, size, order=1, **options)
        models = {
            "bare": Guided(model, named=True),
            "cached": Guided(wrapped, named=True),
            "rest": Guided(with_blocks(model, range(options["Fn_compute_blocks"])), named=True),
        }
        times = interleaved(models, inputs, runs, f"guidance, {name}", size.clock)
        findings += speedups(f"two branches, {name}", times, wrapped, least=0.97, runs=runs)
        findings.append(reads(f"two branches, {name}", models["cached"], inputs, waits))
        held = live_features(wrapped, size) / 2
        findings.append(at_most(f"live state of a branch, Taylor 1, {name}", held, "features", 3))
    shared = cached(model, size, order=1, cfg_diff_compute_separate=False, enable_separate_cfg=True, **threshold)
    findings.append(reads("two branches, one diff for both", Guided(shared, named=True), inputs, 1))
    return findings
