"""The benchmark of what the cache costs: that it measures what it says. Its times are not tested."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_dit.engine.state.measure
from bench.commands.overhead import COMMAND
from bench.common import ALWAYS, median_ratio, pairs_of, ratio_of_medians, static, twin
from bench.findings import Finding
from bench.overhead.common import QUICK, cached, half_mask
from bench.overhead.groups import GROUPS
from bench.overhead.groups.predictors import predictors
from bench.overhead.speedups import speedups
from bench.peers.cost import drifting, make_inputs, make_transformer, most_alive, with_blocks
from bench.reads import counted, reads_per_step
from cache_dit.cli.arguments import UsageError
from cache_dit.engine.state.history import History
from cache_dit.errors import ConfigError

TINY = replace(QUICK, runs=1)


def run(*flags: str) -> int:
    """The command, without the report that follows it."""
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    return COMMAND.run(parser.parse_args(flags))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of all our own groups saves."""
    path = tmp_path_factory.mktemp("bench") / "results" / "overhead.json"
    assert run("--quick", "--runs", "1", "--out", str(path), "--only", *GROUPS) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def rows(saved: dict[str, Any], group: str, unit: str) -> dict[str, float]:
    """The values of a group's rows of one unit, by name."""
    found = (row for row in saved["findings"] if row["group"] == group and row["unit"] == unit)
    return {row["name"]: row["value"] for row in found}


# -- the model and the comparison


def test_a_twin_shares_all_weights_and_no_module():
    model = make_transformer(QUICK)
    other = twin(model)
    mine, others = (dict(m.named_parameters()) for m in (model, other))
    assert all(mine[name] is others[name] for name in mine)
    assert not set(model.modules()) & set(other.modules())


@torch.inference_mode()
def test_a_model_with_some_blocks_runs_these_and_the_rest():
    model = make_transformer(QUICK)
    ran: list[str] = []
    hollow = with_blocks(model, [0, 2])  # of 1 + 2
    for name, block in hollow.named_modules():
        if name.endswith(("blocks.0", "blocks.1")):
            block.register_forward_hook(lambda *_, name=name: ran.append(name))
    hollow(**make_inputs(QUICK)[0])
    assert ran == ["transformer_blocks.0", "single_transformer_blocks.0"]
    kept = dict(hollow.single_transformer_blocks[0].named_parameters())
    assert all(kept[name] is value for name, value in model.single_transformer_blocks[1].named_parameters())
    assert len(model.single_transformer_blocks) == QUICK.single


def test_each_sample_of_a_batch_drifts_at_its_own_speed():
    first, *_, last = (step["hidden_states"] for step in drifting(QUICK, [0.0, 1.0, 3.0]))
    moved = (last - first).abs().mean((1, 2))
    assert moved[0] == 0
    assert 2 < moved[2] / moved[1] < 4


def test_ratios_are_of_pairs_and_of_medians():
    pairs = [(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)]
    assert median_ratio(pairs) == 3.0
    assert ratio_of_medians(pairs) == 4.0


def test_pairs_are_of_the_same_run_and_step():
    times = {"a": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "b": [[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]]}
    assert pairs_of(times, "a", "b", [0, 2]) == [(1.0, 10.0), (3.0, 30.0), (4.0, 40.0), (6.0, 60.0)]


@torch.inference_mode()
def test_a_speed_up_is_told_as_a_share_of_both_ideals():
    wrapped = cached(make_transformer(QUICK), QUICK, Fn_compute_blocks=1, **static(half_mask(QUICK)))
    for arguments in make_inputs(QUICK):
        wrapped(**arguments)
    # every other of 6 steps skips 2 of 3 blocks: 9 + 3 of 18 calls run; a skipped step is timed at 0.6, its rest at 0.5
    times = {"bare": [[1.0] * 6], "cached": [[1.0, 0.6] * 3], "rest": [[0.5] * 6]}
    by_blocks, with_rest = speedups("half", times, wrapped, least=0.8)
    assert by_blocks.details["steps_line"] == "FCFCFC"
    assert by_blocks.details["ideal_by_blocks"] == 1.5
    assert by_blocks.value == pytest.approx((6 / 4.8) / 1.5)
    assert by_blocks.reached
    assert with_rest.value == pytest.approx((6 / 4.8) / (6 / 4.5))


