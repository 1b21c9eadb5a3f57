"""The call that a plan was made with: what is recorded of it, and what becomes of a run whose call differs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cache_dit
from cache_dit import ConfigError, DBCacheConfig
from cache_dit.demo import load_pipeline
from cache_dit.demo.plans import demo_plan, steps_planned
from cache_dit.engine.plans.call import arguments_of, differing, host_values, recorded
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.engine.plans.scope import PlanScope
from tests.kit.tiny_flux import MASK, STEPS, counted, denoise, generate, tiny_pipeline, tiny_transformer
from tests.kit.toys import lines

TEXT = "".join(map(str, MASK))
LINE = TEXT.replace("1", "F").replace("0", "C")


def plan_of(*, strict: bool = True, **scope: Any) -> Plan:
    """A plan with one point, chosen, of 40 dB."""
    measured = Quality(40.0, 36.0, 35.0, 39.0, 41.0, 8, held_out=True)
    point = PlanPoint(TEXT.count("1"), {"*": BranchSchedule(TEXT)}, measured=measured, ideal_speedup=2.0)
    return Plan(PlanScope(num_inference_steps=STEPS, **scope), (point,), chosen=point.full_steps, strict=strict)


# -- what a call is


class Base:
    def __call__(
        self, prompt: str, num_inference_steps: int = 28, guidance_scale: float = 3.5, *, eta: Any = None
    ) -> Any:
        return prompt


class HandsOn(Base):
    """Takes anything, and hands it on."""

    def __call__(self, prompt: str, tiles: int = 2, **kwargs: Any) -> Any:
        return super().__call__(prompt, **kwargs)


class Takes:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args


def test_arguments_go_by_name_with_the_defaults_of_those_that_were_not_given() -> None:
    assert arguments_of(Base(), ("cat", 20), {"eta": 1}) == {
        "prompt": "cat",
        "num_inference_steps": 20,
        "guidance_scale": 3.5,
        "eta": 1,
    }


def test_what_a_call_hands_on_has_the_defaults_of_the_class_that_takes_it() -> None:
    found = arguments_of(HandsOn(), ("cat",), {"guidance_scale": 2})
    assert found == {"prompt": "cat", "tiles": 2, "guidance_scale": 2, "num_inference_steps": 28, "eta": None}
    assert arguments_of(Takes(), ("cat",), {"guidance_scale": 2}) == {"guidance_scale": 2}


def test_a_call_that_cannot_be_made_has_no_arguments() -> None:
    assert arguments_of(Base(), ("cat",), {"prompt": "dog"}) == {}
    assert arguments_of(Base(), ("cat",), {"unknown": 1}) == {}


def test_the_demo_pipelines_own_defaults_are_those_of_its_call() -> None:
    pipe = load_pipeline(progress=False)
    found = arguments_of(pipe, ("cat",), {})
    assert (found["true_cfg_scale"], found["height"], found["num_inference_steps"]) == (2.0, 64, 28)
    assert arguments_of(pipe, ("cat",), {"true_cfg_scale": 4.5})["true_cfg_scale"] == 4.5
    cache_dit.enable_cache(pipe)
    assert arguments_of(pipe, ("cat",), {}) == found
    cache_dit.disable_cache(pipe)


def test_only_what_lies_on_the_host_is_looked_at() -> None:
    given = {
        "scale": np.float32(0.5),
        "count": np.int64(3),
        "flag": True,
        "text": "a",
        "none": None,
        "layers": [7, 8],
        "options": {"scale": 0.5},
        "tensor": torch.ones(1),
        "tensors": [torch.ones(1)],
        "array": np.ones(2),
        "generator": torch.Generator(),
        "nested": {"image": object()},
    }
    assert host_values(given) == {
        "scale": 0.5,
        "count": 3,
        "flag": True,
        "text": "a",
        "none": None,
        "layers": (7, 8),
        "options": {"scale": 0.5},
    }


def test_a_plan_records_numbers_and_flags_and_the_texts_that_were_asked_for() -> None:
    call = {"prompt": "cat", "guidance_scale": 2.0, "tiled": True, "negative_prompt": "", "height": None}
    assert recorded([call], {}) == {"guidance_scale": 2.0, "tiled": True}
    asked = {"negative_prompt": "blurry", "layers": [7], "mask": torch.ones(1)}
    call = {**call, **asked}
    assert recorded([call], asked) == {
        "guidance_scale": 2.0,
        "tiled": True,
        "negative_prompt": "blurry",
        "layers": (7,),
    }


def test_what_differs_from_run_to_run_and_what_says_nothing_of_a_picture_is_not_recorded() -> None:
    one = {"guidance_scale": 2.0, "strength": 0.5, "seed": 1, "num_images_per_prompt": 1, "return_dict": True}
    assert recorded([one, {**one, "strength": 0.6}], {}) == {"guidance_scale": 2.0}
    assert recorded([None, None], {"guidance_scale": 2.0}) is None


values = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 9) | st.lists(st.integers(0, 3), max_size=2)
calls = st.dictionaries(st.sampled_from(["guidance_scale", "strength", "layers", "tiled"]), values)


@given(calls)
def test_a_call_never_differs_from_itself_and_is_the_same_in_a_file(call: dict[str, Any]) -> None:
    scope = PlanScope(num_inference_steps=STEPS, call=recorded([call], {}))
    assert scope.differences(PlanScope(call=host_values(call))) == []
    again = Plan.of(replace(plan_of(), scope=scope).as_dict())
    assert again.scope == scope


@given(calls, calls)
def test_what_is_known_of_both_calls_and_differs_is_told_and_nothing_else(
    made: dict[str, Any], run: dict[str, Any]
) -> None:
    made, run = host_values(made), host_values(run)
    told = {one.partition("=")[0] for one in differing(made, run)}
    assert told == {
        name
        for name in made
        if name in run
        and repr(made[name]) != repr(run[name])
        and (made[name] != run[name] or isinstance(made[name], bool) is not isinstance(run[name], bool))
    }


# -- in a pipeline


def test_another_guidance_is_refused_before_a_block_is_run() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of(call={"guidance_scale": 2.0}))
    told = r"^the plan 3of6 was made with guidance_scale=2\.0, not 4\.5: .*$"
    with counted(pipe.transformer) as blocks, pytest.raises(ConfigError, match=told) as error:
        generate(pipe, guidance_scale=4.5)
    assert blocks.total() == 0
    assert "strict=False" in str(error.value)
    generate(pipe, guidance_scale=2)
    assert lines(pipe) == {"cond": LINE}


def test_the_default_of_an_argument_counts_as_given() -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe, plan_of(call={"max_sequence_length": 256}))
    with pytest.raises(ConfigError, match="max_sequence_length=256, not 512"):
        generate(pipe)
    cache_dit.enable_cache(pipe, plan_of(call={"max_sequence_length": 512}))
    generate(pipe)


def test_what_was_not_recorded_is_not_compared() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of(call={"guidance_scale": 3.0}))
    generate(pipe, max_sequence_length=77, joint_attention_kwargs={"scale": 0.5})
    assert lines(pipe) == {"cond": LINE}


def test_a_size_that_is_left_to_the_pipeline_is_told_by_the_latents() -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe, plan_of(call={"height": 8, "width": 8}, resolution=16))
    pipe.default_sample_size = 8
    generate(pipe, height=None, width=None)
    with pytest.raises(ConfigError, match="height=8, not 12"):
        generate(pipe, size=12)
    cache_dit.enable_cache(pipe, plan_of(call={"height": 16, "width": 4}, resolution=16))
    with pytest.raises(ConfigError, match="height=16, not 8; width=4, not 8"):
        generate(pipe)


def test_a_plan_that_is_not_strict_runs_and_says_what_differed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of(strict=False, call={"guidance_scale": 2.0}))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        for _ in range(3):
            generate(pipe, guidance_scale=4.5)
    told = "guidance_scale=2.0, not 4.5"
    assert [message for message in caplog.messages if "guidance_scale" in message] == [
        f"cache_dit: the plan 3of6 runs with another guidance_scale than it was made with: {told}"
    ]
    stats = cache_dit.summary(pipe)[0]
    assert lines(pipe) == {"cond": LINE}
    assert stats.plan is not None
    assert (stats.plan.differences, stats.plan.quality) == ((told,), None)
    printed = capsys.readouterr().out
    assert f"plan 3of6: quality unknown: made with {told}, ideal speed-up 2.00" in printed
    assert "40.0 dB" not in printed
    generate(pipe, guidance_scale=2.0)
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert stats.plan is not None and stats.plan.differences == () and stats.plan.quality is not None


@pytest.mark.parametrize(
    ("scope", "run", "told"),
    [
        ({"resolution": 16}, {"size": 12}, "resolution=16, not 36"),
        ({"branches": ("cond", "uncond")}, {}, "branches=('cond', 'uncond'), not ('cond',)"),
        ({"branches": ("other",)}, {}, "branches=('other',), not ('cond',)"),
        (
            {"resolution": 16, "sigmas": [1.0, 0.8, 0.6, 0.5, 0.3, 0.1]},
            {},
            "sigmas[1]=0.8000, not 0.8333",
        ),
    ],
    ids=["size", "no guidance", "another branch", "noise levels"],
)
def test_what_follows_from_a_call_is_allowed_with_it(scope: dict[str, Any], run: dict[str, Any], told: str) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of(strict=False, **scope))
    generate(pipe, **run)
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert lines(pipe) == {"cond": LINE}
    assert stats.plan is not None and told in stats.plan.differences


def test_another_model_scheduler_or_number_of_steps_is_never_allowed() -> None:
    pipe = tiny_pipeline()
    for scope, told in ({"weights": "0" * 32}, "weights="), ({"scheduler": "DDIM"}, "scheduler='DDIM'"):
        with pytest.raises(ConfigError, match=told):
            cache_dit.enable_cache(pipe, plan_of(strict=False, **scope))
    cache_dit.enable_cache(pipe, plan_of(strict=False, call={"guidance_scale": 2.0}))
    with pytest.raises(ConfigError, match="num_inference_steps=6, not 8: plan anew"):
        generate(pipe, steps=8)


def test_strict_goes_with_the_plan_wherever_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = plan_of(call={"guidance_scale": 2.0})
    plan.save(path)
    assert Plan.load(path).strict and not Plan.load(path, strict=False).strict
    loose = Plan.load(path, strict=False)
    loose.save(path)
    assert Plan.load(path) == loose and Plan.load(path, strict=True) == plan
    assert not loose.select(full_steps=3).strict and not loose.adapt(9).strict
    pipe = cache_dit.enable_cache(tiny_pipeline(), DBCacheConfig(plan=path))
    generate(pipe, guidance_scale=4.5)
    with pytest.raises(ConfigError, match="strict='no'"):
        replace(plan, strict="no")  # type: ignore[arg-type]


def test_each_of_two_requests_has_its_own_call() -> None:
    """A plan given for one request looks at that request's call."""
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of(call={"guidance_scale": 3.0}))
    with cache_dit.session("other").update(plan=plan_of(call={"guidance_scale": 2.0})):
        generate(pipe, guidance_scale=2.0)
        with pytest.raises(ConfigError, match=r"guidance_scale=2\.0, not 3\.0"):
            generate(pipe)
    generate(pipe)


