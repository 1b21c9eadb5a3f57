"""What the tests of policies share: running one as the engine does, and random options and diffs for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hypothesis import strategies as st

from cache_dit.config import DBCacheConfig
from cache_dit.engine.policies.base import Action, StepPolicy, StepRecord
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.engine.policies.registry import make_policy

LOW = 0.01  # a diff below the default threshold of 0.08

Diff = float | Callable[[int], float]


def step_once(policy: StepPolicy, step: int, diff: float) -> None:
    """One step, as the engine takes it."""
    action = policy.decide(step)
    cached = action is Action.SKIP or (action is Action.MEASURE and policy.accept(diff))
    policy.commit(step, computed=not cached)


def run(policy: StepPolicy, steps: int | Iterable[int], diff: Diff = LOW) -> str:
    """Run these steps, each with this diff or the one that the function gives for it, and tell what was done."""
    for step in range(steps) if isinstance(steps, int) else steps:
        step_once(policy, step, diff(step) if callable(diff) else diff)
    return line(policy.records)


def line(records: Iterable[StepRecord]) -> str:
    """F for a computed step and C for a cached one."""
    return "".join("F" if record.computed else "C" for record in records)


def trace(
    steps: int | Iterable[int], diff: Diff = LOW, *, num_inference_steps: int | None = None, **options: Any
) -> str:
    """Run the policy that these options ask for, and tell what was done."""
    return run(make_policy(DBCacheConfig(**options), num_inference_steps=num_inference_steps), steps, diff)


def magnitudes(ratios: Sequence[float], **fields: Any) -> PolicyCalibration:
    """A calibration of MagCache with these ratios."""
    given = {"num_inference_steps": len(ratios), "branches": {"default": ratios}}
    return PolicyCalibration(**{"policy": "magcache", "model_class": "Toy", "scheduler": None, **given, **fields})


def polynomial(*coefficients: float) -> PolicyCalibration:
    """A calibration of TeaCache with these coefficients."""
    return PolicyCalibration("teacache", "Toy", None, None, {"default": coefficients})


POLICIES = ("dbcache", "teacache", "magcache", "easycache")

CALIBRATIONS: dict[str, PolicyCalibration] = {
    "teacache": polynomial(3.0, 0.5, -0.01),
    "magcache": magnitudes([1.0, 0.98, 1.03, 0.9, 1.01] * 20),
}

DIFFS = st.lists(st.floats(0, 0.3) | st.sampled_from([math.nan, math.inf, 0.0]), max_size=60)
OPTIONS = st.fixed_dictionaries(
    {
        "max_warmup_steps": st.integers(0, 10),
        "warmup_interval": st.integers(1, 4),
        "residual_diff_threshold": st.sampled_from([-1, 0, 0.05, 0.1, 0.25, 1.0, 2.0]),
        "max_accumulated_residual_diff_threshold": st.none() | st.floats(0.01, 1),
        "max_cached_steps": st.integers(-1, 12),
        "max_continuous_cached_steps": st.integers(-1, 5),
        "steps_computation_mask": st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=60),
    }
)


def asked_for(policy: str, options: dict[str, Any], **more: Any) -> DBCacheConfig:
    """Options with a policy, and the calibration that it needs."""
    return DBCacheConfig(policy=policy, policy_calibration=CALIBRATIONS.get(policy), **{**options, **more})