def test_live_state_counts_what_is_really_alive():
    class Keeps(torch.nn.Module):
        kept: tuple[torch.Tensor, ...] = ()

        def forward(self) -> None:
            self.kept = (*self.kept[-1:], torch.zeros(1000))

    assert most_alive(Keeps(), [{}] * 4) == 2 * 4000


# -- reads


def test_reads_are_counted_by_what_they_are_for_and_only_inside():
    before = cache_dit.engine.state.measure.read_back
    history = History(2)
    history.append(0, torch.ones(3))
    with counted() as count:
        cache_dit.engine.state.measure.relative_l1(torch.ones(3), torch.zeros(3))
        history.gram()
        history.gram()  # what is known is not read again
    assert count == {"decisions": 1, "predictions": 1}
    assert cache_dit.engine.state.measure.read_back is before
    cache_dit.engine.state.measure.relative_l1(torch.ones(3), torch.zeros(3))
    assert sum(count.values()) == 2


@torch.inference_mode()
@pytest.mark.parametrize(
    ("options", "decisions"),
    [
        (static(half_mask(QUICK)), [0] * 6),
        ({"residual_diff_threshold": ALWAYS}, [0, 1, 1, 1, 1, 1]),
        ({"residual_diff_threshold": ALWAYS, "max_continuous_cached_steps": 1}, [0, 1, 0, 1, 0, 1]),
    ],
)
def test_a_measured_step_reads_once_and_a_planned_one_never(options: dict[str, Any], decisions: list[int]):
    wrapped = cached(make_transformer(QUICK), QUICK, Fn_compute_blocks=1, **options)
    found = reads_per_step(wrapped, make_inputs(QUICK))
    assert found == {"decisions": decisions, "predictions": [0] * 6, "timesteps": [1] * 6, "checks": [1, 0, 0, 0, 0, 0]}


# -- what a run finds


def test_a_quick_run_saves_every_group_whole(saved: dict[str, Any]):
    assert saved["machine"]["versions"]["torch"] == torch.__version__
    assert saved["settings"]["model"]["hidden"] == QUICK.hidden
    assert list(saved["rows"]) == [f"group/{group}" for group in GROUPS]
    counts = {group: sum(row["group"] == group for row in saved["findings"]) for group in GROUPS}
    assert counts == {
        "core": 7,
        "memory": 13,
        "predictors": 21,
        "sums": 12,
        "policies": 15,
        "pruning": 12,
        "guidance": 11,
        "batches": 6,
        "demo": 5,
        "python": 12,
    }
    names = [row["name"] for row in saved["findings"]]
    assert len(names) == len(set(names)) == sum(counts.values())
    for row in saved["findings"]:
        assert math.isfinite(row["value"])
        assert (row["low"] is None) == (row["unit"] != "×")
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]


def test_what_does_not_depend_on_the_clock_reaches_its_targets(saved: dict[str, Any]):
    exact = [row for row in saved["findings"] if row["unit"] in ("features", "reads") and row["target"]]
    assert len(exact) == 30
    assert [row["name"] for row in exact if not row["reached"]] == []


def test_the_ideal_speed_ups_are_those_of_the_blocks_that_ran(saved: dict[str, Any]):
    ideal = {row["name"]: row["details"].get("ideal_by_blocks") for row in saved["findings"]}
    core = [value for name, value in ideal.items() if "by blocks, Fn=" in name]
    assert core == [2.0, 1.5]
    branches = [value for name, value in ideal.items() if "by blocks, two branches" in name]
    assert branches == [1.5, 2.0]
    # of 3 blocks one can be skipped: from the second step on, or, decided by the step before, from the third
    pruned = [value for name, value in ideal.items() if "by blocks, half of the blocks" in name]
    assert pruned == [18 / (18 - 5), 18 / (18 - 4)]


def test_snapshots_of_fewer_bytes_are_as_small_as_their_dtype(saved: dict[str, Any]):
    held = [value for name, value in rows(saved, "memory", "features").items() if "kept as" in name]
    assert held == pytest.approx([2, 1, 0.5], rel=0.01)


