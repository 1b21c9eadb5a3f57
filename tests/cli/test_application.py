"""The command line: its errors, its help, and how a subcommand is found."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import cache_dit
from cache_dit.cli import main
from cache_dit.cli.application import COMMANDS
from cache_dit.cli.arguments import Command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["demo", "--steps", "0"], "--steps: expected a whole number of at least 1, got '0'"),
        (["demo", "--steps", "many"], "got 'many'"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", str(2**64)], "--seed"),
        (["demo", "--repeats", "1.5"], "--repeats"),
        (["demo", "--threads", "0"], "--threads"),
        (["demo", "--prompt", " "], "--prompt: expected some text"),
        (["demo", "--device", "toaster"], "'toaster' is no device"),
        (["demo", "--device", "meta"], "pass cpu or cuda"),
        (["demo", "--device", "cuda:99"], "there is no cuda:99"),
        (["demo", "--model", "nowhere"], "nowhere is no folder of a pipeline"),
        (["demo", "--prom", "owl"], "--prom"),
        (["demo", "owl"], "owl"),
    ],
)
def test_bad_arguments_get_one_line_and_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err
    assert "error:" in captured.err


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_place_of_the_output_folder_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--out", str(tmp_path / name)])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_gets_one_line_and_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("cache_dit.cli.application.COMMANDS", [_command(cache_dit.MissingModelError("no\nmodel"))])
    assert main(["fail"]) == 1
    assert capsys.readouterr().err == "cache-dit fail: error: no model\n"


def test_an_interruption_gets_one_line_and_the_shells_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("cache_dit.cli.application.COMMANDS", [_command(KeyboardInterrupt())])
    assert main(["fail"]) == 130
    assert capsys.readouterr().err == "cache-dit fail: interrupted\n"


def test_a_programming_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cache_dit.cli.application.COMMANDS", [_command(ValueError("a bug"))])
    with pytest.raises(ValueError, match="a bug"):
        main(["fail"])


def test_every_file_in_commands_is_a_subcommand():
    folder = Path(cache_dit.__file__).parent / "cli" / "commands"
    assert {command.name for command in COMMANDS} == {file.stem for file in folder.glob("[!_]*.py")}


def test_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(command.name in printed and command.help in printed for command in COMMANDS)


def test_the_installed_script_tells_its_version():
    script = Path(sys.executable).with_name("cache-dit")
    if not script.is_file():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"cache-dit {cache_dit.__version__}"


def _command(error: BaseException) -> Command:
    def run(arguments: argparse.Namespace) -> int:
        raise error

    return Command("fail", "Fails.", lambda parser: None, run)
