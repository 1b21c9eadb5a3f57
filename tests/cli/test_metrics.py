"""`cache-dit metrics`: what it compares, what it prints, and what a failure leaves standing."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cache_dit import metrics
from cache_dit.cli import main
from cache_dit.cli.metrics import application
from cache_dit.metrics.averages import Mean
from cache_dit.metrics.pictures import Pixels
from tests.metrics.media import picture, save, save_folder, save_video, shifted

Captured = pytest.CaptureFixture[str]


def decibels(offset: float) -> str:
    return f"{20 * math.log10(255 / offset):.5f}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `runs/base` and three configurations: `fast` off by 8, `fast_2` by 2, `slow` by 1."""
    monkeypatch.chdir(tmp_path)
    frames = [picture(seed) for seed in range(2)]
    for name, offset in (("base", 0), ("fast", 8), ("fast_2", 2), ("slow", 1)):
        save_folder(tmp_path / "runs" / name, [shifted(frame, offset) for frame in frames])
    return tmp_path


def test_a_pair_of_files_and_of_folders_gets_a_line_for_each_metric(here: Path, capsys: Captured) -> None:
    assert main(["metrics", "mse", "psnr", "-i1", "runs/base/0.png", "-i2", "runs/fast/0.png"]) == 0
    both = "runs/base/0.png vs runs/fast/0.png"
    assert capsys.readouterr().out.splitlines() == [
        f"{both}, Num: 1, MSE: 64.00000",
        f"{both}, Num: 1, PSNR: {decibels(8)}",
    ]
    assert main(["metrics", "mse", "-i1", "runs/base", "-i2", "runs/slow"]) == 0
    assert capsys.readouterr().out == "runs/base vs runs/slow, Num: 2, MSE: 1.00000\n"


