"""The branches of classifier-free guidance: told apart by name or by turns, each with a history of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.engine.subclass import state_of
from tests.kit.equality import close, same
from tests.kit.toys import TEXT, WIDTH, Toy, denoise, dynamic, lines, loop, normal, static, stream_inputs

STEPS = 6
PLANS = {
    "cond first": ["cu"] * STEPS,
    "uncond first": ["uc"] * STEPS,
    "cond first, an interval without": ["cu", "cu", "c", "c", "cu", "cu"],
    "uncond first, an interval without": ["uc", "uc", "c", "c", "uc", "uc"],
    "three branches": ["cux"] * STEPS,
    "four branches, left out here and there": ["cuxy", "cu", "cxy", "yc", "c", "yxuc"],
}


class Guided(Toy, CacheMixin):
    """A toy with diffusers' ``cache_context``."""


def guided(config: DBCacheConfig | None = None, **described: Any) -> Guided:
    """A guided toy with the cache on, or without one."""
    model = Guided("0")
    if config is not None:
        cache_dit.enable_cache(model.adapter(**described), config)
    return model


def text(branch: str) -> Tensor:
    """A branch's text."""
    return 2 * normal(1, TEXT, WIDTH, seed=10 + ord(branch))


@torch.no_grad()
def guide(
    model: Guided, plan: Sequence[str], *, named: bool, timesteps: Sequence[float | None]
) -> dict[str, list[Tensor]]:
    """A run in which each step makes the calls that the plan says; the outputs of each branch."""
    (hidden, _) = stream_inputs()
    outputs: dict[str, list[Tensor]] = {}
    for branches, timestep in zip(plan, timesteps, strict=True):
        for branch in branches:
            with model.cache_context(branch) if named else contextlib.nullcontext():
                outputs.setdefault(branch, []).append(model(hidden, text(branch), timestep))
        hidden = hidden + 0.1 * outputs["c"][-1]
    return outputs


def expected_line(plan: Sequence[str], branch: str, line: str) -> str:
    """A static line as a branch follows it: its first call computes, and where it is not called there is none."""
    steps = [step for step, branches in enumerate(plan) if branch in branches]
    letters = ["F" if step == steps[0] else line[step] for step in steps]
    return "".join(letters[steps.index(step)] if step in steps else "-" for step in range(steps[-1] + 1))


@pytest.mark.parametrize("known", [True, False], ids=["timesteps known", "unknown"])
@pytest.mark.parametrize("plan", PLANS)
def test_named_branches_follow_the_plan_whoever_is_left_out(plan: str, known: bool) -> None:
    model = guided(static("FCFCFC"))
    guide(model, PLANS[plan], named=True, timesteps=loop(STEPS) if known else [None] * STEPS)
    if known or "here and there" not in plan:
        called = set("".join(PLANS[plan]))
        assert lines(model) == {branch: expected_line(PLANS[plan], branch, "FCFCFC") for branch in called}


@pytest.mark.parametrize("plan", [plan for plan in PLANS if "left out" not in plan])
def test_each_named_branch_gives_what_it_gives_alone(plan: str) -> None:
    config = dynamic(residual_diff_threshold=0.25)
    outputs = guide(guided(config), PLANS[plan], named=True, timesteps=[None] * STEPS)
    hidden, _ = stream_inputs()
    hiddens = [hidden]
    for output in outputs["c"]:
        hiddens.append(hiddens[-1] + 0.1 * output)
    for branch, results in outputs.items():
        alone = guided(config)
        steps = [step for step, branches in enumerate(PLANS[plan]) if branch in branches]
        with torch.no_grad():
            single = [alone(hiddens[step], text(branch), None) for step in steps]
        assert same(results, single)


def test_calls_without_a_name_take_turns() -> None:
    model = guided(static("FCFCFC"), has_separate_cfg=True)
    outputs = guide(model, PLANS["cond first"], named=False, timesteps=[None] * STEPS)
    assert lines(model) == {"cond": "FCFCFC", "uncond": "FCFCFC"}
    named = guide(guided(static("FCFCFC")), PLANS["cond first"], named=True, timesteps=[None] * STEPS)
    assert same(outputs["c"], named["c"])
    assert same(outputs["u"], named["u"])


