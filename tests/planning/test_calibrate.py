"""``calibrate``: one uncached run, what it measures, where the result holds, and that the run leaves no trace."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor, nn

import cache_dit
from cache_dit import CalibratorConfig, DBCacheConfig, DBPruneConfig, ParamsModifier, TaylorSeerCalibratorConfig
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.engine.subclass import STATE
from cache_dit.errors import ConfigError
from tests.engine.policies.test_policies_in_engine import FLUX, STEPS, WAN, asked, called_with, given_at, relative, run
from tests.kit.equality import same
from tests.kit.tiny_flux import (
    generate,
    generate_sd3,
    generate_video,
    tiny_pipeline,
    tiny_sd3_pipeline,
    tiny_wan_pipeline,
)
from tests.kit.tiny_models import tiny
from tests.kit.toys import Toy, denoise, line, lines, loop

POLICIES = ("magcache", "teacache")


def without(policy: str, **options: Any) -> DBCacheConfig:
    """Options for a policy, without a calibration."""
    return DBCacheConfig(policy=policy, **{"Fn_compute_blocks": 1, "max_warmup_steps": 1, **options})


def traces(model: nn.Module) -> list[str]:
    """The modules that anything of a cache is on."""
    return [name for name, module in model.named_modules() if STATE in module.__dict__]


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture) -> Any:
    """Nothing is logged as a warning."""
    with caplog.at_level(logging.INFO):
        yield
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# What is measured


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_transformer_without_a_cache_is_calibrated_and_has_none_afterwards(policy: str) -> None:
    model = tiny(FLUX)
    expected, classes = run(model, FLUX), [type(module) for module in model.modules()]
    outputs: list[Tensor] = []
    made = cache_dit.calibrate(model, lambda: outputs.extend(run(model, FLUX)), policy=policy)
    assert same(outputs, expected)
    assert (made.policy, made.model_class, made.num_inference_steps, made.scheduler) == (policy, FLUX, STEPS, None)
    assert set(made.branches) == {"default"}
    assert [type(module) for module in model.modules()] == classes
    assert not traces(model)


def test_teacache_gets_the_polynomial_from_the_change_of_the_input_to_that_of_the_output() -> None:
    model = tiny(WAN)
    with called_with(model, "blocks.0.attn1") as modulated:
        outputs = run(model)
    inputs_changed = [relative(*pair) for pair in pairwise(modulated)]
    outputs_changed = [relative(*pair) for pair in pairwise(outputs)]
    made = cache_dit.calibrate(model, lambda: run(model), policy="teacache", degree=2)
    assert made.values() == pytest.approx(tuple(np.polyfit(inputs_changed, outputs_changed, 2)), rel=1e-3)
    fitted = np.polyval(made.values(), inputs_changed)
    rest = ((np.array(outputs_changed) - fitted) ** 2).sum() / (len(fitted) * np.var(outputs_changed))
    assert made.r_squared["cond"] == pytest.approx(1 - rest, abs=1e-5)


@pytest.mark.parametrize("front", [1, 3])
def test_the_ratios_are_those_of_the_blocks_that_the_options_leave_to_skip(front: int) -> None:
    model = tiny(WAN)
    cache_dit.enable_cache(model, DBCacheConfig(Fn_compute_blocks=front, Bn_compute_blocks=1))
    made = cache_dit.calibrate(model, lambda: run(model))
    cache_dit.disable_cache(model)
    seen: list[Tensor] = []
    with called_with(model, f"blocks.{front}") as before, called_with(model, "blocks.4") as after:
        run(model)
        seen = [b.double() - a.double() for a, b in zip(before, after, strict=True)]
    norms = [float(residual.norm(dim=-1).mean()) for residual in seen]
    assert made.values() == pytest.approx([1.0, *(now / then for then, now in pairwise(norms))], rel=1e-4)


def test_the_ratios_are_the_residuals_whatever_is_predicted() -> None:
    model, ratios = tiny(WAN), []
    for kind in ("residual", "hidden_states"):
        calibrator = CalibratorConfig(True, True, calibrator_cache_type=kind)
        cache_dit.enable_cache(model, DBCacheConfig(Fn_compute_blocks=1), calibrator)
        ratios.append(cache_dit.calibrate(model, lambda: run(model)).values())
    assert ratios[0] == ratios[1]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_pipeline_is_calibrated_by_branch_and_names_its_scheduler(policy: str) -> None:
    pipe = tiny_wan_pipeline()
    expected = generate_video(pipe)
    outputs: list[Tensor] = []
    made = cache_dit.calibrate(pipe, lambda: outputs.append(generate_video(pipe)), policy=policy, degree=1)
    assert torch.equal(outputs[0], expected)
    assert made.scheduler == "FlowMatchEulerDiscreteScheduler"
    assert made.num_inference_steps == 6
    assert set(made.branches) == {"cond", "uncond"}
    assert made.values("cond") != made.values("uncond")
    assert not traces(pipe.transformer)
    assert STATE not in pipe.__dict__


def test_the_first_run_is_taken_where_there_are_several() -> None:
    model = tiny(FLUX)
    once = cache_dit.calibrate(model, lambda: run(model, FLUX))
    cache_dit.enable_cache(model, DBCacheConfig(Fn_compute_blocks=1))
    again = cache_dit.calibrate(model, lambda: (run(model, FLUX), run(model, FLUX, seed=1)))
    assert again == once


def test_a_branch_that_is_left_out_for_some_steps_keeps_its_places() -> None:
    model: Any = tiny(WAN)

    def guided(*left_out: int) -> None:
        for step in range(STEPS):
            for seed, branch in enumerate(("cond", "uncond")):
                if branch == "cond" or step not in left_out:
                    with model.cache_context(branch):
                        run(model, steps=[step], seed=seed)

    whole = cache_dit.calibrate(model, guided)
    part = cache_dit.calibrate(model, lambda: guided(0, 5, 6, STEPS - 1))
    assert part.values("cond") == whole.values("cond")
    ratios, known = part.values("uncond"), whole.values("uncond")
    assert len(ratios) == STEPS
    assert (ratios[0], ratios[1], ratios[5], ratios[6], ratios[-1]) == (1, 1, 1, 1, 1)
    assert ratios[2:5] + ratios[8:-1] == known[2:5] + known[8:-1]
    assert ratios[7] == pytest.approx(known[5] * known[6] * known[7])


def test_blocks_without_an_attention_are_calibrated_for_magcache_and_refused_for_teacache() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=1.0))
    made = cache_dit.calibrate(model, lambda: denoise(model, loop(9)))
    assert (made.model_class, made.num_inference_steps) == ("Toy", 9)
    called: list[int] = []
    with pytest.raises(ConfigError, match="no attention that can be recognised"):
        cache_dit.calibrate(model, lambda: called.append(1), policy="teacache")
    assert not called
    denoise(model, loop(12))
    assert line(model) == "FFFFFFFFCCCC"  # nobody is watching any more


def test_of_several_chains_the_first_is_measured() -> None:
    ratios = []
    for chains in (1, 2):
        model = Toy("0", (4, 4))
        cache_dit.enable_cache(model.adapter(blocks=model.lists[:chains]), DBCacheConfig(Fn_compute_blocks=1))
        ratios.append(cache_dit.calibrate(model, lambda model=model: denoise(model, loop(6))).values())
    assert ratios[0] == ratios[1]


def test_a_scheduler_that_calls_the_model_twice_a_step() -> None:
    pipe = tiny_sd3_pipeline()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    made = cache_dit.calibrate(pipe, lambda: generate_sd3(pipe))
    assert (made.num_inference_steps, len(made.values())) == (6, 11)
    options = without("magcache", policy_calibration=made, residual_diff_threshold=10.0)
    cache_dit.enable_cache(pipe, options)
    generate_sd3(pipe)
    assert line(pipe) == "F" + 10 * "C"


def test_each_of_two_transformers_is_calibrated_by_itself() -> None:
    pipe = tiny_wan_pipeline(two=True)
    with pytest.raises(ConfigError, match="there are 2 transformers: put the cache on the pipeline, then calibrate"):
        cache_dit.calibrate(pipe, lambda: generate_video(pipe))
    assert not traces(pipe.transformer)
    cache_dit.enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=1))
    made = [
        cache_dit.calibrate(model, lambda: generate_video(pipe)) for model in (pipe.transformer, pipe.transformer_2)
    ]
    assert [one.num_inference_steps for one in made] == [3, 3]  # of 6, each has its share
    modifiers = [ParamsModifier(DBCacheConfig().reset(policy_calibration=one)) for one in made]
    options = without("magcache", policy_calibration=made[0], residual_diff_threshold=10.0)
    cache_dit.enable_cache(pipe, options, params_modifiers=modifiers)
    generate_video(pipe)
    plans = [lines(model)["cond"] for model in (pipe.transformer, pipe.transformer_2)]
    assert all(plan[0] + plan.strip("F")[:1] == "FC" for plan in plans)


# Its file


@pytest.mark.parametrize("policy", POLICIES)
def test_it_is_saved_and_given_by_its_path(policy: str, tmp_path: Path) -> None:
    model, path = tiny(WAN), tmp_path / "wan.json"
    made = cache_dit.calibrate(model, lambda: run(model), policy=policy, path=path)
    assert PolicyCalibration.load(path) == made
    assert json.loads(path.read_text())["model_class"] == WAN
    plans = []
    for given in (made, path, str(path)):
        options = without(policy, policy_calibration=given, residual_diff_threshold=0.1)
        cache_dit.enable_cache(model, options)
        outputs = run(model)
        plans.append((line(model), outputs))
    assert all(plan == plans[0][0] and same(outputs, plans[0][1]) for plan, outputs in plans)
    path.unlink()
    run(model)  # it was read once


# Where it holds


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"model_class": FLUX}, {}, f"made with model_class='{FLUX}', not '{WAN}'"),
        ({}, {"num_inference_steps": 13}, f"made with num_inference_steps={STEPS}, not 13"),
        ({"policy": "teacache"}, {}, "made with policy='teacache', not 'magcache'"),
        ({"policy": "magcache"}, {"policy": "teacache"}, "made with policy='magcache', not 'teacache'"),
        (None, {}, "policy='magcache' needs to know the model: expected policy_calibration"),
        ({}, {"policy_calibration": "nowhere.json"}, "policy_calibration='nowhere.json' cannot be read"),
        ({}, {"policy": "magicache"}, "unknown key 'magicache'; did you mean 'magcache'"),
    ],
)
def test_what_does_not_hold_is_refused_when_it_is_put_on_and_nothing_has_changed(
    fields: dict[str, Any] | None, options: dict[str, Any], message: str
) -> None:
    model = tiny(WAN)
    numbers: dict[str, Any] = {"policy": "magcache", "model_class": WAN, "scheduler": None, **(fields or {})}
    branches = {"default": [1.0] * STEPS}
    made = None if fields is None else PolicyCalibration(**numbers, num_inference_steps=STEPS, branches=branches)
    given = {"policy": "magcache", "policy_calibration": made, "Fn_compute_blocks": 1, **options}
    with pytest.raises(ConfigError, match=message):
        cache_dit.enable_cache(model, DBCacheConfig(**given))
    assert not traces(model)
    cache_dit.enable_cache(model, DBCacheConfig(Fn_compute_blocks=1))
    with pytest.raises(ConfigError, match=message):
        cache_dit.refresh_context(model, **given)
    run(model)
    assert cache_dit.summary(model, logging=False)[0].cache_options["cache_config"].policy == "dbcache"


def test_another_scheduler_is_refused_when_it_is_put_on_and_at_the_first_step() -> None:
    pipe = tiny_sd3_pipeline()
    made = cache_dit.calibrate(pipe, lambda: generate_sd3(pipe))
    options = without("magcache", policy_calibration=made)
    message = "scheduler='FlowMatchEulerDiscreteScheduler', not 'FlowMatchHeunDiscreteScheduler'"
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ConfigError, match=message):
        cache_dit.enable_cache(pipe, options)
    assert not traces(pipe.transformer)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    cache_dit.enable_cache(pipe, options)
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ConfigError, match=message):
        generate_sd3(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    generate_sd3(pipe)


def test_another_number_of_steps_is_refused_at_the_first_step_of_a_pipelines_call() -> None:
    pipe = tiny_pipeline()
    made = cache_dit.calibrate(pipe, lambda: generate(pipe, steps=5))
    cache_dit.enable_cache(pipe, without("magcache", policy_calibration=made))
    blocks: list[int] = []
    hook = pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: blocks.append(1))
    with pytest.raises(ConfigError, match="num_inference_steps=5, not 6: calibrate anew"):
        generate(pipe)
    assert not blocks
    hook.remove()
    generate(pipe, steps=5)


def test_a_calibration_that_its_policy_has_no_use_for_is_no_error() -> None:
    model = tiny(WAN)
    made = cache_dit.calibrate(model, lambda: run(model))
    cache_dit.enable_cache(model, without("dbcache", policy_calibration=made))
    cache_dit.refresh_context(model, policy="magcache")
    cache_dit.refresh_context(model, policy="easycache")


# The run leaves no trace


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cached", ["dbcache", "teacache"])
def test_a_cache_that_was_on_is_off_for_the_run_and_on_as_before_afterwards(policy: str, cached: str) -> None:
    model = tiny(WAN)
    plain = run(model)
    cache_dit.enable_cache(model, asked(cached), TaylorSeerCalibratorConfig())
    expected, plan, on = run(model), line(model), traces(model)
    outputs: list[Tensor] = []
    cache_dit.calibrate(model, lambda: outputs.extend(run(model)), policy=policy)
    assert same(outputs, plain)
    assert line(model) == STEPS * "F"
    assert traces(model) == on
    assert same(run(model), expected)
    assert line(model) == plan


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_static_plan_is_not_followed_in_the_run(policy: str) -> None:
    model = tiny(FLUX)
    free = cache_dit.calibrate(model, lambda: run(model, FLUX), policy=policy)
    mask = [1, *[0] * (STEPS - 1)]
    options = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    cache_dit.enable_cache(model, DBCacheConfig(Fn_compute_blocks=1, **options))
    assert cache_dit.calibrate(model, lambda: run(model, FLUX), policy=policy) == free


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cached", [True, False])
def test_a_run_that_fails_leaves_everything_as_it_was(policy: str, cached: bool) -> None:
    model = tiny(WAN)
    if cached:
        cache_dit.enable_cache(model, asked("dbcache"))
    expected, on = run(model), traces(model)

    def fail() -> None:
        run(model, steps=range(3), seed=1)
        raise KeyError("prompt")

    with pytest.raises(KeyError, match="prompt"):
        cache_dit.calibrate(model, fail, policy=policy)
    assert traces(model) == on
    assert same(run(model), expected)


# What cannot be calibrated


def test_what_cannot_work_is_said_before_the_run() -> None:
    model = tiny(WAN)

    def never() -> None:
        raise AssertionError("the run was made")

    with pytest.raises(ConfigError, match="policy='easycache' is not valid: expected 'magcache' or 'teacache'"):
        cache_dit.calibrate(model, never, policy="easycache")
    with pytest.raises(ConfigError, match="degree=-1 is not valid"):
        cache_dit.calibrate(model, never, policy="teacache", degree=-1)
    for options in (DBPruneConfig(Fn_compute_blocks=1), DBCacheConfig(Fn_compute_blocks=1, decision="sample")):
        cache_dit.enable_cache(model, options)
        with pytest.raises(ConfigError, match="calibrate looks at whole steps: enable a DBCacheConfig"):
            cache_dit.calibrate(model, never)


def test_a_run_without_the_transformer_is_an_error() -> None:
    model = tiny(WAN)
    with pytest.raises(ConfigError, match="never called the transformer"):
        cache_dit.calibrate(model, lambda: None)
    with torch.enable_grad(), pytest.raises(ConfigError, match=r"under torch\.no_grad\(\)"):
        cache_dit.calibrate(model, lambda: model(**given_at(WAN, 0)))
    assert not traces(model)


def test_too_few_steps_for_a_polynomial_are_an_error() -> None:
    model = tiny(WAN)
    with pytest.raises(ConfigError, match="expected more than degree=4 different numbers"):
        cache_dit.calibrate(model, lambda: run(model, steps=range(5)), policy="teacache")
    assert not traces(model)


def test_a_run_that_cannot_be_called_is_refused_before_anything_is_put_on() -> None:
    model = tiny(WAN)
    with pytest.raises(ConfigError, match="run=None is not valid: expected a function that makes one run"):
        cache_dit.calibrate(model, None)  # type: ignore[arg-type]
    assert not traces(model)
