"""The commands that the guide shows print what it says they print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cache_dit.cli import main
from tests.docs.pages import blocks, setup_name, text
from tests.docs.setups import SETUPS
from tests.docs.test_docs import run_python, same_text

PAGE = "metrics.md"
NETWORKS_PAGE = "metrics_networks.md"

for package in ("skimage", "av"):
    pytest.importorskip(package, reason="the extra `metrics` brings it")


def test_the_commands_of_the_guide_print_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = SETUPS[setup_name(PAGE) or ""]()
    capsys.readouterr()
    commands = 0
    for block in blocks(PAGE):
        if block.language == "python":
            run_python(block, namespace)
        elif block.code.startswith("$ cache-dit "):
            command, _, shown = block.code.partition("\n")
            assert main(shlex.split(command.removeprefix("$ cache-dit "))) == 0
            printed = capsys.readouterr().out
            assert same_text(printed, shown), f"{block.place} says\n{shown}\nbut printed was\n{printed}"
            commands += 1
    assert commands == text(PAGE).count("$ cache-dit ")


def test_the_guide_names_every_flag_and_variable() -> None:
    from cache_dit.metrics.networks.files import NETWORKS

    for network in NETWORKS:
        assert f"`{network.variable}`" in text(PAGE) + text(NETWORKS_PAGE)
    for flag in ("-i1", "-i2", "-p", "-v1", "-v2", "-d", "-r", "-rp", "-vd", "-rv", "--perf-log", "--json", "--csv"):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text(PAGE)), flag
