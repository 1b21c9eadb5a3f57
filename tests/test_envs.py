"""Environment variables, as attributes of one object."""

from __future__ import annotations

import pytest

from cache_dit.envs import DEFAULTS, Environment
from cache_dit.errors import ConfigError


def test_a_variable_that_is_not_set_has_its_default(monkeypatch: pytest.MonkeyPatch):
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    assert {name: getattr(Environment(), name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False), ("False", False), ("", False)])
def test_a_switch_is_read_when_it_is_asked_for(text: str, value: bool, monkeypatch: pytest.MonkeyPatch):
    environment = Environment()
    monkeypatch.setenv("CACHE_DIT_FLUX_ENABLE_DUMMY_BLOCKS", text)
    assert environment.CACHE_DIT_FLUX_ENABLE_DUMMY_BLOCKS is value


def test_what_a_program_assigns_comes_first(monkeypatch: pytest.MonkeyPatch):
    environment = Environment()
    monkeypatch.setenv("CACHE_DIT_LOG_LEVEL", "error")
    assert environment.CACHE_DIT_LOG_LEVEL == "error"
    environment.CACHE_DIT_LOG_LEVEL = "debug"
    assert environment.CACHE_DIT_LOG_LEVEL == "debug"
    del environment.CACHE_DIT_LOG_LEVEL
    assert environment.CACHE_DIT_LOG_LEVEL == "error"


def test_a_variable_that_nothing_reads_is_refused():
    with pytest.raises(AttributeError, match="CACHE_DIT_LOG_LEVEL"):
        _ = Environment().CACHE_DIT_LOG_LEVLE
    with pytest.raises(ConfigError, match="CACHE_DIT_LOG_LEVEL"):
        Environment().CACHE_DIT_LOG_LEVLE = "debug"