def test_block_by_block_decisions_read_once_a_block_and_delayed_ones_once_a_step(saved: dict[str, Any]):
    assert rows(saved, "pruning", "reads") == {
        "host reads in a step, DBPrune by block, 2 blocks to decide": 2,
        "host reads in a step, DBPrune by previous, 2 blocks to decide": 1,
        "host reads in a step, DBPrune by block, 1 blocks to decide": 1,
        "host reads in a step, DBPrune by previous, 1 blocks to decide": 1,
    }


def test_every_policy_computes_all_and_then_half_of_the_steps(saved: dict[str, Any]):
    for row in saved["findings"]:
        if row["group"] == "policies":
            (line,) = row["details"]["steps_line"].values()
            assert ("C" in line) == ("half" in row["name"])
            assert line.count("C") in ((2, 3) if "half" in row["name"] else (0,))


def test_samples_that_decide_for_themselves_run_fewer_blocks(saved: dict[str, Any]):
    for group in ("batches", "demo"):
        ran = rows(saved, group, "sample·blocks")
        by_decision = {name.split(", ")[-1].partition(":")[0]: value for name, value in ran.items()}
        assert by_decision["sample"] <= by_decision["any"]
    details = {row["name"]: row["details"] for row in saved["findings"] if row["group"] == "batches"}
    lines = details["batch of 8, sample: blocks run"]["steps_line"]
    assert len(lines) == 8
    assert len(set(lines.values())) > 1, "the samples are to differ"


@torch.inference_mode()
def test_predictors_are_timed_with_all_their_snapshots():
    size = replace(TINY, steps=14)
    found = {row.name: row for row in predictors(size)}
    held = {name: found[f"live state, {name}"].value for name in ("reuse", "Taylor 1", "Taylor 2", "FoCa", "DMD 6")}
    assert held == pytest.approx({"reuse": 1, "Taylor 1": 2, "Taylor 2": 3, "FoCa": 4, "DMD 6": 6})
    reads = found["host reads in a step, DMD 6, static mask"].details["per_step"]
    assert reads["decisions"] == [0] * 14
    assert reads["predictions"] == [0, 2] * 7, "one for image and one for text, once they are new"


def test_the_samples_that_findings_are_made_of_are_kept(saved: dict[str, Any]):
    samples = {sample["what"]: sample["seconds"] for sample in saved["rows"]["group/core"]["samples"]}
    times = samples["nothing cached"]
    assert {len(row) for rows in times.values() for row in rows} == {QUICK.steps}
    value = rows(saved, "core", "×")["wrapped ÷ bare, threshold 0"]
    assert value == pytest.approx(median_ratio(pairs_of(times, "never", "bare")), rel=1e-3)


# -- the command


@pytest.fixture
def two_groups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two groups of one finding each; which of them ran."""
    ran: list[str] = []

    def group(name: str) -> Any:
        def measured(size: Any) -> list[Finding]:
            ran.append(name)
            return [Finding(f"a {name}", 1.0, "×")]

        return measured

    groups = {"first": group("first"), "second": group("second")}
    monkeypatch.setattr("bench.overhead.run.GROUPS", groups)
    monkeypatch.setattr("bench.overhead.run.NAMES", ("first", "second"))
    return ran


def test_a_run_goes_on_where_another_stood(two_groups: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "overhead.json"
    run("--quick", "--out", str(out), "--only", "second")
    assert two_groups == ["second"]
    run("--quick", "--out", str(out))
    assert two_groups == ["second", "first"]
    found = json.loads(out.read_text(encoding="utf-8"))["findings"]
    assert [(row["group"], row["name"]) for row in found] == [("first", "a first"), ("second", "a second")]
    assert "a first" in capsys.readouterr().out


def test_a_group_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="no group is called 'cores': it is one of core, memory"):
        run("--quick", "--out", str(tmp_path / "overhead.json"), "--only", "cores")


def test_results_of_another_number_of_runs_are_not_mixed(two_groups: list[str], tmp_path: Path):
    out = tmp_path / "overhead.json"
    run("--quick", "--out", str(out), "--runs", "1")
    with pytest.raises(ConfigError, match=r"model\.runs"):
        run("--quick", "--out", str(out), "--runs", "2")
    assert two_groups == ["first", "second"]
