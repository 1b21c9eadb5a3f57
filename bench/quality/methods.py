"""The table of methods: ours, what needs no cache, diffusers' caches, and the packages of our name, with settings.

Settings go from careful to fast. FluxPipeline with true guidance calls the transformer twice a step; the packages of
our name count these as two steps unless they are told `enable_separate_cfg=True`, so they are. They cannot skip their
first block: they get masks with fewer computed steps than ours for the same work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import torch

import cache_dit
from bench.cost.steps import static, threshold
from bench.measures import configured
from bench.peers.environment import VERSIONS
from bench.quality import diffusers_caches as theirs
from bench.quality.drawing import Context, Method, Parameters
from cache_dit import steps_mask
from cache_dit.demo.plans import demo_plan, steps_planned

Settings = Callable[[int], Sequence[Parameters]]

#: Speed-ups by work, and the most settings of a method that are tried, the same for all.
BUDGETS = (1.5, 2.0, 2.33, 2.8, 3.0, 4.0, 5.7)
CANDIDATES = 28
#: What calibrations are made on: a caption of the documentation, which neither search nor result uses.
CALIBRATION_CAPTION = "noto emoji of dog face"

_TAYLOR = "TaylorSeerCalibratorConfig"
#: Predictors by the name that stands in settings; none: reuse.
PREDICTORS: dict[str, tuple[str, Parameters] | None] = {
    "reuse": None,
    "taylor1": (_TAYLOR, {"taylorseer_order": 1}),
    "taylor2": (_TAYLOR, {"taylorseer_order": 2}),
    "foca": ("FoCaCalibratorConfig", {}),
    "dmd": ("DMDCalibratorConfig", {}),
    "taylor1, damped 0.3": (_TAYLOR, {"taylorseer_order": 1, "damping": 0.3}),
    "taylor1, damped 0.5": (_TAYLOR, {"taylorseer_order": 1, "damping": 0.5}),
    "taylor1 in sigma": (_TAYLOR, {"taylorseer_order": 1, "coordinate": "sigma"}),
    "hermite1": ("HermiteCalibratorConfig", {"hermite_order": 1}),
    "hermite2": ("HermiteCalibratorConfig", {"hermite_order": 2}),
}
#: Those that peers are tried with. At equal settings both versions gave the same pictures, so 1.2.0 is asked for fewer.
PEER_PREDICTORS = {"1.2.0": ("reuse", "taylor1"), "1.5.3": tuple(PREDICTORS)[:5]}
PRESETS = ("slow", "medium", "fast", "ultra")


# -- settings


def even_mask(steps: int, full: int, **shape: Any) -> list[int]:
    """A mask of so many full steps, in the shape that `steps_mask` takes: `warmup`, `bend`, `last`."""
    given = {"total_steps": steps, "mask_policy": "even", "full_steps": full, "warmup": 1, **shape}
    return steps_mask(**given) or []


def _each(predictors: Iterable[str], settings: Settings) -> Settings:
    """The same settings for each predictor."""
    return lambda steps: [{**setting, "predictor": name} for name in predictors for setting in settings(steps)]


def _thresholds(*table: tuple[int, tuple[int, ...], tuple[float, ...]], front: int | None = None) -> Settings:
    """From rows of the most cached steps in a row (-1: no limit), warm-ups, and budgets."""
    fixed = {} if front is None else {"Fn_compute_blocks": front}
    found = [
        {"max_warmup_steps": warmup, "max_continuous_cached_steps": limit, "residual_diff_threshold": value}
        for limit, warmups, values in table
        for warmup, value in product(warmups, values)
    ]
    return lambda steps: [{**fixed, **setting} for setting in found]


def full_steps(steps: int, budget: float, rest: float = 0.0) -> int:
    """The most computed steps at a speed-up, where each other step still costs a share of one."""
    return max(2, int((steps / (0.98 * budget) - rest * steps) / (1 - rest)))


def _even(*shapes: Parameters) -> Settings:
    """Even masks at every budget; a warm-up below 1 is a share of the computed steps."""

    def settings(steps: int) -> Sequence[Parameters]:
        found = []
        fulls = sorted({full_steps(steps, budget) for budget in BUDGETS}, reverse=True)
        for full, shape in product(fulls, shapes):
            share = shape["warmup"] < 1
            warmup = max(2, int(full * shape["warmup"])) if share else min(shape["warmup"], full)
            if not share or {**shape, "warmup": warmup} not in shapes:
                found.append({"full": full, **shape, "warmup": min(warmup, full)})
        return found

    return settings


def _peers_even(shapes: Sequence[Parameters], steps: int) -> Sequence[Parameters]:
    fulls = [full_steps(steps, budget, 1 / 12) for budget in BUDGETS]
    return [{"full": full, **shape} for full, shape in product(fulls, shapes) if shape["warmup"] <= full]


#: Two leave the last step out; of bent masks the gaps grow from the first step to the last.
_EVEN = ({"warmup": 1}, {"warmup": 1, "last": False}, {"warmup": 0.3, "last": False}, {"warmup": 0.5})
_BENT = (
    *({"warmup": 1, "bend": 1.3}, {"warmup": 1, "bend": 1.6}),
    *({"warmup": 3, "bend": 1.3}, {"warmup": 1, "bend": 1.3, "last": False}),
)
_PEERS_EVEN = ({"warmup": 1}, {"warmup": 1, "last": False}, {"warmup": 3}, {"warmup": 5})
_DBCACHE = _thresholds(
    *((1, (1, 4), (0.05, 0.1, 0.3)), (2, (1, 3), (0.1, 0.2, 0.4)), (4, (1, 3), (0.2, 0.4, 1.0))),
    *((-1, (1,), (0.1, 0.2, 0.4)), (7, (1,), (0.3, 0.6, 1.0))),
    front=1,
)
#: Of the predictors that are seldom the best.
_DBCACHE_FEW = _thresholds((1, (1, 4), (0.1,)), (2, (1, 3), (0.2,)), (4, (1,), (0.4, 1.0)), front=1)
_PEERS_DBCACHE = _thresholds(
    *((1, (1, 4), (0.05, 0.1, 0.3)), (2, (1, 3), (0.1, 0.2, 0.4)), (4, (1, 3), (0.2, 0.4, 0.9))),
    *((-1, (1,), (0.1, 0.2, 0.4)), (8, (1,), (0.3, 0.6, 0.9))),
)


def _prune(steps: int) -> Sequence[Parameters]:
    pairs = product((4, 1), (0.03, 0.06, 0.1, 0.15, 0.25, 0.4))
    return [threshold(value, max_warmup_steps=warmup) for warmup, value in pairs]


# -- ours


@contextlib.contextmanager
def _ours_on(
    context: Context, parameters: Parameters, *, options: Any = None, policy: str = "", config: str = "DBCacheConfig"
) -> Iterator[None]:
    setting = dict(parameters)
    calibrator = PREDICTORS[setting.pop("predictor")]
    given = {"Bn_compute_blocks": 0, "config": config, **(options(setting, context.steps) if options else setting)}
    if policy:
        given |= {"policy": policy, "policy_calibration": context.calibrations.get(policy)}
    made, predictor = configured({**given, "calibrator": calibrator}, context.steps)
    cache_dit.enable_cache(context.pipe, made, predictor)
    try:
        yield
    finally:
        cache_dit.disable_cache(context.pipe)


def _calibrate(policy: str, context: Context) -> None:
    if policy in ("magcache", "teacache") and policy not in context.calibrations:
        given = {"num_inference_steps": context.steps, "output_type": "latent"}
        noise = partial(torch.Generator().manual_seed, 0)
        run = lambda: context.pipe(CALIBRATION_CAPTION, generator=noise(), **given)  # noqa: E731
        context.calibrations[policy] = cache_dit.calibrate(context.pipe, run, policy=policy)


def _ours(name: str, family: str, settings: Settings, **on: Any) -> Method:
    put_on = partial(_ours_on, **on)
    return Method(name, "ours", family, settings, put_on, partial(_calibrate, on.get("policy", "")))


def _masks(kind: str, shapes: Sequence[Parameters], *predictors: str) -> Iterator[Method]:
    options = lambda setting, steps: static(even_mask(steps, **setting))  # noqa: E731
    for name in predictors:
        yield _ours(f"{kind} mask, {name}", f"{kind} masks", _each((name,), _even(*shapes)), options=options)


def _policy(name: str, title: str, *table: Any, front: int) -> Method:
    return _ours(
        f"{title} policy", "other policies", _each(("reuse", "taylor1"), _thresholds(*table, front=front)), policy=name
    )


@contextlib.contextmanager
def _plan_on(context: Context, parameters: Parameters) -> Iterator[None]:
    cache_dit.enable_cache(context.pipe, demo_plan(context.steps).select(full_steps=parameters["full_steps"]))
    try:
        yield
    finally:
        cache_dit.disable_cache(context.pipe)


def _planned(steps: int) -> Sequence[Parameters]:
    """The plans that are shipped with the demo model: what `cache_dit.plan` found on captions of its own."""
    points = demo_plan(steps).points if steps in steps_planned() else ()
    return [{"full_steps": point.full_steps} for point in reversed(points)]


def _our_methods() -> Iterator[Method]:
    damped = ("taylor1, damped 0.5", "taylor1, damped 0.3")
    yield Method("plan", "ours", "plan", _planned, _plan_on)
    yield from _masks("even", _EVEN, "reuse", "taylor1", "taylor2", *damped, "foca")
    yield from _masks("even", _EVEN[:2], "hermite1", "hermite2", "taylor1 in sigma")
    yield from _masks("bent", _BENT, "reuse", "taylor1", *damped)
    presets: Settings = lambda steps: [{"preset": preset} for preset in PRESETS]  # noqa: E731
    of_preset = lambda one, steps: static(steps_mask(total_steps=steps, mask_policy=one["preset"]) or [])  # noqa: E731
    six = ("reuse", "taylor1", "taylor1, damped 0.5", "taylor2", "foca", "dmd")
    yield _ours("preset mask", "preset masks", _each(six, presets), options=of_preset)
    for name in ("reuse", "taylor1", "taylor1, damped 0.5"):
        yield _ours(f"DBCache, {name}", "DBCache", _each((name,), _DBCACHE))
    others = _each(("taylor2", "hermite1", "foca", "dmd"), _DBCACHE_FEW)
    yield _ours("DBCache, other predictors", "DBCache", others)
    yield _ours("DBPrune", "DBPrune", _each(("reuse", "taylor1"), _prune), config="DBPruneConfig")
    yield _policy("teacache", "TeaCache", (-1, (1, 3), (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)), front=1)
    mag = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
    yield _policy("magcache", "MagCache", (2, (1,), mag), (6, (1,), mag), front=0)
    yield _policy("easycache", "EasyCache", (-1, (1, 3), (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)), front=0)
    fewer: Settings = lambda steps: [{"steps": one} for one in range(steps - 1, 1, -1)][:24]  # noqa: E731
    yield Method("fewer steps", "baseline", "fewer steps", fewer)


# -- peers of our name


def peers_options(setting: Parameters, steps: int) -> Parameters:
    """What a worker is asked to put on, by `bench.measures.configured` there."""
    calibrator = PREDICTORS[setting.pop("predictor")]
    given: Parameters = {"Fn_compute_blocks": 1, "enable_separate_cfg": True}
    if "full" in setting:  # the warm-up would otherwise be as long as the default of eight
        given |= {**static(even_mask(steps, **setting), 1), "max_warmup_steps": setting["warmup"]}
    elif "mask_policy" in setting:
        given |= {"mask": {"mask_policy": setting.pop("mask_policy")}, **setting}
    else:
        given |= setting
    return {**given, "calibrator": calibrator} if calibrator else given


def _peer_methods(version: str) -> Iterator[Method]:
    title, predictors = f"cache-dit {version}", PEER_PREDICTORS[version]

    def method(name: str, settings: Settings) -> Method:
        return Method(f"{title} {name}", "peer", title, settings, version=version, options=peers_options)

    def presets(policy: str, values: Sequence[float | None]) -> Settings:
        masks = [{"mask_policy": preset, "steps_computation_policy": policy} for preset in PRESETS]
        limits = [{} if value is None else {"residual_diff_threshold": value} for value in values]
        return lambda steps: [{**mask, **limit} for mask, limit in product(masks, limits)]

    for name in predictors[:2]:
        yield method(f"DBCache, {name}", _each((name,), _PEERS_DBCACHE))
        yield method(f"even mask, {name}", _each((name,), partial(_peers_even, _PEERS_EVEN)))
    if others := predictors[2:]:
        few = _PEERS_DBCACHE(0)[:: len(_PEERS_DBCACHE(0)) // 8][:8]
        yield method("DBCache, other predictors", _each(others, lambda steps: few))
        yield method("even mask, other predictors", _each(others, partial(_peers_even, _PEERS_EVEN[2:3])))
    yield method("preset mask", _each(predictors, presets("static", (None,))))
    yield method("dynamic preset mask", _each(predictors[:2], presets("dynamic", (0.15, 0.4))))


@cache
def methods() -> dict[str, Method]:
    """All methods by name: ours, what needs no cache, then peers' in this process and in their own."""
    listed = [*_our_methods(), *theirs.methods(BUDGETS, CALIBRATION_CAPTION)]
    listed += [method for version in VERSIONS for method in _peer_methods(version)]
    table = {method.name: method for method in listed}
    if len(table) != len(listed):
        raise ValueError(f"two methods have one name: {sorted(method.name for method in listed)}")
    return table