# -- what could not be checked is said


def unchecked(holder: Any) -> str:
    """What the summary says was not checked."""
    plan = cache_dit.summary(holder, logging=False)[0].plan
    assert plan is not None
    return plan.unchecked


def test_a_bare_transformer_does_not_tell_the_guidance_and_the_summary_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), plan_of(call={"guidance_scale": 2.0}))
    denoise(transformer)
    cache_dit.summary(transformer)
    assert lines(transformer) == {"default": LINE}
    assert "guidance was not checked, as a transformer without its pipeline" in capsys.readouterr().out


def test_a_plan_without_a_record_says_that_guidance_was_not_checked() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of())
    generate(pipe)
    assert unchecked(pipe).startswith("guidance was not checked, as the plan does not know the call")
    cache_dit.enable_cache(pipe, plan_of(call={"guidance_scale": 3.0}))
    generate(pipe)
    assert unchecked(pipe) == ""
    cache_dit.enable_cache(pipe, plan_of(call={"guidance_scale": 3.0, "tiled": True}))
    generate(pipe)
    assert unchecked(pipe) == "not checked, as this pipeline takes none: tiled"


# -- the demo


@pytest.mark.parametrize("steps", steps_planned())
def test_the_shipped_plans_know_the_call_that_they_were_made_with(steps: int) -> None:
    call = demo_plan(steps).scope.call
    assert call == recorded([arguments_of(load_pipeline(progress=False), ("cat",), {})], {})
    assert call is not None and call["true_cfg_scale"] == 2.0


def test_a_shipped_plan_is_refused_at_another_guidance() -> None:
    pipe = load_pipeline(progress=False)
    cache_dit.enable_cache(pipe, demo_plan(20).select(full_steps=5))
    told = {"num_inference_steps": 20, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    with pytest.raises(ConfigError, match=r"true_cfg_scale=2\.0, not 4\.5"):
        pipe("noto emoji of a cat", true_cfg_scale=4.5, **told)
    pipe("noto emoji of a cat", **told)
    assert set(lines(pipe)) == {"cond", "uncond"}
    assert unchecked(pipe) == ""