def test_a_folder_of_configurations_is_compared_without_the_reference(here: Path, capsys: Captured) -> None:
    assert main(["metrics", "mse", "-d", "runs", "-r", "runs/base"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [
        "base vs fast, Num: 2, MSE: 64.00000",
        "base vs fast_2, Num: 2, MSE: 4.00000",
        "base vs slow, Num: 2, MSE: 1.00000",
    ]


def test_a_reference_file_is_compared_with_each_picture(here: Path, capsys: Captured) -> None:
    save(here / "all" / "base.png", picture())
    save(here / "all" / "a" / "1.png", shifted(picture(), 2))
    assert main(["metrics", "mse", "-d", "all", "-r", "all/base.png"]) == 0
    assert capsys.readouterr().out == "base.png vs a/1.png, Num: 1, MSE: 4.00000\n"


def test_videos_are_counted_in_frames(here: Path, capsys: Captured) -> None:
    pytest.importorskip("av")
    for name, offset in (("base", 0), ("fast", 3)):
        save_video(here / "videos" / f"{name}.mp4", [shifted(picture(seed), offset) for seed in range(4)])
    arguments = ["metrics", "mse", "--psnr-type", "custom"]
    assert main([*arguments, "-v1", "videos/base.mp4", "-v2", "videos/fast.mp4"]) == 0
    assert capsys.readouterr().out == "videos/base.mp4 vs videos/fast.mp4, Frames: 4, MSE: 9.00000\n"
    assert main([*arguments, "-vd", "videos", "-rv", "videos/base.mp4"]) == 0
    assert capsys.readouterr().out == "base.mp4 vs fast.mp4, Frames: 4, MSE: 9.00000\n"


def test_pictures_are_compared_with_prompts_by_one_network_for_all(
    here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Brightness:
        def __init__(self) -> None:
            made.append(self)

        def __call__(self, prompt: str, pixels: Pixels) -> float:
            assert prompt in ("an owl", "a cat")
            return float(pixels.mean())

    monkeypatch.setattr("cache_dit.metrics.clip_score.ClipScore", Brightness)
    (here / "prompts.txt").write_text("an owl\na cat\n")
    brightness = (picture(0).mean() + picture(1).mean()) / 2
    assert main(["metrics", "clip_score", "-p", "prompts.txt", "-i2", "runs/fast"]) == 0
    assert capsys.readouterr().out == f"prompts.txt vs runs/fast, Num: 2, CLIP_SCORE: {brightness + 8:.5f}\n"
    made.clear()
    assert main(["metrics", "clip_score", "-rp", "prompts.txt", "-d", "runs", "-s"]) == 0
    best = capsys.readouterr().out.split("best first\n")[1].splitlines()
    assert [line.split(",")[0] for line in best] == [
        f"prompts.txt vs {name}" for name in ("fast", "fast_2", "slow", "base")
    ]
    assert len(made) == 1


def test_the_summary_is_sorted_best_first_by_each_metric(here: Path, capsys: Captured) -> None:
    assert main(["metrics", "mse", "psnr", "-d", "runs", "-r", "runs/base", "--summary"]) == 0
    _, by_error, by_psnr = capsys.readouterr().out.split("\n\n")
    for part in (by_error, by_psnr):
        assert [line.split(",")[0] for line in part.splitlines()[1:]] == [
            "base vs slow",
            "base vs fast_2",
            "base vs fast",
        ]


def test_identical_pictures_are_best_and_told(here: Path, capsys: Captured) -> None:
    save_folder(here / "runs" / "same", [picture(0), picture(1)])
    save_folder(here / "runs" / "half", [picture(0), shifted(picture(1), 4)])
    (here / "runs" / "slow" / "1.png").unlink()
    assert main(["metrics", "psnr", "-d", "runs", "-r", "runs/base", "-s"]) == 0
    best = capsys.readouterr().out.split("best first\n")[1].splitlines()
    assert best[0] == "base vs same, Num: 2, PSNR: inf (all identical)"
    assert best[1] == f"base vs slow, Num: 1, PSNR: {decibels(1)} (files without a partner: 1)"
    assert f"base vs half, Num: 2, PSNR: {decibels(4)} (1 identical, left out of the mean)" in best


LOG = """INFO base: time: 8.0, TFLOPs: 400
INFO fast: time: 2.5s
INFO fast: time: 1.5s, total_time: 99
INFO fast_2: time=4e0 tflops: 100, memory: 7
"""


def test_the_logs_numbers_and_speed_ups_are_columns(here: Path, capsys: Captured) -> None:
    (here / "run.log").write_text(LOG)
    common = ["metrics", "mse", "-d", "runs", "-r", "runs/base", "-plog", "run.log"]
    assert main([*common, "-ptags", "time", "--cal-speedup", "-table"]) == 0
    assert capsys.readouterr().out.split("\n\n")[1].splitlines() == [
        "| Config | MSE | Latency(s) | SpeedUp |",
        "| :-- | --: | --: | --: |",
        "| slow | 1.00000 |  |  |",
        "| fast_2 | 4.00000 | 4.00000 | 2.00000 |",
        "| fast | 64.00000 | 2.00000 | 4.00000 |",
    ]
    assert main([*common, "--cal-speedup", "-extra-ptags", "memory", "--summary"]) == 0
    summary = capsys.readouterr().out.split("best first\n")[1]
    numbers = "Latency(s): 4.00000, TFLOPs: 100.00000, memory: 7.00000"
    faster = "SpeedUp Latency(s): 2.00000, SpeedUp TFLOPs: 4.00000, SpeedUp memory: 1.00000"
    assert f"MSE: 4.00000, {numbers}, {faster}" in summary


def test_a_log_that_tells_of_nothing_is_refused(here: Path, capsys: Captured) -> None:
    (here / "run.log").write_text("INFO other: time: 1")
    with pytest.raises(SystemExit):
        main(["metrics", "mse", "-d", "runs", "-r", "runs/base", "-plog", "run.log"])
    assert "has no line with the name of a configuration and one of the tags time, tflops" in capsys.readouterr().err
    assert main(["metrics", "mse", "-d", "runs", "-r", "runs/base", "-plog", "none.log"]) == 1
    assert "cannot read the log none.log" in capsys.readouterr().err


def test_json_and_csv_have_every_number(here: Path, capsys: Captured) -> None:
    save_folder(here / "runs" / "same", [picture(0), picture(1)])
    arguments = ["metrics", "psnr", "mse", "-d", "runs", "-r", "runs/base"]
    assert main([*arguments, "--json", "out/all.json", "--csv", "-"]) == 0
    captured = capsys.readouterr()
    assert "PSNR" in captured.err  # the lines; the standard output is the CSV's
    data = json.loads((here / "out" / "all.json").read_text(encoding="utf-8"))
    assert data["failed"] == []
    found: dict[tuple[str, str], dict[str, Any]] = {(row["config"], row["metric"]): row for row in data["results"]}
    assert len(found) == len(data["results"]) == 8
    assert found["fast", "mse"] == {
        **{"config": "fast", "true": "runs/base", "test": "runs/fast", "kind": "pictures", "metric": "mse"},
        **{"value": 64.0, "n": 2, "infinite": 0, "left_out": 0},
    }
    same = found["same", "psnr"]
    assert (same["value"], same["n"], same["infinite"]) == (None, 2, 2)
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert {(row["config"], row["metric"]) for row in rows} == set(found)
    for row in rows:
        expected = found[row["config"], row["metric"]]["value"]
        assert float(row["value"]) == (math.inf if expected is None else expected)


def test_a_missing_network_gets_one_line_and_leaves_the_other_metrics(
    here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIT_LPIPS_MODEL_DIR", str(here))
    arguments = ["metrics", "lpips", "mse", "-d", "runs", "-r", "runs/base", "-s", "--json", "all.json"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("cache-dit metrics: error: LPIPS: the AlexNet of LPIPS is missing")
    assert len(captured.err.splitlines()) == 1
    assert captured.out.count("MSE: 64.00000") == 2
    data = json.loads((here / "all.json").read_text(encoding="utf-8"))
    assert len(data["results"]) == 3
    assert len(data["failed"]) == 1


def test_a_broken_configuration_gets_one_line_and_leaves_the_others(here: Path, capsys: Captured) -> None:
    (here / "runs" / "fast" / "1.png").write_text("broken")
    assert main(["metrics", "mse", "-d", "runs", "-r", "runs/base"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err.startswith("cache-dit metrics: error: base vs fast, MSE: runs/fast/1.png cannot be read")
    assert len(captured.err.splitlines()) == 1


def test_all_is_every_metric_that_what_is_given_allows(
    here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "prompts.txt").write_text("an owl\na cat\n")
    monkeypatch.setattr(application, "prepared", lambda *of: lambda true, test: Mean(1.0, 2))
    arguments = ["metrics", "all", "-i1", "runs/base", "-i2", "runs/fast"]
    for extra, expected in (
        ([], ["LPIPS", "PSNR", "SSIM", "MSE", "FID"]),
        (["-p", "prompts.txt"], ["LPIPS", "PSNR", "SSIM", "MSE", "FID", "CLIP_SCORE", "IMAGE_REWARD"]),
    ):
        assert main([*arguments, *extra]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(": ")[-2].split(", ")[-1] for line in lines] == expected


def test_all_of_two_single_pictures_leaves_fid_out(
    here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "prepared", lambda *of: lambda true, test: Mean(1.0, 1))
    assert main(["metrics", "all", "-i1", "runs/base/0.png", "-i2", "runs/fast/0.png"]) == 0
    assert "FID" not in capsys.readouterr().out
    assert main(["metrics", "fid", "-i1", "runs/base/0.png", "-i2", "runs/fast/0.png"]) == 0
    assert "FID" in capsys.readouterr().out, "who asks for it by name is told what it says"


def test_a_picture_and_a_video_of_one_name_have_rows_of_their_own(
    here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "fast"):
        (here / "videos" / name).mkdir(parents=True)
    values = {"pictures": 1.0, "videos": 2.0}
    monkeypatch.setattr(application, "prepared", lambda metric, kind, size: lambda *_: Mean(values[kind], 2))
    folders = ["-d", "runs", "-r", "runs/base", "-vd", "videos", "-rv", "videos/base"]
    assert main(["metrics", "mse", *folders, "-table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| fast | 1.00000 |" in lines
    assert "| fast | 2.00000 |" in lines


def test_a_run_that_does_not_begin_leaves_no_file(here: Path, capsys: Captured) -> None:
    assert main(["metrics", "mse", "-i1", "runs/base", "-i2", "runs/fast", "-plog", "no.log", "--json", "a.json"]) == 1
    assert "cannot read the log no.log" in capsys.readouterr().err
    assert not (here / "a.json").exists()


def test_fid_is_made_once_with_the_batch_size(here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Fid:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def compute_fid(self, true: Path, test: Path) -> Mean:
            return Mean(float(len(test.name)), 2)

    monkeypatch.setattr("cache_dit.metrics.fid.FrechetInceptionDistance", Fid)
    assert main(["metrics", "fid", "-d", "runs", "-r", "runs/base", "-b", "16", "-s"]) == 0
    best = capsys.readouterr().out.split("best first\n")[1].splitlines()
    assert [line.split(",")[0] for line in best][-1] == "base vs fast_2"  # lower is better
    assert made == [{"batch_size": 16, "disable_tqdm": False}]


def test_verbose_tells_each_pair_and_holds_for_this_run_alone(here: Path, capsys: Captured) -> None:
    assert main(["metrics", "mse", "-i1", "runs/base", "-i2", "runs/fast", "-verbose"]) == 0
    captured = capsys.readouterr()
    assert "runs/base/1.png vs runs/fast/1.png, MSE: 64.00000" in captured.err
    assert len(captured.out.splitlines()) == 1
    assert not metrics.get_metrics_verbose()
    assert metrics.get_psnr_type() == "custom"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["psnr"], "nothing to measure: pass -i1 and -i2, or -d and -r; or -v1"),
        (["psnr", "-i1", "a"], "-i1/--img-true needs -i2/--img-test"),
        (["psnr", "-i2", "a"], "-i2/--img-test needs -i1/--img-true or -p/--prompt-true"),
        (["psnr", "-v2", "a"], "-v2/--video-test needs -v1/--video-true"),
        (["psnr", "-d", "runs"], "-d/--img-source-dir needs -r/--ref-img-dir or -rp"),
        (["psnr", "-rv", "a"], "-rv/--ref-video needs -vd/--video-source-dir"),
        (["psnr", "-i1", "a", "-i2", "b", "-p", "c", "--cal-speedup"], "--cal-speedup needs -plog/--perf-log"),
        (["clip_score", "-i1", "a", "-i2", "b"], "clip_score needs -p and -i2, or -rp and -d"),
        (["psnr", "-d", "nowhere", "-r", "runs/base"], "nowhere is no folder"),
        (["psnr", "-d", "runs/base", "-r", "runs/fast"], "has nothing to compare with runs/fast"),
        (["psnr", "-i1", "a", "-i2", "b", "--json", "runs"], "cannot write runs"),
        (["sharpness", "-i1", "a", "-i2", "b"], "invalid choice: 'sharpness'"),
        (["fid", "-i1", "a", "-i2", "b", "-b", "0"], "expected a whole number of at least 1"),
        (["psnr", "-d", "runs", "-r", "nowhere"], "nowhere, which is to be compared with what is in runs, does not"),
        (["psnr", "-i1", "a", "-i2", "b", "--json", "-", "--csv", "-"], "would mix on the standard output"),
    ],
)
def test_arguments_that_cannot_work_get_one_line(arguments: list[str], said: str, here: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["metrics", *arguments])
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err


def test_the_old_program_is_the_same_command(here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["mse", "--img-true", "runs/base", "--img-test", "runs/fast"]
    assert metrics.main(arguments) == main(["metrics", *arguments]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    monkeypatch.setattr(sys, "argv", ["cache-dit-metrics-cli", *arguments])
    assert metrics.entrypoint() == 0
    assert capsys.readouterr().out.splitlines() == [first]


def test_neither_the_command_line_nor_psnr_imports_what_other_metrics_need() -> None:
    code = """
import contextlib, io, sys
from cache_dit.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["metrics", "--help"])
assert "cache_dit.cli.metrics.arguments" in sys.modules
assert "cache_dit.cli.metrics.application" not in sys.modules
assert "cache_dit.metrics.pixels" not in sys.modules
import numpy
from cache_dit.metrics import compute_psnr
compute_psnr(numpy.zeros((8, 8, 3)), numpy.ones((8, 8, 3)))
assert not {"skimage", "scipy", "av", "lpips", "torchmetrics"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
