"""The GPU bench, on a processor at tiny sizes: all of it but the calls of CUDA themselves. Its times are not tested."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import cache_dit
from bench.application import main
from bench.gpu import kernels, loops, plan, stage, steps
from bench.gpu.clock import EventClock, HostClock, clock_for, interleaved
from bench.gpu.compiled import compiled
from bench.gpu.findings import OVERHEAD, efficiency, findings_of
from bench.gpu.models import FLUX, KLEIN, SPECS, WAN, Made, Spec, blocks_of, make, without_blocks
from bench.gpu.plan import LEFT_OUT, Item
from bench.gpu.section import SECTION
from bench.gpu.stage import TINY, Stage
from bench.results import Results

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> Stage:
    return Stage(CPU, torch.float32, TINY)


@pytest.fixture(scope="module")
def rows(tiny: Stage) -> dict[str, Any]:
    """Every kind of row, of the smallest models."""
    with torch.no_grad():
        return {
            "flux: made": steps.made(tiny, FLUX),
            "flux: steps": steps.step_times(tiny, FLUX),
            "flux: reads": steps.host_reads(tiny, FLUX),
            "flux: memory": steps.memory(tiny, FLUX),
            "flux: loop of 4": loops.loops(tiny, FLUX, 4),
            "flux: peers": loops.peers(tiny, FLUX),
            "wan: regional": compiled(tiny, WAN, "regional"),
            "sum of 3": kernels.weighted_sum(tiny, 3),
            "pinned": kernels.pinned(tiny),
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
    assert blocks_of(model) == blocks


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
    hollow = without_blocks(made.model)
    assert blocks_of(hollow) == 0 and blocks_of(made.model) > 0
    assert hollow(**made.drifting(3)[0])[0].shape == made.state.shape


def test_timesteps_can_be_told_apart_in_bfloat16():
    made = make(FLUX, CPU, torch.bfloat16, tiny=True)
    seen = [float(time.to(torch.bfloat16)) for time in made.timesteps(50)]
    assert seen == sorted(set(seen), reverse=True)


# -- clock


def test_the_clock_is_the_devices():
    assert isinstance(clock_for(CPU), HostClock)
    assert clock_for(CPU, "processor").name == "processor"
    assert isinstance(clock_for(torch.device("cuda")), EventClock)


def test_every_model_makes_a_step_before_any_makes_the_next():
    seen: list[tuple[str, int]] = []
    calls = {name: lambda step, name=name: seen.append((name, step)) for name in "ab"}
    times = interleaved(calls, 3, 2, HostClock(), warm_up=1)
    assert [step for _, step in seen] == [0, 0, 1, 1, 2, 2] * 3
    assert all({name for name, _ in seen[at : at + 2]} == {"a", "b"} for at in range(0, len(seen), 2))
    assert {name: (len(runs), len(runs[0])) for name, runs in times.items()} == {"a": (2, 3), "b": (2, 3)}


# -- rows


def test_caches_skip_what_their_names_say(rows: dict[str, Any]):
    lines = {name: told["steps_line"] for name, told in rows["flux: steps"]["told"].items()}
    assert lines == {"planned": "FFF", "measured": "FFF", "static": "FCC", "dynamic": "FCC"}
    assert {name: len(runs[0]) for name, runs in rows["flux: steps"]["times"].items()} == dict.fromkeys(
        ("bare", "control", *lines, "rest"), 3
    )


def test_the_engine_reads_once_where_it_measures_and_never_where_it_plans(rows: dict[str, Any]):
    reads = rows["flux: reads"]["reads"]
    assert [step.get("decisions", 0) for step in reads["dynamic"]] == [0, 1, 1]
    assert [step.get("decisions", 0) for step in reads["static"]] == [0, 0, 0]
    assert rows["flux: reads"]["waits"]["static"] == [None] * 3, "what needs CUDA is not made up"


def test_a_loop_has_the_ideal_speed_up_of_the_steps_that_ran(rows: dict[str, Any]):
    row = rows["flux: loop of 4"]
    assert set(row["computed"]) == {*loops.MASKS, "even"}
    for name, computed in row["computed"].items():
        assert row["told"][name]["steps_line"].count("F") == computed
        assert row["told"][name]["ideal_by_blocks"] == pytest.approx(4 / computed)


@pytest.mark.parametrize(("steps_", "computed"), [(28, 7), (50, 13), (4, 1)])
def test_even_masks_come_near_the_goals_speed_up(steps_: int, computed: int):
    mask = loops.even_mask(steps_)
    assert (len(mask), sum(mask), mask[0]) == (steps_, computed, 1)


def test_peers_follow_the_same_plan_and_their_work_is_counted(rows: dict[str, Any]):
    row = rows["flux: peers"]
    assert row["errors"] == {}
    share = {name: work / row["work"]["bare"] for name, work in row["work"].items()}
    assert share["ours, static"] == share["MagCache"] == 0.25
    assert share["ours, dynamic"] == pytest.approx(share["FirstBlockCache"])
    assert 0.25 < share["ours, dynamic"] < 0.7 and 0.25 < share["TaylorSeer"] < 1
    assert set(row["seconds"]) == set(row["work"])


def test_a_peer_that_cannot_run_a_model_does_not_take_the_others_along(tiny: Stage, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Any, config: Any) -> None:
        raise ValueError("not this model")

    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "enable_cache", refuse)
    with torch.no_grad():
        row = loops.peers(tiny, FLUX)
    assert set(row["errors"].values()) == {"ValueError: not this model"}
    assert set(row["seconds"]) == {"bare", "ours, static", "ours, dynamic"}


def test_compiling_is_told_with_its_breaks_and_recompilations(rows: dict[str, Any]):
    row = rows["wan: regional"]
    assert row["compilations"]["graphs"] > 0
    assert (row["compilations"]["breaks"], row["recompilations"]) == (0, 0)
    assert row["told"]["static"]["steps_line"] == row["told"]["dynamic"]["steps_line"] == "FCFC"
    assert set(row["loop"]["seconds"]) == {"bare", "even"}


def test_both_kernels_compute_the_sum(rows: dict[str, Any]):
    row = rows["sum of 3"]
    assert max(row["errors"].values()) < 1e-5 and not row["compiler_failed"]
    assert row["bytes"] == 5 * 8 * 16 * 4


# -- plan


def test_what_the_goals_speak_of_comes_first_and_every_key_once():
    keys = [item.key for item in plan.items((28, 50))]
    assert len(keys) == len(set(keys))
    assert keys[:5] == ["flux: made", "flux: steps", "flux: reads", "flux: memory", "flux: loop of 28"]
    assert {key.partition(":")[0] for key in keys} >= set(SPECS)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results.open(tmp_path / "gpu.json", "gpu", {"dtype": "bfloat16"})


def run_items(items: list[Item], results: Results, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """What a run of these says, by a clock that moves with each row; not tiny, so that minutes count."""
    said: list[str] = []
    time = iter(range(0, 100_000, 10))
    monkeypatch.setattr(plan, "items", lambda loops: items)
    place = Stage(CPU, torch.float32, replace(TINY, tiny=False))
    plan.run(place, results, options.pop("minutes", 1), say=said.append, now=lambda: float(next(time)), **options)
    return said


def test_a_row_that_fails_is_told_and_those_after_it_run(results: Results, monkeypatch: pytest.MonkeyPatch):
    def fail(stage: Stage) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    run_items([Item("a", 1, fail), Item("b", 1, lambda stage: {"x": 1})], results, monkeypatch)
    assert results.rows["a"]["error"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB."
    assert results.rows["b"]["x"] == 1
    run_items([Item("a", 1, lambda stage: {"x": 2})], results, monkeypatch)
    assert results.rows["a"]["x"] == 2, "what failed is tried again"
    run_items([Item("a", 1, fail)], results, monkeypatch)
    assert results.rows["a"]["x"] == 2, "what is there is not"


def test_a_mistake_in_the_bench_itself_is_not_hidden(results: Results, monkeypatch: pytest.MonkeyPatch):
    def wrong(stage: Stage) -> dict[str, Any]:
        raise AssertionError

    with pytest.raises(AssertionError):
        run_items([Item("a", 1, wrong)], results, monkeypatch)


def test_what_would_end_too_late_is_left_out_by_name(results: Results, monkeypatch: pytest.MonkeyPatch):
    items = [Item("a", 5, lambda stage: {}), Item("long", 500, lambda stage: {}), Item("b", 5, lambda stage: {})]
    run_items(items, results, monkeypatch, minutes=2)
    assert "a" in results and "b" in results and "long" not in results
    assert results.rows[LEFT_OUT] == {"keys": ["long"]}
    assert "- no time left for long" in SECTION.text(results)
    run_items(items, results, monkeypatch, minutes=2, only=["b"])
    assert results.rows[LEFT_OUT] == {"keys": ["long"]}, "a run of other rows does not make it run"
    run_items(items, results, monkeypatch, minutes=60)
    assert results.rows[LEFT_OUT] == {"keys": []}


def test_only_some_rows_can_be_asked_for(results: Results, monkeypatch: pytest.MonkeyPatch):
    items = [Item("flux: made", 1, lambda stage: {}), Item("wan: made", 1, lambda stage: {})]
    run_items(items, results, monkeypatch, only=["wan"])
    assert "wan: made" in results and "flux: made" not in results


def test_one_model_is_held_at_a_time(tiny: Stage):
    first = tiny.model(KLEIN)
    assert isinstance(first, Made) and tiny.model(KLEIN) is first
    assert tiny.model(WAN) is not first and tiny._made is not first


# -- findings and report


KINDS_OF_SPEEDUP = {"": "", " ÷ ideal": "≥ 0.95"}


def test_findings_follow_from_rows(rows: dict[str, Any], results: Results):
    found = {(finding.group, finding.name): finding for finding in findings_of(rows)}
    overhead = found["FLUX.1-dev", "wrapped ÷ bare, every step measured, none skipped"]
    assert overhead.target == f"≤ {OVERHEAD:g}" and overhead.details["steps_line"] == "FFF"
    assert ("FLUX.1-dev", "cached step, dynamic, Fn=1, in turn with other models") in found
    assert not any("waits" in name for _, name in found), "without CUDA nobody counted them"
    even = {name: finding.target for (_, name), finding in found.items() if name.endswith("4 steps, even")}
    modes = ("4 steps, even", "regional, 4 steps, even")
    assert even == {f"speed-up{kind}, {mode}": target for mode in modes for kind, target in KINDS_OF_SPEEDUP.items()}
    results.finish(found.values())  # all of it can be saved


def test_a_cached_step_of_a_loop_costs_what_the_loop_takes_beyond_its_computed_steps():
    seconds = {"bare": [8.0, 8.0], "rest": [0.1, 0.1], "measured": [8.0, 8.0], "even": [2.6, 2.6]}
    told = {"even": {"ideal_by_blocks": 4.0, "steps_line": "FCCCFCCC"}}
    row = {"steps": 8, "seconds": seconds, "computed": {"even": 2}, "told": told}
    found = {finding.name: finding for finding in findings_of({"flux: loop of 8": row})}
    cached = found["cached step, static, Fn=0, in a loop of 8, even"]
    assert (cached.value, cached.unit) == (pytest.approx(100), "ms"), "(2.6 - 2 * 1.0) / 6 seconds"


def test_pinned_snapshots_are_told_in_time_and_in_bytes_moved():
    row = {"bytes": 10**9, "times": {"device": [[0.5]], "pinned": [[2.0]]}, "waits": {"pinned": 0}, "same": True}
    found = {finding.name: (finding.value, finding.unit) for finding in findings_of({"pinned": row})}
    assert found["snapshots in pinned memory: bytes sent and brought over time"] == (pytest.approx(1.5), "GB/s")
    assert found["a step that keeps one snapshot and reads two, in pinned memory"] == (pytest.approx(2000), "ms")


def test_waits_count_beyond_those_of_the_bare_model():
    def row(static: int, dynamic: int) -> dict[str, Any]:
        waits = {"bare": [1, 1], "planned": [1, 1], "static": [1, 1 + static], "measured": [1, 2]}
        waits["dynamic"] = [1, 1 + dynamic]
        return {"flux: reads": {"waits": waits, "reads": {name: [] for name in waits}}}

    def reached(rows: dict[str, Any]) -> dict[str, bool | None]:
        return {finding.name.rpartition(", ")[2]: finding.reached for finding in findings_of(rows)}

    assert reached(row(0, 1)) == dict.fromkeys(("planned", "static", "measured", "dynamic"), True)
    assert not reached(row(1, 1))["static"] and not reached(row(0, 2))["dynamic"]


def test_an_efficiency_is_a_ratio_of_medians_over_the_ideal():
    measured, found = efficiency("x", [8.0, 9.0, 10.0], [2.0, 3.0, 4.0], 4.0)
    assert (measured.value, found.value) == (pytest.approx(3), pytest.approx(3 / 4))
    assert found.low is not None and found.high is not None and found.low <= found.value <= found.high


def test_a_speed_up_has_the_same_name_in_every_run():
    first, second = (efficiency("x", [10.0, 10.0], [quick, quick], 4.0) for quick in (2.0, 3.0))
    assert [one.name for one in first] == [one.name for one in second]


def test_the_section_takes_any_file(rows: dict[str, Any], results: Results):
    assert "billion" not in SECTION.text(results) and not list(SECTION.figures(results))
    results.add("flux: peers", {"error": "RuntimeError: no"})
    assert "- flux: peers: RuntimeError: no" in SECTION.text(results)
    for key, row in rows.items():
        results.add(key, row)
    text = SECTION.text(results)
    assert "### FLUX.1-dev" in text and "{figure: gpu_flux}" in text and "pinned: needs CUDA" in text
    assert [drawn.name for drawn in SECTION.figures(results)] == ["gpu_flux"]


def test_remarks_stand_where_there_is_something_to_remark_on(rows: dict[str, Any], results: Results):
    remarks = ("two prices", "wait twice", "Each loop was run", "Beside diffusers")
    assert not any(remark in SECTION.text(results) for remark in remarks)
    results.settings["rounds"] = 2
    for key, row in rows.items():
        results.add(key, row)
    text = SECTION.text(results)
    assert all(remark in text for remark in remarks) and "run 2 times" in text


def test_what_was_left_out_is_told_by_model(results: Results):
    results.add(LEFT_OUT, {"keys": ["flux: loop of 50", "wan: reads", "flux: graphs"]})
    text = SECTION.text(results)
    assert "- FLUX.1-dev: no time left for loop of 50, CUDA graphs\n- Wan2.1-1.3B: no time left for waits\n" in text


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

    monkeypatch.setattr(stage, "opened", lambda device, size: Stage(CPU, torch.float32, TINY))
    monkeypatch.setattr(plan, "items", lambda loops: [Item("sum of 1", 1, lambda s: kernels.weighted_sum(s, 1))])
    from bench.commands.gpu import COMMAND

    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    path = tmp_path / "gpu.json"
    assert COMMAND.run(parser.parse_args(["--out", str(path)])) == 0
    assert Results.load(path).finished
    monkeypatch.setattr(plan, "items", lambda loops: [Item("flux: made", 1, fail)])
    assert COMMAND.run(parser.parse_args(["--out", str(path)])) == 1
    assert "failed: flux: made" in capsys.readouterr().out
    assert cache_dit.__version__ == Results.load(path).machine["versions"]["cache-dit"]
