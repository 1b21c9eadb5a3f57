"""Our own methods: every rule that decides with the predictors that suit it, and masks made in advance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import torch

import cache_dit
from bench.quality.masks import BUDGETS, even_mask
from bench.quality.method import Context, InProcess, Parameters
from cache_dit import CalibratorConfig, DBCacheConfig, DBPruneConfig, steps_mask
from cache_dit.demo import DemoPipeline

#: What calibrations are made on: a caption of the documentation, which neither search nor result uses.
CALIBRATION_CAPTION = "noto emoji of dog face"

#: Predictors by the name that stands in settings.
PREDICTORS: dict[str, Callable[[], CalibratorConfig | None]] = {
    "reuse": lambda: None,
    "taylor1": lambda: cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1),
    "taylor2": lambda: cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=2),
    "taylor1, damped 0.3": lambda: cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1, damping=0.3),
    "taylor1, damped 0.5": lambda: cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1, damping=0.5),
    "taylor1 in sigma": lambda: cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1, coordinate="sigma"),
    "hermite1": lambda: cache_dit.HermiteCalibratorConfig(hermite_order=1),
    "hermite2": lambda: cache_dit.HermiteCalibratorConfig(hermite_order=2),
    "foca": cache_dit.FoCaCalibratorConfig,
    "dmd": cache_dit.DMDCalibratorConfig,
}


@dataclass
class Cached(InProcess):
    """A cache of this package, put on by `enable_cache`.

    Args:
        name: as in tables.
        family: as in plots.
        candidates: the settings for a number of steps; a setting has `predictor`, and options of the configuration or
            what `options` makes them of.
        options: turns a setting (without `predictor`) and the number of steps into options of the configuration.
        config: their class.
        policy: the rule; one that needs a calibration gets it from a run of another caption.
    """

    name: str
    family: str
    candidates: Callable[[int], Iterator[Parameters]]
    options: Callable[[Parameters, int], Parameters] = lambda setting, steps: setting
    config: type[DBCacheConfig] | type[DBPruneConfig] = DBCacheConfig
    policy: str = "dbcache"
    owner: Literal["ours", "peer", "baseline"] = field(default="ours", init=False)

    def settings(self, steps: int) -> list[Parameters]:
        return list(self.candidates(steps))

    def prepare(self, context: Context) -> None:
        if self.policy in ("magcache", "teacache") and self.policy not in context.calibrations:
            cache_dit.disable_cache(context.pipe)
            context.calibrations[self.policy] = cache_dit.calibrate(
                context.pipe,
                lambda: context.pipe(
                    CALIBRATION_CAPTION, num_inference_steps=context.steps, output_type="latent", generator=_noise()
                ),
                policy=self.policy,
            )

    def put_on(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> None:
        setting = dict(parameters)
        predictor = PREDICTORS[setting.pop("predictor")]()
        options = {"Bn_compute_blocks": 0, **self.options(setting, context.steps)}
        if self.policy != "dbcache":
            options |= {"policy": self.policy, "policy_calibration": context.calibrations.get(self.policy)}
        cache_dit.enable_cache(pipe, self.config(**options), predictor)

    def take_off(self, pipe: DemoPipeline) -> str:
        stats = cache_dit.summary(pipe.transformer, logging=False)
        cache_dit.disable_cache(pipe)
        return "" if any(one.executed_blocks < one.possible_blocks for one in stats) else "nothing was cached"


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class FewerSteps(InProcess):
    """No cache: the pipeline is asked for fewer steps."""

    name = "fewer steps"
    owner = "baseline"
    family = "fewer steps"

    def settings(self, steps: int) -> list[Parameters]:
        return [{"steps": fewer} for fewer in range(steps - 1, 1, -1)][:24]

    def put_on(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> None:
        cache_dit.disable_cache(pipe)

    def take_off(self, pipe: DemoPipeline) -> str:
        return ""


# -- settings, from careful to fast


def _with(predictors: tuple[str, ...], settings: Callable[[int], Iterator[Parameters]]) -> Callable[[int], Any]:
    """The same settings for each predictor."""
    return lambda steps: ({**setting, "predictor": name} for name in predictors for setting in settings(steps))


def _thresholds(values: tuple[float, ...], warmups: tuple[int, ...], limits: tuple[int, ...], front: int) -> Any:
    """All combinations of a budget, a warm-up and the most cached steps in a row (-1: no limit)."""

    def settings(steps: int) -> Iterator[Parameters]:
        for limit, warmup, value in product(limits, warmups, values):
            yield {
                "Fn_compute_blocks": front,
                "max_warmup_steps": warmup,
                "max_continuous_cached_steps": limit,
                "residual_diff_threshold": value,
            }

    return settings


def _joined(*parts: Callable[[int], Iterator[Parameters]]) -> Callable[[int], Iterator[Parameters]]:
    return lambda steps: (setting for part in parts for setting in part(steps))


_DBCACHE = _joined(
    _thresholds((0.05, 0.1, 0.3), (1, 4), (1,), 1),
    _thresholds((0.1, 0.2, 0.4), (1, 3), (2,), 1),
    _thresholds((0.2, 0.4, 1.0), (1, 3), (4,), 1),
    _thresholds((0.1, 0.2, 0.4), (1,), (-1,), 1),
    _thresholds((0.3, 0.6, 1.0), (1,), (7,), 1),
)

#: Six of them, for predictors that are seldom the best.
_DBCACHE_FEW = _joined(
    _thresholds((0.1,), (1, 4), (1,), 1), _thresholds((0.2,), (1, 3), (2,), 1), _thresholds((0.4, 1.0), (1,), (4,), 1)
)


def _prune(steps: int) -> Iterator[Parameters]:
    for warmup, value in product((4, 1), (0.03, 0.06, 0.1, 0.15, 0.25, 0.4)):
        yield {"Fn_compute_blocks": 1, "max_warmup_steps": warmup, "residual_diff_threshold": value}


def _presets(steps: int) -> Iterator[Parameters]:
    for preset in ("slow", "medium", "fast", "ultra"):
        yield {"preset": preset}


def static(mask: list[int]) -> Parameters:
    """The options of a plan that is made in advance; no block runs in a cached step."""
    return {"Fn_compute_blocks": 0, "steps_computation_mask": mask, "steps_computation_policy": "static"}


def _preset_options(setting: Parameters, steps: int) -> Parameters:
    return static(steps_mask(total_steps=steps, mask_policy=setting["preset"]))


def _even_options(setting: Parameters, steps: int) -> Parameters:
    return static(even_mask(steps, **setting))


def full_steps(steps: int) -> list[int]:
    """The most computed steps of a static mask at each speed-up that is asked for, e.g. 19, 14, 12, 10, 9, 7, 5."""
    return sorted({max(2, int(steps / (0.98 * budget))) for budget in BUDGETS}, reverse=True)


def _even(*shapes: Parameters) -> Callable[[int], Iterator[Parameters]]:
    def settings(steps: int) -> Iterator[Parameters]:
        for full, shape in product(full_steps(steps), shapes):
            share = shape["warmup"] < 1
            warmup = max(2, int(full * shape["warmup"])) if share else min(shape["warmup"], full)
            if not share or {**shape, "warmup": warmup} not in shapes:
                yield {"full": full, **shape, "warmup": min(warmup, full)}

    return settings


#: Warm-ups of even masks, below 1: that share of the computed steps; two leave the last step out.
_EVEN: tuple[Parameters, ...] = (
    {"warmup": 1},
    {"warmup": 1, "last": False},
    {"warmup": 0.3, "last": False},
    {"warmup": 0.5},
)
#: Masks whose gaps grow from the first step to the last.
_BENT: tuple[Parameters, ...] = (
    {"warmup": 1, "bend": 1.3},
    {"warmup": 1, "bend": 1.6},
    {"warmup": 3, "bend": 1.3},
    {"warmup": 1, "bend": 1.3, "last": False},
)


def _dbcache(predictor: str) -> Cached:
    return Cached(f"DBCache, {predictor}", "DBCache", _with((predictor,), _DBCACHE))


def _masks(kind: str, shapes: tuple[Parameters, ...], *predictors: str) -> Iterator[Cached]:
    for name in predictors:
        yield Cached(f"{kind} mask, {name}", f"{kind} masks", _with((name,), _even(*shapes)), _even_options)


def _policy(name: str, title: str, thresholds: Callable[[int], Iterator[Parameters]]) -> Cached:
    return Cached(f"{title} policy", "other policies", _with(("reuse", "taylor1"), thresholds), policy=name)


OURS: tuple[InProcess, ...] = (
    *_masks("even", _EVEN, "reuse", "taylor1", "taylor2", "taylor1, damped 0.5", "taylor1, damped 0.3", "foca"),
    *_masks("even", _EVEN[:2], "hermite1", "hermite2", "taylor1 in sigma"),
    *_masks("bent", _BENT, "reuse", "taylor1", "taylor1, damped 0.5", "taylor1, damped 0.3"),
    Cached(
        "preset mask",
        "preset masks",
        _with(("reuse", "taylor1", "taylor1, damped 0.5", "taylor2", "foca", "dmd"), _presets),
        _preset_options,
    ),
    *map(_dbcache, ("reuse", "taylor1", "taylor1, damped 0.5")),
    Cached("DBCache, other predictors", "DBCache", _with(("taylor2", "hermite1", "foca", "dmd"), _DBCACHE_FEW)),
    Cached("DBPrune", "DBPrune", _with(("reuse", "taylor1"), _prune), config=DBPruneConfig),
    _policy("teacache", "TeaCache", _thresholds((0.05, 0.1, 0.2, 0.3, 0.5, 0.8), (1, 3), (-1,), 1)),
    _policy("magcache", "MagCache", _thresholds((0.02, 0.05, 0.1, 0.2, 0.4, 1.0), (1,), (2, 6), 0)),
    _policy("easycache", "EasyCache", _thresholds((0.02, 0.05, 0.1, 0.2, 0.4, 0.8), (1, 3), (-1,), 0)),
)

BASELINES: tuple[InProcess, ...] = (FewerSteps(),)
