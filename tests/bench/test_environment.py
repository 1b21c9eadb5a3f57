"""An environment is ready when all of it was built with the versions that are here, and else it is not there."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.peers import client
from bench.peers.client import Environment, PeerUnavailableError


class Commands:
    """Stands for the programs that are run; `failing` is a word of the command that fails."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.made = failing, []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.made.append(command)
        if command[2] == "venv":
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
        failed = bool(self.failing) and self.failing in command
        return subprocess.CompletedProcess(command, int(failed), "", "no index could be reached" if failed else "")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(client.subprocess, "run", made)
    monkeypatch.setattr(client.os, "name", "posix")
    return made


def test_torch_comes_first_and_alone_and_all_else_in_our_versions(commands: Commands, tmp_path: Path) -> None:
    wanted = Environment("1.2.0", tmp_path)
    assert not wanted.ready
    assert wanted.make() == tmp_path / "cache-dit-1.2.0" / "bin" / "python"
    _, torch, rest = commands.made
    assert [word for word in torch if word.startswith("torch")] == ["torch"] == torch[-1:]
    assert {"cache-dit==1.2.0", f"diffusers=={wanted.pins()['diffusers']}"} <= set(rest)
    assert not any(word.startswith("torch") for word in rest)
    assert str(client.CONSTRAINTS) in torch and str(client.CONSTRAINTS) in rest


def test_what_is_ready_is_not_built_again(commands: Commands, tmp_path: Path) -> None:
    Environment("1.2.0", tmp_path).make()
    count = len(commands.made)
    assert Environment("1.2.0", tmp_path).ready
    Environment("1.2.0", tmp_path).make()
    assert len(commands.made) == count
    assert not Environment("1.5.3", tmp_path).ready


def test_what_was_built_with_other_versions_is_built_again(commands: Commands, tmp_path: Path) -> None:
    old = Environment("1.2.0", tmp_path)
    old.make()
    pins = old.path / "pins.json"
    pins.write_text(json.dumps({**json.loads(pins.read_text()), "diffusers": "0.1"}), encoding="utf-8")
    assert not old.ready
    old.make()
    assert old.ready


def test_a_build_that_fails_tells_what_pip_said_and_leaves_nothing(commands: Commands, tmp_path: Path) -> None:
    commands.failing = "cache-dit==1.5.3"
    wanted = Environment("1.5.3", tmp_path)
    with pytest.raises(
        PeerUnavailableError,
        match=r"(?s)cache-dit 1\.5\.3 could not be built: pip ended with 1.*no index could be reached",
    ):
        wanted.make()
    assert not wanted.ready
    assert list(tmp_path.iterdir()) == []
