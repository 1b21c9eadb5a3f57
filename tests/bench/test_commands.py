"""`cache-dit bench`: how benches are found, their common arguments, and the report that follows a run."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import commands
from bench.commands import BUILT, COMMANDS, COMMITTED, ROOT, add_common, finished, main, opened, out_of
from bench.findings import Finding
from bench.results import Results
from cache_dit import cli
from cache_dit.cli.application import run_one
from cache_dit.cli.arguments import Command


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    """`opened` sets the threads; the tests after it find them as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common(parser, out=COMMITTED / "weight.json")
    return parser.parse_args(arguments)


def bench(rows: int = 2) -> Command:
    """A bench that weighs."""

    def run(arguments: argparse.Namespace) -> int:
        results = opened(arguments, "weight", {"rows": rows})
        for number in range(rows):
            results.row(str(number), lambda number=number: {"kg": number})
        finished(results, [Finding("weight", 1.0, "kg")], "Weights")
        return 0

    return Command("weight", "Weighs.", lambda parser: add_common(parser, out=COMMITTED / "weight.json"), run)


def test_the_commands_are_the_benches_and_what_is_done_with_their_results() -> None:
    assert [command.name for command in COMMANDS] == ["check", "gpu", "overhead", "quality", "report", "scaling"]


def test_cache_dit_bench_passes_everything_on_help_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: cache-dit bench ")
    assert all(command.help in " ".join(printed.split()) for command in COMMANDS)
    with pytest.raises(SystemExit):
        cli.main(["bench", "check", "--tolerance", "9"])
    assert capsys.readouterr().err.startswith("cache-dit bench check: error: argument --tolerance")


def test_python_m_bench_is_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "check", "none.json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bench", run_name="__main__")
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("python -m bench check: error: none.json cannot be read")


def test_an_installed_package_without_the_repository_says_to_clone_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cache_dit.cli.commands.bench._ROOT", tmp_path)
    assert cli.main(["bench", "quality"]) == 1
    assert "clone the repository" in capsys.readouterr().err


def test_the_quick_run_saves_elsewhere_and_never_over_what_is_committed() -> None:
    assert out_of(parsed()) == COMMITTED / "weight.json"
    assert out_of(parsed("--quick")) == BUILT / "weight.json"
    assert out_of(parsed("--quick", "--out", "mine.json")) == Path("mine.json")
    assert "build/" in (ROOT / ".gitignore").read_text().splitlines()


def test_common_arguments_are_settings_and_set_the_threads(tmp_path: Path) -> None:
    results = opened(parsed("--quick", "--out", str(tmp_path / "x.json")), "weight", {"rows": 2})
    assert results.settings == {"quick": True, "threads": 1, "clock": "processor", "rows": 2}
    assert (results.machine["threads"], torch.get_num_threads()) == (1, 1)


def test_a_run_that_goes_on_says_how_to_begin_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parsed("--out", str(tmp_path / "x.json"))
    opened(arguments, "weight", {}).add("a", {})
    assert capsys.readouterr().out == ""
    opened(arguments, "weight", {})
    assert "rows so far: 1 (--fresh measures them anew)" in capsys.readouterr().out


def test_other_settings_end_a_run_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.json")
    assert run_one("bench", "", [bench(1)], ["weight", "--out", out]) == 0
    assert run_one("bench", "", [bench(2)], ["weight", "--out", out]) == 1
    assert re.search(r"^bench weight: error: .*rows: 1 there, 2 now.*--fresh", capsys.readouterr().err)
    assert run_one("bench", "", [bench(2)], ["weight", "--out", out, "--fresh"]) == 0


# -- the report after a run


def test_a_run_is_followed_by_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "weight.json"
    assert run_one("bench", "", [bench()], ["weight", "--out", str(out)]) == 0
    assert str(tmp_path / "weight.html") in capsys.readouterr().out
    assert "weight.json" in (tmp_path / "weight.html").read_text(encoding="utf-8")


def test_no_report_lies_among_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr("bench.report.page.save_report", lambda path, *_, **__: written.append(path))
    for folder in (COMMITTED, Path("elsewhere")):
        commands.report_on(Results(folder / "gpu.json", "gpu", {}, {}))
    assert written == [BUILT / "gpu.html", Path("elsewhere") / "gpu.html"]


def test_without_matplotlib_what_was_measured_is_kept_and_the_extra_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    out = tmp_path / "weight.json"
    assert run_one("bench", "", [bench()], ["weight", "--out", str(out)]) == 0
    assert "pip install 'cache-dit[bench]'" in capsys.readouterr().out
    assert out.is_file()
    assert not out.with_suffix(".html").exists()
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "all.html")]) == 1
    assert "pip install 'cache-dit[bench]'" in capsys.readouterr().err


def test_a_list_of_names_is_followed_by_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "report_on", lambda path: pytest.fail("nothing was measured"))
    assert main(["overhead", "--list"]) == 0
    assert "python" in capsys.readouterr().out


def test_makes_benches_are_benches() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^BENCHES := (.*)$", makefile, re.M)
    assert listed
    assert set(listed[1].split()) <= {command.name for command in COMMANDS}
