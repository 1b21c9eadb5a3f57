"""A cached step by predictor: its time against reuse, its live state, its reads."""

from dataclasses import replace

from bench.common import pairs_of, static
from bench.findings import Finding, at_most, ratio
from bench.overhead.common import Size, cached, half_mask, interleaved
from bench.overhead.speedups import live_features
from bench.peers.cost import make_inputs, make_transformer
from bench.reads import reads
from cache_dit import (
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    TaylorSeerCalibratorConfig,
)

PREDICTORS = {
    "reuse": None,
    "Taylor 1": TaylorSeerCalibratorConfig(taylorseer_order=1),
    "Taylor 2": TaylorSeerCalibratorConfig(taylorseer_order=2),
    "Newton 2": NewtonCalibratorConfig(newton_order=2),
    "Hermite 2": HermiteCalibratorConfig(hermite_order=2),
    "FoCa": FoCaCalibratorConfig(),
    "DMD 6": DMDCalibratorConfig(dmd_history=6),
}
#: After so many steps of the plan, of which every other one is computed, each has all the snapshots that it uses; and
#: the steps of a run that is long enough for that.
FULL, LONG = 12, 28


def predictors(size: Size) -> list[Finding]:
    """Static plan; the model has three blocks, since what a cached step costs does not depend on those it skips."""
    size = size.shallow if size.quick else replace(size.shallow, steps=max(size.steps, LONG))
    model, mask = make_transformer(size), half_mask(size)
    inputs = make_inputs(size)
    steps = [step for step, computed in enumerate(mask) if not computed and step >= min(FULL, size.steps // 2)]
    findings = []
    for front in (0, 1):
        models = {
            name: cached(model, size, calibrator=calibrator, Fn_compute_blocks=front, **static(mask))
            for name, calibrator in PREDICTORS.items()
        }
        times = interleaved(models, inputs, size.runs, f"predictors, Fn={front}", size.clock)
        for name, wrapped in models.items():
            if name != "reuse":
                most = 1.5 if name == "Taylor 1" else None
                pairs = pairs_of(times, name, "reuse", steps)
                findings.append(ratio(f"cached step, {name} ÷ reuse, Fn={front}", pairs, most=most))
            if front == 0:
                findings.append(at_most(f"live state, {name}", live_features(wrapped, size), "features", None))
                if name in ("Taylor 1", "DMD 6"):  # DMD reads the inner products of each stream's snapshots
                    findings.append(reads(f"{name}, static mask", wrapped, inputs, 2 if name == "DMD 6" else 0))
    return findings
