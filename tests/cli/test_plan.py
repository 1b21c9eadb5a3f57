"""``cache-dit plan``: its arguments, and one small plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_dit.cli import main
from cache_dit.engine.plans.plan import Plan


def test_a_plan_is_made_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("noto emoji of a cat\n\nflat emoji of a boat\n", encoding="utf-8")
    out, plot = tmp_path / "plan.json", tmp_path / "curve.png"
    options = ["--prompts", str(prompts), "--steps", "4", "--speedup", "2", "--budget", "0.1", "--quiet"]
    assert main(["plan", "--model", "demo", "--out", str(out), "--plot", str(plot), *options]) == 0
    plan = Plan.load(out)
    assert plan.chosen == 2
    told = capsys.readouterr().out
    assert plan.point.branches["*"].text in told
    assert "uncached runs' time" in told and str(plot) in told
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "demo", "--prompts", "missing.txt"], "missing.txt cannot be read"),
        (["--model", "nowhere", "--prompts", "some.txt"], "nowhere is no folder of a pipeline"),
        (["--model", "demo", "--prompts", "empty.txt"], "has no prompts"),
        (["--model", "demo", "--prompts", "some.txt", "--out", "gone/plan.json"], "its folder is not there"),
        (["--model", "demo", "--prompts", "some.txt", "--speedup", "2", "--curve"], "not allowed with"),
        (["--model", "demo", "--prompts", "some.txt", "--call", "[1]"], "a JSON object"),
        (
            ["--model", "demo", "--prompts", "some.txt", "--call", '{"guidance_scal": 3}'],
            "--call: call of DemoPipeline: unknown key 'guidance_scal'; did you mean 'guidance_scale'?",
        ),
        (["--model", "demo", "--prompts", "some.txt", "--target-psnr", "high"], "a number of at least 0"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.txt").write_text("a cat\n")
    Path("empty.txt").write_text("\n")
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_jsonl_prompts_are_their_captions(tmp_path: Path) -> None:
    from cache_dit.cli.commands.plan import _prompts

    path = tmp_path / "prompts.jsonl"
    path.write_text('{"caption": "a cat"}\n{"prompt": "a dog"}\n', encoding="utf-8")
    assert _prompts(path) == ["a cat", "a dog"]
