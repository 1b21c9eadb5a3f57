"""``cache_dit.plan`` on the demo model, with few steps."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cache_dit
from cache_dit.demo.plans import demo_plan
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.errors import ConfigError
from cache_dit.planning import plan
from cache_dit.planning.candidates import Candidate, Outcome, quality
from cache_dit.planning.inputs import Targets
from cache_dit.planning.planner import note_of, weightings
from cache_dit.planning.report import lines, rich_table, save_plot, schedule_text
from cache_dit.planning.search import Schedule
from cache_dit.planning.trials import key_of

STEPS = 6
ONE = PlanPoint(2, {"*": BranchSchedule("1001")})
PROMPTS = ["glossy 3d emoji of cuba flag", "flat emoji of woman running", "noto emoji of a cat", "flat emoji of a boat"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return cache_dit.demo.load_pipeline(progress=False)


@pytest.fixture(scope="module")
def planned(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    path = tmp_path_factory.mktemp("plan") / "demo.ckpt"
    options = {"points": [2, 4], "max_runs": 14, "checkpoint": path, "progress": False}
    return plan(pipe, PROMPTS, STEPS, **options), path


def test_a_plan_has_the_points_asked_for_and_says_what_they_give(planned: tuple[Plan, Path]) -> None:
    found, _ = planned
    assert [point.full_steps for point in found.points] == [4, 2]
    better, worse = found.points
    assert better.measured is not None and worse.measured is not None and better.predicted is not None
    assert better.measured.mean > worse.measured.mean > 10
    assert better.measured.held_out and better.measured.pictures == 2
    kept = better.measured.values
    assert kept is not None and np.mean(kept) == pytest.approx(better.measured.mean, abs=1e-3)
    assert found.select(full_steps=4).promise(0.6) == min(kept)
    assert better.ideal_speedup == pytest.approx(6 / 4)
    assert found.chosen is None
    assert found.scope.branches == ("cond", "uncond")
    assert found.scope.num_inference_steps == STEPS
    assert found.cost["branch_weights"] == pytest.approx({"cond": 2 / 3, "uncond": -1 / 3}, abs=0.01)
    assert found.cost["runs"]["reference"] == 5
    assert found.scope.call is not None
    assert (found.scope.call["true_cfg_scale"], found.scope.call["height"]) == (2.0, 64)
    assert set(found.scope.call) & {"prompt", "generator", "num_inference_steps", "output_type"} == set()


def test_what_is_predicted_is_what_the_pictures_of_the_search_had(pipe: Any, planned: tuple[Plan, Path]) -> None:
    point = planned[0].select(full_steps=4)
    predicted = point.point.predicted
    assert predicted is not None
    assert (predicted.pictures, predicted.held_out) == (2, False)

    def draw(number: int) -> Any:
        generator = torch.Generator().manual_seed(number)
        return pipe(PROMPTS[number], num_inference_steps=STEPS, generator=generator, output_type="np").images[0]

    uncached = [draw(0), draw(1)]
    cache_dit.enable_cache(pipe, point)
    try:
        errors = [np.mean((one.astype(float) - draw(number)) ** 2) for number, one in enumerate(uncached)]
    finally:
        cache_dit.disable_cache(pipe)
    assert predicted.mean == pytest.approx(np.mean(-10 * np.log10(errors)), abs=0.01)


def test_the_plan_runs_and_gives_what_the_trial_gave(pipe: Any, planned: tuple[Plan, Path]) -> None:
    found = planned[0].select(full_steps=4)

    def draw() -> Any:
        generator = torch.Generator().manual_seed(3)
        return pipe(PROMPTS[3], num_inference_steps=STEPS, generator=generator, output_type="np").images[0]

    reference = draw()
    cache_dit.enable_cache(pipe, found)
    try:
        picture = draw()
        line = cache_dit.summary(pipe, logging=False)[0].steps_line["cond"]
    finally:
        cache_dit.disable_cache(pipe)
    assert line.replace("F", "1").replace("C", "0") == found.point.branches["*"].text
    close = -10 * np.log10(np.mean((picture.astype(float) - reference) ** 2))
    with sqlite3.connect(planned[1]) as entries:
        ((trial,),) = entries.execute(
            "SELECT content FROM entries WHERE name = ?", (f"psnr/3/{key_of(found.point.branches)}",)
        ).fetchall()
    assert close == pytest.approx(json.loads(trial)[0], abs=1e-3)


def test_a_planning_that_was_broken_off_goes_on_without_a_run(pipe: Any, planned: tuple[Plan, Path]) -> None:
    found, path = planned

    def run(prompt: str) -> Any:
        raise AssertionError("a run was made again")

    options = {"points": [2, 4], "max_runs": 14, "checkpoint": path, "progress": False}
    again = plan(pipe, PROMPTS, STEPS, run=run, **options)
    assert [point.branches for point in again.points] == [point.branches for point in found.points]
    assert [point.measured for point in again.points] == [point.measured for point in found.points]
    with pytest.raises(ConfigError, match="other num_inference_steps"):
        plan(pipe, PROMPTS, STEPS + 1, checkpoint=path, progress=False)


def test_what_another_model_found_is_not_taken_for_this_ones(pipe: Any, planned: tuple[Plan, Path]) -> None:
    bias = next(one for name, one in pipe.transformer.named_parameters() if name.endswith("bias"))
    options = {"points": [2, 4], "max_runs": 14, "checkpoint": planned[1], "progress": False}
    with torch.no_grad():
        bias += 1
    try:
        with pytest.raises(ConfigError, match=r"is of a planning with weights='\w+', not '\w+'"):
            plan(pipe, PROMPTS, STEPS, **options)
    finally:
        with torch.no_grad():
            bias -= 1


def test_a_plan_is_told_as_table_lines_and_plot(planned: tuple[Plan, Path], tmp_path: Path) -> None:
    found = planned[0]
    table = rich_table(found.select(full_steps=2))
    assert table.row_count == 2
    assert any("uncached runs" in line for line in lines(found))
    assert "mean of 2 held-out pictures, dB" in [column.header for column in table.columns]
    noted = replace(found, points=(replace(found.points[0], note="too few prompts"), found.points[1]))
    schedules = list(rich_table(noted).columns[1].cells)
    assert ["too few prompts" in cell for cell in schedules] == [True, False]
    adapted = rich_table(found.adapt(8))
    assert [list(column.cells) for column in adapted.columns if column.header == "mean, dB"] == [
        ["unknown: an estimate"] * 2
    ]
    assert found.points[0].branches["*"].text in schedule_text(found.points[0])
    save_plot(found, tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text(encoding="utf-8")
    found.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").points == found.points


def test_a_bare_transformer_is_planned_by_a_function_that_runs_it(pipe: Any) -> None:
    transformer = pipe.transformer

    def run() -> torch.Tensor:
        inputs = {
            "encoder_hidden_states": torch.ones(1, 4, transformer.config.joint_attention_dim) * 0.1,
            "pooled_projections": torch.ones(1, transformer.config.pooled_projection_dim) * 0.1,
            "txt_ids": torch.zeros(4, 3),
            "img_ids": torch.zeros(16, 3),
            "return_dict": False,
        }
        latent = torch.randn(1, 16, transformer.config.in_channels, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for sigma in np.linspace(1, 1 / 6, 6):
                latent = latent - transformer(latent, timestep=torch.tensor([sigma]), **inputs)[0] / 6
        return latent

    found = plan(transformer, num_inference_steps=6, run=run, full_steps=3, max_runs=12, progress=False)
    assert found.chosen == 3
    assert found.point.measured is not None and not found.point.measured.held_out
    assert "none kept apart" in found.note
    assert found.scope.call is None


def test_what_the_calls_of_all_runs_had_in_common_is_recorded(pipe: Any) -> None:
    asked = {"true_cfg_scale": 3.0, "negative_prompt": "flag"}
    options = {"full_steps": 2, "max_runs": 5, "progress": False}
    assert plan(pipe, PROMPTS[:2], 4, call=asked, **options).scope.call == {
        **demo_plan(28).scope.call,
        **asked,
    }

    def run(scale: float) -> Any:
        generator = torch.Generator().manual_seed(0)
        told = {"num_inference_steps": 4, "generator": generator, "output_type": "np", "negative_prompt": "flag"}
        return pipe(PROMPTS[0], true_cfg_scale=scale, guidance_scale=1.0, **told)

    call = plan(pipe, [2.0, 3.0], 4, run=run, **options).scope.call
    assert call is not None and call["guidance_scale"] == 1.0
    assert not {"true_cfg_scale", "negative_prompt"} & set(call)


def outcome(**changes: Any) -> Outcome:
    """What a race found."""
    candidate = Candidate(Schedule((1, 0, 1), (GapRule(),) * 2), "even")
    told = {"measured": quality([40.0, 41.0], held_out=True), "tied": False, "tried": 9, **changes}
    return Outcome(winner=candidate, **told)


def test_what_is_to_be_known_of_a_number_of_full_steps_is_noted_at_its_point() -> None:
    assert note_of(outcome()) == ""
    assert note_of(outcome(tied=True)) == "too few prompts to tell the best two schedules apart"
    assert note_of(outcome(tied=True, tried=5)).startswith("fewer than 6 schedules were tried; too few prompts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_psnr": 30, "speedup": 2}, "one of target_psnr, speedup, full_steps"),
        ({"speedup": 3.5}, "at most 3"),
        ({"full_steps": 9}, "at most num_inference_steps=6"),
        ({"target_psnr": 120}, "below 100"),
        ({"holdout": 1.5}, "holdout=1.5"),
        ({"predictors": ["cubic"]}, "cubic"),
        ({"start": "plan.json"}, "a Plan, e.g. what plan.adapt"),
        ({"call": {"no_such": 1}}, "call of DemoPipeline: unknown key 'no_such'"),
        ({"start": Plan(PlanScope(num_inference_steps=4), (ONE,))}, r"pass what its adapt\(6\) gives"),
    ],
)
def test_what_cannot_be_planned_is_refused(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(pipe, PROMPTS, STEPS, progress=False, **options)


def test_prompts_or_a_run_are_needed(pipe: Any) -> None:
    with pytest.raises(ConfigError, match="there are no prompts"):
        plan(pipe, [], STEPS)
    with pytest.raises(ConfigError, match="pass run="):
        plan(pipe.transformer, PROMPTS, STEPS)
    with pytest.raises(ConfigError, match="never called the transformer"):
        plan(pipe, PROMPTS, STEPS, run=lambda prompt: np.ones(3), progress=False)


def test_a_cache_that_is_on_is_left_alone(pipe: Any) -> None:
    cache_dit.enable_cache(pipe)
    try:
        with pytest.raises(ConfigError, match="a cache is on"):
            plan(pipe, PROMPTS, STEPS)
        assert cache_dit.summary(pipe, logging=False)
    finally:
        cache_dit.disable_cache(pipe)


def test_runs_that_are_not_seeded_are_found_out(pipe: Any) -> None:
    def run(prompt: str) -> Any:
        return pipe(prompt, num_inference_steps=4, output_type="np")

    with pytest.raises(ConfigError, match="seed its noise"):
        plan(pipe, PROMPTS[:1], 4, run=run, progress=False)
    assert cache_dit.api.cached_transformers(pipe) == []


def test_a_speedup_is_a_number_of_full_steps() -> None:
    assert Targets(speedup=2).checked(28).number(28) == 14
    assert Targets(speedup=2.8).checked(28).number(28) == 10
    assert Targets(speedup=3).checked(28).number(28) == 9
    assert Targets(target_psnr=30).checked(28).number(28) is None


def test_weights_of_the_steps_have_mean_one() -> None:
    found = weightings((1.0, 2.0, 3.0), (1.0, 0.5, 0.25))
    assert list(found) == ["noise level", "both", "sensitivity"]
    for weights in found.values():
        assert weights.mean() == pytest.approx(1)
    assert found["noise level"] == pytest.approx([1.5, 0.75, 0.75])
    assert list(weightings((1.0, 2.0), None)) == ["sensitivity"]
