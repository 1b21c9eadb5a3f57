"""The GPU bench, on a processor at tiny sizes: all of it but the calls of CUDA themselves. Its times are not tested."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import cache_dit
from bench.commands import COMMANDS, main
from bench.cost import gpu
from bench.cost.gpu import TINY, Maker, Stage, loop_findings
from bench.models import SPECS, Made, Spec, blocks_of, make, with_blocks
from bench.report.page import Section
from bench.results import Results, findings_of

CPU = torch.device("cpu")
SECTION = Section("gpu", "On a GPU", gpu.parts)
FLUX, KLEIN, WAN = (SPECS[name] for name in ("flux", "klein", "wan"))


@pytest.fixture(scope="module")
def tiny() -> Stage:
    return Stage(CPU, torch.float32, TINY)


@pytest.fixture(scope="module")
def rows(tiny: Stage) -> dict[str, Any]:
    """Every kind of row, of the smallest models."""
    with torch.no_grad():
        return {
            "flux: steps": gpu.steps_row(tiny, FLUX),
            "flux: loop of 4": gpu.loop_row(tiny, FLUX, 4),
        }


# -- models


@pytest.mark.parametrize(
    ("name", "billions", "blocks"), [("flux", 11.9, 57), ("klein", 3.9, 25), ("qwen", 20.4, 60), ("wan", 1.4, 30)]
)
def test_models_are_of_the_size_that_they_are_named_after(name: str, billions: float, blocks: int):
    spec = SPECS[name]
    with torch.device("meta"):
        model = getattr(diffusers, spec.transformer)(**spec.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(billions * 1e9, rel=0.02)
    assert len(blocks_of(model)) == blocks


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@torch.no_grad()
def test_random_weights_neither_blow_up_nor_stand_still_in_bfloat16(spec: Spec):
    made = make(spec, CPU, torch.bfloat16, tiny=True)
    outputs = [made.model(**arguments)[0].float() for arguments in made.drifting(3)]
    assert all(output.shape == made.state.shape and output.isfinite().all() for output in outputs)
    assert 0.3 < outputs[0].std() < 3
    drift = (outputs[1] - outputs[0]).abs().mean() / outputs[0].abs().mean()
    assert 0 < drift < 0.2, "neighbouring steps are to be alike"


def test_a_model_is_made_as_its_checkpoint_is_loaded():
    made = make(WAN, CPU, torch.bfloat16, tiny=True)
    dtypes = {name: parameter.dtype for name, parameter in made.model.named_parameters()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["blocks.0.scale_shift_table"] == dtypes["condition_embedder.time_embedder.linear_1.weight"]
    assert dtypes["blocks.0.scale_shift_table"] == torch.float32
    assert torch.get_default_dtype() == torch.float32
    again = make(WAN, CPU, torch.bfloat16, tiny=True)
    assert torch.equal(made.state, again.state)
    assert all(map(torch.equal, made.model.parameters(), again.model.parameters()))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@torch.no_grad()
def test_without_blocks_the_rest_of_a_model_runs(spec: Spec):
    made = make(spec, CPU, torch.float32, tiny=True)
    hollow = with_blocks(made.model)
    assert not blocks_of(hollow) and blocks_of(made.model)
    assert hollow(**made.drifting(3)[0])[0].shape == made.state.shape


def test_timesteps_can_be_told_apart_in_bfloat16():
    made = make(FLUX, CPU, torch.bfloat16, tiny=True)
    seen = [float(time.to(torch.bfloat16)) for time in made.timesteps(50)]
    assert seen == sorted(set(seen), reverse=True)


# -- rows


def test_caches_skip_what_their_names_say(rows: dict[str, Any]):
    row = rows["flux: steps"]
    blocks = {name: row["blocks"][name] for name in ("planned", "measured", "static", "dynamic", "half")}
    assert blocks == {
        "planned": [3, 3, 3],
        "measured": [3, 3, 3],
        "static": [3, 0, 0],
        "dynamic": [3, 1, 1],
        "half": [3, 0, 3],
    }
    theirs = {name for name in row["blocks"] if name.startswith("diffusers")}
    assert {name.split()[1].rstrip(",") for name in theirs} == {"FirstBlockCache", "MagCache", "TaylorSeer"}
    names = {one["name"] for one in rows["flux: steps"]["findings"]}
    assert {"full step, bare", "wrapped ÷ bare, measured", "cached step, dynamic"} <= names
    assert "cached step, half, snapshots in the host's memory" in names
    exact = {one["name"]: one for one in row["findings"] if one["unit"] in ("reads", "features")}
    assert [name for name, one in exact.items() if one["reached"] is False] == []
    held = {name: one["value"] for name, one in exact.items() if one["unit"] == "features"}
    assert held == {"live state, static": pytest.approx(1), "live state, dynamic": pytest.approx(1.8, abs=0.2)}


def test_a_loop_is_held_against_the_ideal_of_the_steps_that_it_computes(rows: dict[str, Any]):
    row = rows["flux: loop of 4"]
    assert set(row["computed"]) == {*gpu.MASKS, "even"}
    found = {one["name"]: one for one in row["findings"]}
    for name, computed in row["computed"].items():
        share = found[f"speed-up ÷ ideal, 4 steps, {name}"]
        assert share["details"]["ideal"] == pytest.approx(4 / computed)
        assert share["target"] == ("≥ 0.95" if name == "even" else "")


@pytest.mark.parametrize(("steps", "computed"), [(28, 7), (50, 13), (4, 1)])
def test_even_masks_come_near_the_goals_speed_up(steps: int, computed: int):
    mask = gpu.even_mask(steps)
    assert (len(mask), sum(mask), mask[0]) == (steps, computed, 1)


@pytest.mark.slow
@torch.no_grad()
def test_compiling_is_told_with_its_breaks_and_recompilations(tiny: Stage):
    row = gpu.loop_row(tiny, WAN, 4, "regional")
    assert row["compiled"]["graphs"] > 0
    assert (row["compiled"]["breaks"], row["compiled"]["again"]) == (0, 0)
    assert set(row["seconds"]) == {"bare", "even"}
    assert "regional, graph breaks" in {one["name"] for one in row["findings"]}


# -- plan


def test_what_the_goals_speak_of_comes_first():
    keys = list(gpu.makers((28, 50)))
    assert keys[:2] == ["flux: steps", "flux: loop of 28"]
    assert {key.partition(":")[0] for key in keys} >= set(SPECS)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results.open(tmp_path / "gpu.json", "gpu", {"dtype": "bfloat16"})


def run_rows(
    rows: dict[str, Maker], results: Results, monkeypatch: pytest.MonkeyPatch, minutes: int = 9, **options: Any
) -> list[str]:
    """What a run of these says, by a clock that moves by ten seconds when it is read."""
    said: list[str] = []
    time = iter(range(0, 100_000, 10))
    monkeypatch.setattr(gpu, "makers", lambda loops: rows)
    place = Stage(CPU, torch.float32, TINY)
    gpu.run(place, results, minutes, say=said.append, now=lambda: float(next(time)), **options)
    return said


def test_a_row_that_fails_is_told_and_those_after_it_run(results: Results, monkeypatch: pytest.MonkeyPatch):
    def fail(stage: Stage) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    run_rows({"flux: a": fail, "wan: b": lambda stage: {"x": 1}}, results, monkeypatch)
    assert results.rows["flux: a"]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB."
    assert results.rows["wan: b"]["x"] == 1
    run_rows({"flux: a": lambda stage: {"x": 2}}, results, monkeypatch)
    assert results.rows["flux: a"]["x"] == 2, "what failed is tried again"
    run_rows({"flux: a": fail}, results, monkeypatch)
    assert results.rows["flux: a"]["x"] == 2, "what is there is not"


def test_a_mistake_in_the_bench_itself_is_not_hidden(results: Results, monkeypatch: pytest.MonkeyPatch):
    def wrong(stage: Stage) -> dict[str, Any]:
        raise AssertionError

    with pytest.raises(AssertionError):
        run_rows({"flux: a": wrong}, results, monkeypatch)


def test_no_row_is_begun_when_the_minutes_are_over(results: Results, monkeypatch: pytest.MonkeyPatch):
    rows = {f"flux: {number}": lambda stage: {} for number in range(4)}
    said = run_rows(rows, results, monkeypatch, minutes=1)
    assert list(results.rows) == ["flux: 0", "flux: 1", "flux: 2"]
    assert said[-1] == "not run: flux: 3; a run with more --minutes goes on with it"
    run_rows(rows, results, monkeypatch)
    assert list(results.rows) == list(rows)


def test_only_some_rows_can_be_asked_for(results: Results, monkeypatch: pytest.MonkeyPatch):
    rows = {"flux: a": lambda stage: {}, "wan: a": lambda stage: {}}
    run_rows(rows, results, monkeypatch, only=["wan"])
    assert list(results.rows) == ["wan: a"]


def test_one_model_is_held_at_a_time(tiny: Stage):
    first = tiny.model(KLEIN)
    assert isinstance(first, Made) and tiny.model(KLEIN) is first
    assert tiny.model(WAN) is not first and tiny.made is not first


# -- findings and report


def test_a_cached_step_of_a_loop_costs_what_the_loop_takes_beyond_its_computed_steps():
    seconds = {"bare": [8.0, 8.0], "rest": [0.1, 0.1], "measured": [8.0, 8.0], "even": [2.6, 2.6]}
    row = {"steps": 8, "mode": "", "seconds": seconds, "computed": {"even": 2}}
    found = {finding.name: finding for finding in loop_findings(row)}
    cached = found["cached step, static, Fn=0, in a loop of 8, even"]
    assert (cached.value, cached.unit) == (pytest.approx(100), "ms"), "(2.6 - 2 * 1.0) / 6 seconds"
    assert found["speed-up ÷ ideal, 8 steps, even"].value == pytest.approx(8 / 2.6 / 4)


def test_the_section_takes_any_file(rows: dict[str, Any], results: Results):
    text, charts = SECTION.text(results)
    assert "billion" not in text and not charts
    results.add("flux: loop of 50", {"error": "RuntimeError: no"})
    assert "- flux: loop of 50: RuntimeError: no" in SECTION.text(results)[0]
    results.settings["rounds"] = 2
    for key, row in rows.items():
        results.add(key, row)
    results.finish(findings_of(results.rows.values()))  # all of it can be saved
    text, _ = SECTION.text(results)
    assert "- FLUX.1-dev: 0.0 billion parameters, 3 blocks" in text
    assert "run 2 times" in text and "two prices" not in text


# -- the command


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_a_gpu_one_line_says_so(
    device: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu", "--device", device, "--out", str(tmp_path / "gpu.json")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "CUDA GPU" in error
    assert not (tmp_path / "gpu.json").exists()


def test_the_command_measures_saves_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(stage: Stage) -> dict[str, Any]:
        raise RuntimeError("no")

    monkeypatch.setattr(gpu, "opened", lambda device, size: Stage(CPU, torch.float32, TINY))
    monkeypatch.setattr(gpu, "makers", lambda loops: {"flux: loop of 4": partial(gpu.loop_row, spec=FLUX, steps=4)})
    command = next(one for one in COMMANDS if one.name == "gpu")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    path = tmp_path / "gpu.json"
    assert command.run(parser.parse_args(["--out", str(path)])) == 0
    assert Results.load(path).finished
    monkeypatch.setattr(gpu, "makers", lambda loops: {"flux: steps": fail})
    assert command.run(parser.parse_args(["--out", str(path)])) == 1
    assert "failed: flux: steps" in capsys.readouterr().out
    assert cache_dit.__version__ == Results.load(path).machine["versions"]["cache-dit"]
