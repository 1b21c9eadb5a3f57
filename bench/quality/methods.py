"""The table of methods: ours, what needs no cache, diffusers' caches, and the packages of our name, with settings.

FluxPipeline with true guidance calls the transformer twice a step; the packages of our name count these as two steps
unless they are told `enable_separate_cfg=True`, so they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

import cache_dit
from bench.cost.settings import static
from bench.measures import configured
from bench.quality import diffusers_caches as theirs
from bench.quality.drawing import Context, Method, Parameters
from cache_dit import steps_mask
from cache_dit.demo.plans import demo_plan, steps_planned

#: Speed-ups by work, and the most settings of a method that are tried, the same for all.
BUDGETS = (1.5, 2.0, 2.33, 2.8, 3.0, 4.0, 5.7)
CANDIDATES = 28
TABLE = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text(encoding="utf-8"))
PREDICTORS: dict[str, tuple[str, Parameters] | None] = {
    name: tuple(told) if told else None for name, told in TABLE["predictors"].items()
}


# -- settings


def even_mask(steps: int, full: int, **shape: Any) -> list[int]:
    """A mask of so many full steps, in the shape that `steps_mask` takes: `warmup`, `bend`, `last`."""
    given = {"total_steps": steps, "mask_policy": "even", "full_steps": full, "warmup": 1, **shape}
    return steps_mask(**given) or []


def full_steps(steps: int, budget: float, rest: float = 0.0) -> int:
    """The most computed steps at a speed-up, where each other step still costs a share of one."""
    return max(2, int((steps / (0.98 * budget) - rest * steps) / (1 - rest)))


def _even(shapes: Sequence[Parameters], steps: int, rest: float) -> list[Parameters]:
    """Even masks at every budget; of two that are one, and with a longer warm-up than computed steps, none."""
    found = []
    for budget, shape in product(BUDGETS, shapes):
        full = full_steps(steps, budget, rest)
        share = shape["warmup"] < 1
        warmup = max(2, int(full * shape["warmup"])) if share else shape["warmup"]
        if warmup <= full and not (share and {**shape, "warmup": warmup} in shapes):
            found.append({"full": full, **shape, "warmup": warmup})
    return found


def _grid(rows: Sequence[dict[str, list[Any]]]) -> list[Parameters]:
    """All combinations of the fields of each row."""
    return [dict(zip(row, values, strict=True)) for row in rows for values in product(*row.values())]


def settings_of(row: dict[str, Any], predictors: Sequence[str], rest: float, steps: int) -> list[Parameters]:
    """The settings of a row of the table for pictures of so many steps, each for each predictor."""
    found = _even(row["even"], steps, rest) if "even" in row else _grid(row["grid"])[:: row.get("each", 1)]
    named = [{**setting, "predictor": name} for name in predictors for setting in found] if predictors else found
    return [one for place, one in enumerate(named) if one not in named[:place]]


def _methods_of(rows: Sequence[dict[str, Any]], rest: float = 0.0) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Each row with a name and its settings; one with a place for predictors is several."""
    for row in rows:
        used = row.get("predictors", [])
        for names in [[one] for one in used] if "{}" in row["name"] else [used]:
            yield row, row["name"].format(*names), partial(settings_of, row, names, rest)


# -- ours


def _options(setting: Parameters, steps: int) -> Parameters:
    if "preset" in setting:
        return static(steps_mask(total_steps=steps, mask_policy=setting["preset"]) or [])
    return static(even_mask(steps, **setting)) if "full" in setting else setting


@contextlib.contextmanager
def _ours_on(context: Context, parameters: Parameters, *, policy: str, config: str) -> Iterator[None]:
    setting = dict(parameters)
    calibrator = PREDICTORS[setting.pop("predictor")]
    given = {"Bn_compute_blocks": 0, "config": config, **_options(setting, context.steps)}
    if policy:
        given |= {"policy": policy, "policy_calibration": context.calibrations.get(policy)}
    made, predictor = configured({**given, "calibrator": calibrator}, context.steps)
    with _enabled(context, made, predictor):
        yield


@contextlib.contextmanager
def _enabled(context: Context, *configs: Any) -> Iterator[None]:
    cache_dit.enable_cache(context.pipe, *configs)
    try:
        yield
    finally:
        cache_dit.disable_cache(context.pipe)


def _calibrate(policy: str, context: Context) -> None:
    if policy in ("magcache", "teacache") and policy not in context.calibrations:
        noise = partial(torch.Generator().manual_seed, 0)
        given: Parameters = {"num_inference_steps": context.steps, "output_type": "latent"}
        run = lambda: context.pipe(theirs.CALIBRATION_CAPTION, generator=noise(), **given)  # noqa: E731
        context.calibrations[policy] = cache_dit.calibrate(context.pipe, run, policy=policy)


def _plan_on(context: Context, parameters: Parameters) -> contextlib.AbstractContextManager[None]:
    return _enabled(context, demo_plan(context.steps).select(full_steps=parameters["full_steps"]))


def _planned(steps: int) -> Sequence[Parameters]:
    """The plans that are shipped with the demo model: what `cache_dit.plan` found on captions of its own."""
    points = demo_plan(steps).points if steps in steps_planned() else ()
    return [{"full_steps": point.full_steps} for point in reversed(points)]


def _fewer(steps: int) -> Sequence[Parameters]:
    return [{"steps": one} for one in range(steps - 1, 1, -1)][:24]


# -- peers of our name


def peers_options(setting: Parameters, steps: int) -> Parameters:
    """What a worker is asked to put on, by `bench.measures.configured` there."""
    calibrator = PREDICTORS[setting.pop("predictor")]
    given: Parameters = {"Fn_compute_blocks": 1, "enable_separate_cfg": True}
    if "full" in setting:  # the warm-up would otherwise be as long as the default of eight
        given |= {**static(even_mask(steps, **setting), 1), "max_warmup_steps": setting["warmup"]}
        del given["num_inference_steps"]  # a peer's pipeline knows it
    elif "mask_policy" in setting:
        given |= {"mask": {"mask_policy": setting.pop("mask_policy")}, **setting}
    else:
        given |= setting
    return {**given, "calibrator": calibrator} if calibrator else given


@cache
def methods() -> dict[str, Method]:
    """All methods by name: ours, what needs no cache, then peers' in this process and in their own."""
    listed = [Method("plan", "ours", "plan", _planned, _plan_on)]
    for row, name, settings in _methods_of(TABLE["ours"]):
        policy, config = row.get("policy", ""), row.get("config", "DBCacheConfig")
        put_on = partial(_ours_on, policy=policy, config=config)
        listed.append(Method(name, "ours", row["family"], settings, put_on, partial(_calibrate, policy)))
    listed.append(Method("fewer steps", "baseline", "fewer steps", _fewer))
    for row, name, settings in _methods_of(TABLE["diffusers"]):
        put_on, prepare = theirs.PUT_ON[row["config"]]
        listed.append(Method(name, "peer", name, settings, put_on, prepare))
    for row, name, settings in _methods_of(TABLE["packages"], 1 / 12):
        for version in row["versions"]:
            title = f"cache-dit {version}"
            box = {"version": version, "options": peers_options}
            listed.append(Method(f"{title} {name}", "peer", title, settings, **box))
    return {method.name: method for method in listed}
