"""What the documentation's figures measure: one table, a study for each figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cache_dit
from cache_dit import CalibratorConfig, DBCacheConfig, TaylorSeerCalibratorConfig, steps_mask
from cache_dit.demo.plans import demo_plan

STEPS = 28
SEED = 0
PROMPTS = (
    "flat emoji of woman running, dark skin tone",
    "glossy 3d emoji of juggling, medium skin tone",
    "noto emoji of woman wearing turban, medium-dark skin tone",
    "glossy 3d emoji of cuba flag",
    "flat emoji of red heart",
    "noto emoji of grinning face",
    "glossy 3d emoji of cat face",
    "flat emoji of person cartwheeling, light skin tone",
)
#: Guidance that every study runs with: the model's own, with two branches, and none, with one.
SCALES = {"guided": 2.0, "plain": 1.0}
#: Steps of the uncached runs that show what simply taking fewer steps gives.
FEWER_STEPS = (24, 20, 17, 14, 12, 10, 8, 6)


@dataclass(frozen=True)
class Case:
    """One setting of a study.

    Args:
        label: for tables and legends.
        cache: when to compute.
        calibrator: how a skipped step is filled.
    """

    label: str
    cache: DBCacheConfig
    calibrator: CalibratorConfig | None = None


@dataclass(frozen=True)
class Study:
    """One figure of settings that differ in one thing.

    Args:
        cases: makes them; called when the study is run, since some need a calibration first.
        shows: one sentence on what the cases are, for the caption.
        value: what the cases measure at each step, for an axis; empty: nothing is.
        traced: the index of the case whose values are drawn.
        compares: whether the threshold bounds each value; if not, it is a budget for their sum.
    """

    cases: Callable[[], list[Case]]
    shows: str
    value: str = ""
    traced: int = 0
    compares: bool = True

    @property
    def alt(self) -> str:
        """What the figure shows, for those who do not see it."""
        return "Each setting's steps, and how close its pictures are at which speed-up"


def threshold(value: float, *, calibrator: CalibratorConfig | None = None, label: str = "", **options: Any) -> Case:
    """A case of DBCache with one front block and 4 warm-up steps."""
    options = {"Fn_compute_blocks": 1, "max_warmup_steps": 4, **options}
    return Case(label or f"δ = {value:g}", DBCacheConfig(residual_diff_threshold=value, **options), calibrator)


def every(gap: int) -> list[int]:
    """A mask of 4 computed steps, then every ``gap``-th, and the last one."""
    return [int(step < 4 or (step - 3) % gap == 0 or step == STEPS - 1) for step in range(STEPS)]


def planned(gap: int, *, calibrator: CalibratorConfig | None = None) -> Case:
    """A case with every ``gap``-th step computed, static and with no block in a cached step."""
    config = DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=every(gap), steps_computation_policy="static")
    return Case(f"1 of {gap}", config, calibrator)


def masked(preset: str, *, calibrator: CalibratorConfig | None = None, label: str = "", **options: Any) -> Case:
    """A case with the steps planned by a preset; static unless said otherwise, then no block runs in a cached step."""
    options = {"Fn_compute_blocks": 0, "steps_computation_policy": "static", **options}
    mask = steps_mask(total_steps=STEPS, mask_policy=preset)
    return Case(label or preset, DBCacheConfig(steps_computation_mask=mask, **options), calibrator)


def _dbcache() -> list[Case]:
    taylor = TaylorSeerCalibratorConfig(taylorseer_order=1)
    values = (0.05, 0.1, 0.2, 0.3)
    return [threshold(value, calibrator=taylor) for value in values]


def _masks() -> list[Case]:
    taylor = TaylorSeerCalibratorConfig(taylorseer_order=1)
    dynamic = partial(masked, Fn_compute_blocks=1, steps_computation_policy="dynamic", residual_diff_threshold=0.2)
    return [
        *(masked(preset, calibrator=taylor) for preset in ("slow", "medium", "fast", "ultra")),
        dynamic("fast", calibrator=taylor, label="fast, dynamic"),
        *(planned(gap, calibrator=taylor) for gap in (2, 3, 4)),
    ]


def _dbprune() -> list[Case]:
    return [
        Case(
            f"δ = {value:g}",
            cache_dit.DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=value),
        )
        for value in (0.05, 0.1, 0.2, 0.3)
    ]


def _policy(name: str, values: tuple[float, ...], **options: Any) -> list[Case]:
    """A policy at several budgets; one that needs a calibration gets it from a run of another prompt."""
    taylor = TaylorSeerCalibratorConfig(taylorseer_order=1)
    if name in ("magcache", "teacache"):
        pipe = cache_dit.demo.load_pipeline(progress=False)
        options["policy_calibration"] = cache_dit.calibrate(
            pipe, lambda: pipe("noto emoji of dog face", num_inference_steps=STEPS, output_type="latent"), policy=name
        )
    return [threshold(value, calibrator=taylor, policy=name, **options) for value in values]


#: Studies of when to compute. The calibrator is Taylor of order 1, so that they can be compared.
STUDIES: dict[str, Study] = {
    "dbcache": Study(
        _dbcache,
        "DBCache with one front block (Fn=1), 4 warm-up steps and Taylor order 1, at four thresholds δ.",
        "relL1 of the first block's residual",
        traced=2,
    ),
    "masks": Study(
        _masks,
        "The presets as static masks with Fn=0, where a cached step runs no block; one as a dynamic mask with Fn=1 and "
        "a threshold of 0.2; and masks that compute 4 steps, then one of 2, 3 or 4, and the last. All with Taylor of "
        "order 1.",
    ),
    "dbprune": Study(
        _dbprune,
        "DBPrune with one front block, 4 warm-up steps and reuse, at four thresholds δ; lower: blocks were pruned.",
        "relL1 of the blocks' inputs, mean",
        traced=1,
    ),
    "teacache": Study(
        partial(_policy, "teacache", (0.1, 0.2, 0.4, 0.8)),
        "The TeaCache policy at four budgets δ, calibrated on one run of another prompt.",
        "change of the modulated input",
        traced=1,
        compares=False,
    ),
    "magcache": Study(
        partial(_policy, "magcache", (0.05, 0.1, 0.2, 0.4), Fn_compute_blocks=0, max_continuous_cached_steps=4),
        "The MagCache policy at four budgets δ, with at most K = 4 cached steps in a row and Fn=0, calibrated on one "
        "run of another prompt.",
    ),
    "easycache": Study(
        partial(_policy, "easycache", (0.02, 0.05, 0.1, 0.2), Fn_compute_blocks=0),
        "The EasyCache policy at four budgets τ, with Fn=0.",
        "estimated change of the output",
        traced=1,
        compares=False,
    ),
}


@dataclass(frozen=True)
class PredictorCase:
    """One predictor.

    Args:
        label: for tables and legends.
        config: what asks for it; makes None for reuse.
    """

    label: str
    config: Callable[[], CalibratorConfig | None]


def _calibrator(name: str, **options: Any) -> CalibratorConfig:
    made: CalibratorConfig = getattr(cache_dit, f"{name}CalibratorConfig")(**options)
    return made


#: The predictors that are compared, all over the same static masks.
PREDICTORS: dict[str, PredictorCase] = {
    "reuse": PredictorCase("reuse", lambda: None),
    "taylor": PredictorCase("Taylor 1", lambda: TaylorSeerCalibratorConfig(taylorseer_order=1)),
    "taylor2": PredictorCase("Taylor 2", lambda: TaylorSeerCalibratorConfig(taylorseer_order=2)),
    "hermite": PredictorCase("Hermite 2", lambda: _calibrator("Hermite", hermite_order=2)),
    "foca": PredictorCase("FoCa", lambda: _calibrator("FoCa")),
    "dmd": PredictorCase("DMD", lambda: _calibrator("DMD")),
}
#: One of how many steps the masks compute.
PREDICTOR_GAPS = (2, 3, 4, 5)
#: That of the mask at whose cached steps the errors of single predictions are measured.
ERRORS_GAP = 4


#: How many of the steps the README's settings compute, and fewer steps take.
SETTINGS_STEPS = 12


def settings() -> list[Case]:
    """The three settings of the README: a plan, an even mask, a threshold."""
    plan = DBCacheConfig(plan=demo_plan(STEPS).select(full_steps=SETTINGS_STEPS))
    mask = steps_mask(total_steps=STEPS, mask_policy="even", full_steps=SETTINGS_STEPS, warmup=1)
    even = DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static")
    return [
        Case(f"plan, {SETTINGS_STEPS} of {STEPS} steps", plan),
        Case(f"even mask, {SETTINGS_STEPS} of {STEPS} steps", even, TaylorSeerCalibratorConfig(damping=0.5)),
        threshold(0.1, calibrator=TaylorSeerCalibratorConfig(), label="threshold 0.1"),
    ]
