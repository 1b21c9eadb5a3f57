"""The configurations that the demo compares: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from cache_dit.config.cache import DBCacheConfig
from cache_dit.config.calibrator import CalibratorConfig, TaylorSeerCalibratorConfig
from cache_dit.config.masks import steps_mask


@dataclass(frozen=True)
class Configuration:
    """One column of the demo.

    Args:
        name: short, for tables and files.
        explanation: one sentence for people.
        cache: when to compute; None: no cache at all.
        calibrator: how skipped steps are predicted; None: by reuse of the last computed step.
    """

    name: str
    explanation: str
    cache: DBCacheConfig | None = None
    calibrator: CalibratorConfig | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        cache = None if self.cache is None else {**asdict(self.cache), "cache_type": str(self.cache.cache_type)}
        calibrator = None if self.calibrator is None else asdict(self.calibrator)
        return {"name": self.name, "explanation": self.explanation, "cache": cache, "calibrator": calibrator}


UNCACHED = Configuration("no cache", "Every step runs every block: the picture that the others are compared with.")


def configurations(steps: int) -> tuple[Configuration, ...]:
    """What the demo compares for pictures of so many steps, the uncached one first.

    Args:
        steps: denoising steps of a picture.
    """
    warmup = max(1, round(steps / 7))

    def threshold(value: float, **limits: Any) -> DBCacheConfig:
        return DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=value, max_warmup_steps=warmup, **limits
        )

    def mask(preset: str, front: int, policy: str, value: float) -> DBCacheConfig:
        return DBCacheConfig(
            Fn_compute_blocks=front,
            Bn_compute_blocks=0,
            residual_diff_threshold=value,
            max_warmup_steps=warmup,
            steps_computation_mask=steps_mask(total_steps=steps, mask_policy=preset),
            steps_computation_policy=policy,
        )

    taylor: Callable[[], CalibratorConfig] = TaylorSeerCalibratorConfig
    return (
        UNCACHED,
        Configuration(
            "careful",
            "A step is skipped when the first block changed by less than 8 % since the last computed step, "
            "never two in a row; Taylor's polynomial predicts what the skipped blocks would have added.",
            threshold(0.08, max_continuous_cached_steps=1),
            taylor(),
        ),
        Configuration(
            "fast",
            "The same with 20 %, and at most three in a row.",
            threshold(0.20, max_continuous_cached_steps=3),
            taylor(),
        ),
        Configuration(
            "fast, reuse",
            "As fast, but a skipped step repeats the last computed one: this is what the prediction is worth.",
            threshold(0.20, max_continuous_cached_steps=3),
        ),
        Configuration(
            "static mask",
            "The steps to skip are planned in advance: nothing is measured, and a skipped step runs no block at all.",
            mask("medium", 0, "static", 0.0),
            taylor(),
        ),
        Configuration(
            "dynamic mask",
            "The plan says where a step may be skipped, and a change of less than 20 % decides whether it is.",
            mask("fast", 1, "dynamic", 0.20),
            taylor(),
        ),
    )