def test_without_separate_guidance_unnamed_calls_are_steps() -> None:
    model = guided(static("FCFCFCFCFCFC"))
    guide(model, PLANS["cond first"], named=False, timesteps=[None] * STEPS)
    assert lines(model) == {"default": "FCFCFCFCFCFC"}


@pytest.mark.parametrize("option", [True, False])
def test_the_option_overrules_the_description(option: bool) -> None:
    model = guided(static("FCFCFCFCFCFC", enable_separate_cfg=option), has_separate_cfg=not option)
    guide(model, PLANS["cond first"], named=False, timesteps=[None] * STEPS)
    assert len(lines(model)) == (2 if option else 1)


def test_the_unconditional_call_may_be_the_first_of_a_pair() -> None:
    config = static("FCFCFC", enable_separate_cfg=True, cfg_compute_first=True, cfg_diff_compute_separate=False)
    model = guided(config)
    outputs = guide(model, PLANS["uncond first"], named=False, timesteps=loop(STEPS))
    assert lines(model) == {"uncond": "FCFCFC", "cond": "FCFCFC"}
    named = guide(guided(static("FCFCFC")), PLANS["uncond first"], named=True, timesteps=loop(STEPS))
    assert same(outputs["c"], named["c"])
    assert same(outputs["u"], named["u"])


def test_turns_survive_an_interval_without_guidance_where_timesteps_are_known() -> None:
    plan = PLANS["cond first, an interval without"]
    model = guided(static("FCFCFC", enable_separate_cfg=True))
    guide(model, plan, named=False, timesteps=loop(STEPS))
    assert lines(model) == {"cond": "FCFCFC", "uncond": "FC--FC"}


def test_names_overrule_turns() -> None:
    model = guided(static("FCFCFC", enable_separate_cfg=True))
    guide(model, PLANS["three branches"], named=True, timesteps=[None] * STEPS)
    assert lines(model) == {"c": "FCFCFC", "u": "FCFCFC", "x": "FCFCFC"}


def test_once_a_name_was_seen_unnamed_calls_take_no_turns() -> None:
    model = guided(static("FCFC", enable_separate_cfg=True))
    with torch.no_grad(), model.cache_context("cond"):
        model(*stream_inputs())
    denoise(model, [None] * 3)
    assert lines(model) == {"cond": "F", "default": "FCF"}


def test_a_run_of_unnamed_pairs_ends_with_its_last_pair() -> None:
    model = guided(static("FCFCFC", enable_separate_cfg=True, num_inference_steps=STEPS))
    for _ in range(2):
        guide(model, PLANS["cond first"], named=False, timesteps=[None] * STEPS)
        assert lines(model) == {"cond": "FCFCFC", "uncond": "FCFCFC"}
        assert state_of(model).latest.nbytes == 0


def test_a_new_run_of_unnamed_pairs_after_an_aborted_one() -> None:
    model = guided(static("FCFCFC", enable_separate_cfg=True))
    guide(model, ["cu", "cu", "c"], named=False, timesteps=loop(STEPS)[:3])
    guide(model, PLANS["cond first"], named=False, timesteps=loop(STEPS))
    assert lines(model) == {"cond": "FCFCFC", "uncond": "FCFCFC"}


#: Between the diffs of the two branches at one step: alone, one computes it and the other skips it.
BETWEEN: dict[str, Any] = {"residual_diff_threshold": 0.035, "max_warmup_steps": 2}


def test_with_diffs_of_their_own_the_branches_decide_for_themselves() -> None:
    model = guided(dynamic(**BETWEEN))
    guide(model, PLANS["cond first"], named=True, timesteps=loop(STEPS))
    assert lines(model) == {"c": "FFFFFC", "u": "FFFFCF"}
    stats = cache_dit.summary(model, logging=False)[0]
    assert stats.residual_diffs.keys() == stats.cfg_residual_diffs.keys() == set("2345")
    assert stats.residual_diffs != stats.cfg_residual_diffs


