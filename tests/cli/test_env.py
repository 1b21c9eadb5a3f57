"""`cache-dit env`: what a bug report needs."""

from __future__ import annotations

import json
import re
import socket
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import envs
from cache_dit.cli import main
from cache_dit.report import environment
from cache_dit.report.environment import describe_environment, lines

SOURCES = Path(cache_dit.__file__).parent


def test_it_tells_versions_the_processor_and_the_variables_that_are_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CACHE_DIT_LOG_LEVEL", "warning")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    assert main(["env"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["cache_dit"] == f"{cache_dit.__version__} (API of cache-dit {cache_dit.REFERENCE_API})"
    assert told["torch"].startswith(torch.__version__)
    assert f"{torch.get_num_threads()} threads" in told["torch"]
    assert torch.backends.cpu.get_cpu_capability() in told["CPU"]
    assert told["diffusers"] == metadata.version("diffusers")
    assert told["CACHE_DIT_LOG_LEVEL"] == "warning"
    assert "SECRET_TOKEN" not in told


def test_json_is_the_same_as_data_and_does_not_name_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(json.dumps(describe_environment()))
    assert socket.gethostname() not in printed


def test_every_variable_that_the_package_reads_is_shown() -> None:
    read = re.compile(r"(?:environ(?:\.get\(|\[)|variable=)\"([A-Z_]+)\"")
    sources = [path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py")]
    found = {*envs.DEFAULTS, *(name for source in sources for name in read.findall(source))}
    assert {"CACHE_DIT_LOG_LEVEL", "CLIP_MODEL_DIR", "XDG_CACHE_HOME"} <= found
    assert {name for name in found if not name.startswith(environment.PREFIX)} <= set(environment.VARIABLES)


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    told = describe_environment()
    assert "torch" in told["torch"]["error"]
    assert any("cannot be imported" in line for line in lines(told))


def test_accelerators_are_told_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Board", total_memory=80 * 2**30)
    module = SimpleNamespace(
        get_device_properties=lambda index: properties,
        mem_get_info=lambda index: (20 * 2**30, 80 * 2**30),
        get_device_capability=lambda index: (9, 0),
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    told: dict[str, Any] = describe_environment()
    assert [device["device"] for device in told["devices"]] == ["cuda:0", "cuda:1"]
    assert any(re.fullmatch(r"cuda:1 +Board, 80.0 GiB, 20.0 GiB free, capability 9.0", line) for line in lines(told))