def test_with_a_shared_diff_the_second_branch_follows_the_first() -> None:
    model = guided(dynamic(**BETWEEN, cfg_diff_compute_separate=False))
    guide(model, PLANS["cond first"], named=True, timesteps=loop(STEPS))
    assert lines(model) == {"c": "FFFFFC", "u": "FFFFFC"}
    stats = cache_dit.summary(model, logging=False)[0]
    assert stats.residual_diffs == stats.cfg_residual_diffs


def test_a_diff_is_not_shared_with_the_next_step() -> None:
    model = guided(dynamic(residual_diff_threshold=0.2, max_warmup_steps=1, cfg_diff_compute_separate=False))
    guide(model, ["cu", "cu", "uc", "cu"], named=True, timesteps=loop(4))
    stats = cache_dit.summary(model, logging=False)[0]
    assert stats.residual_diffs == stats.cfg_residual_diffs
    assert len(stats.residual_diffs) == 3


def test_a_name_is_gone_after_an_exception() -> None:
    model = guided(static("FCFC"))
    with pytest.raises(KeyError), model.cache_context("c"):
        raise KeyError
    denoise(model, loop(4))
    assert lines(model) == {"default": "FCFC"}


def test_names_nest() -> None:
    model = guided(static("FCFC"))
    inputs = stream_inputs()
    with torch.no_grad(), model.cache_context("outer"):
        with model.cache_context("inner"):
            model(*inputs)
        model(*inputs)
    assert lines(model) == {"inner": "F", "outer": "F"}


@pytest.mark.parametrize("call", [lambda model: model.cache_context("c"), lambda model: model.cache_context(name="c")])
def test_names_reach_the_cache_by_position_and_by_keyword(call: Any) -> None:
    model = guided(static("FCFC"))
    with torch.no_grad(), call(model):
        model(*stream_inputs())
    assert lines(model) == {"c": "F"}


def test_a_model_without_cache_context_gets_none() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FC"))
    assert not hasattr(model, "cache_context")


def test_a_name_reaches_the_worker_threads_of_its_task() -> None:
    model = guided(static("FCFCFC"))
    hidden, _ = stream_inputs()

    async def run() -> None:
        with cache_dit.session("request"):
            for timestep in loop(STEPS):
                for branch in "cu":
                    with model.cache_context(branch):
                        await asyncio.to_thread(torch.no_grad()(model), hidden, text(branch), timestep)

    asyncio.run(run())
    assert lines(model) == {"c": "FCFCFC", "u": "FCFCFC"}


def test_names_of_tasks_that_take_turns_are_kept_apart() -> None:
    model = guided(static("FCFCFC"))
    state = state_of(model)
    seen = []

    @contextlib.contextmanager
    def named(branch: str) -> Iterator[None]:  # diffusers' own part is one state for the whole model
        with state.router.branch_named(branch):
            yield

    async def work(branch: str) -> None:
        with named(branch):
            await asyncio.sleep(0)
            with torch.no_grad(), cache_dit.session(branch):
                model(*stream_inputs())
            seen.append(lines(model))

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))

    asyncio.run(both())
    assert seen == [{"a": "F"}, {"b": "F"}]


def test_frozen_guidance_gives_the_true_outputs() -> None:
    model = guided()
    hidden, _ = stream_inputs()
    expected = {branch: model(hidden, text(branch), None) for branch in "cu"}
    cache_dit.enable_cache(model.adapter(), static("FFCC"))
    for _ in range(4):
        for branch in "cu":
            with torch.no_grad(), model.cache_context(branch):
                assert close([model(hidden, text(branch), None)], expected[branch])


def test_names_in_one_session_leave_the_turns_of_another_alone() -> None:
    model = guided(static("FCFCFC", enable_separate_cfg=True))
    plan = PLANS["cond first"]
    with cache_dit.session("named"):
        guide(model, plan[:3], named=True, timesteps=loop(STEPS)[:3])
    with cache_dit.session("unnamed"):
        guide(model, plan, named=False, timesteps=loop(STEPS))
    assert lines(model) == {"cond": "FCFCFC", "uncond": "FCFCFC"}
    with cache_dit.session("named"):
        guide(model, plan[3:], named=True, timesteps=loop(STEPS)[3:])
    assert {len(session.caches) for session in state_of(model).sessions.values()} == {2}


# -- pipelines that call twice and give no names


class Pipe:
    """A denoising loop that makes the calls of a plan, without names."""

    def __init__(self, config: DBCacheConfig, **described: Any) -> None:
        self.transformer = Guided("0")
        adapter = self.transformer.adapter(pipe=self, **described)
        cache_dit.enable_cache(adapter, config, TaylorSeerCalibratorConfig())

    def __call__(
        self, plan: Sequence[str], timesteps: Sequence[float | None], num_inference_steps: int = STEPS
    ) -> dict[str, list[Tensor]]:
        return guide(self.transformer, plan, named=False, timesteps=timesteps)


UNSAID: dict[str, Callable[..., DBCacheConfig]] = {
    "static": lambda **options: static("FFCFCC", **options),
    "measured": lambda **options: dynamic(residual_diff_threshold=0.25, max_continuous_cached_steps=2, **options),
}


@pytest.mark.parametrize("config", UNSAID)
@pytest.mark.parametrize("plan", [plan for plan in PLANS if "first" in plan])
def test_a_pipeline_that_calls_twice_a_step_is_taken_to_be_guided(plan: str, config: str) -> None:
    options: dict[str, Any] = {"cfg_compute_first": "uncond first" in plan}
    if options["cfg_compute_first"]:
        options["cfg_diff_compute_separate"] = False
    unsaid = Pipe(UNSAID[config](**options))
    said = Pipe(UNSAID[config](**options, enable_separate_cfg=True))
    for _ in range(2):
        outputs, expected = (pipe(PLANS[plan], loop(STEPS)) for pipe in (unsaid, said))
        assert lines(unsaid.transformer) == lines(said.transformer)
        assert lines(unsaid.transformer).keys() == {"cond", "uncond"}
        assert len(lines(unsaid.transformer)["cond"]) == STEPS
        assert "C" in lines(unsaid.transformer)["cond"]
        assert all(same(outputs[branch], expected[branch]) for branch in "cu")


def test_a_pipeline_that_calls_twice_a_step_is_not_guided_where_the_option_says_so() -> None:
    pipe = Pipe(static("FCFCFCFCFCFC", enable_separate_cfg=False))
    pipe(PLANS["cond first"], loop(STEPS))
    assert lines(pipe.transformer) == {"default": "FCFCFCFCFCFC"}


def test_a_pipeline_that_calls_once_a_step_has_one_branch() -> None:
    pipe = Pipe(static("FCFCFC"))
    pipe(["c"] * STEPS, loop(STEPS))
    assert lines(pipe.transformer) == {"default": "FCFCFC"}


#: The timesteps of a scheduler of second order, which calls twice at each but the first.
HEUN = [1.0, 0.8, 0.8, 0.6, 0.6, 0.4]


def test_a_scheduler_that_calls_twice_at_later_timesteps_is_no_guidance() -> None:
    pipe = Pipe(static("FCFCFC"))
    for _ in range(2):
        pipe(["c"] * STEPS, HEUN, num_inference_steps=4)
        assert lines(pipe.transformer) == {"default": "FCFCFC"}


@pytest.mark.parametrize("separate", [None, True])
def test_guidance_under_a_scheduler_that_calls_twice_at_later_timesteps(separate: bool | None) -> None:
    pipe = Pipe(static("FCFCFC", enable_separate_cfg=separate))
    for _ in range(2):
        pipe(PLANS["cond first"], HEUN, num_inference_steps=4)
        assert lines(pipe.transformer) == {"cond": "FCFCFC", "uncond": "FCFCFC"}
