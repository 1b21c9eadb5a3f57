"""How a transformer is spread: backends by size, what is refused, and the tags."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.config import ParallelismBackend, ParallelismConfig
from cache_dit.errors import ConfigError, MissingDependencyError

SIZES = ("ulysses_size", "ring_size", "tp_size")


@given(st.fixed_dictionaries({name: st.none() | st.integers(1, 8) for name in SIZES}))
def test_the_backend_follows_the_one_size_above_one(sizes: dict[str, int | None]) -> None:
    used = [name for name, size in sizes.items() if size is not None and size > 1]
    if len(used) > 1:
        with pytest.raises(ConfigError, match="exclude each other: expected only one of them above 1"):
            ParallelismConfig(**sizes)  # type: ignore[arg-type]
        return
    config = ParallelismConfig(**sizes)  # type: ignore[arg-type]
    expected = "None" if not used else "Native_PyTorch" if used == ["tp_size"] else "Native_Diffuser"
    assert str(config.backend) == expected
    assert config.enabled() == bool(used)
    size = sizes[used[0]] if used else None
    assert config.text_encoder_world_size == config.controlnet_world_size == size
    assert config.auto_encoder_world_size == config.vae_world_size == size


def test_a_backend_may_be_named_in_any_case() -> None:
    assert ParallelismBackend.from_str("native_pytorch") is ParallelismBackend.NATIVE_PYTORCH
    config = ParallelismConfig(backend="native_diffuser", ring_size=2)  # type: ignore[arg-type]
    assert config.backend is ParallelismBackend.NATIVE_DIFFUSER
    with pytest.raises(ConfigError, match="unknown key 'Native_Torch'; did you mean 'Native_PyTorch'"):
        ParallelismBackend.from_str("Native_Torch")


def test_a_backend_that_cannot_do_what_the_sizes_say_is_replaced_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = ParallelismConfig(ParallelismBackend.NATIVE_PYTORCH, ulysses_size=2)
    assert config.backend is ParallelismBackend.NATIVE_DIFFUSER
    assert "Native_PyTorch does not fit the sizes given, Native_Diffuser is used" in caplog.text


def test_only_a_backend_that_spreads_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ParallelismBackend.is_supported(backend) for backend in ParallelismBackend] == [True, True, True, False]
    monkeypatch.setattr(metadata, "version", lambda name: "0.35.2")
    with pytest.raises(MissingDependencyError, match=r"needs diffusers>=0.36; 0.35.2 is installed"):
        ParallelismBackend.is_supported(ParallelismBackend.NATIVE_DIFFUSER)
    assert ParallelismBackend.is_supported(ParallelismBackend.NATIVE_PYTORCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ulysses_size": 0}, "ulysses_size=0 is not valid: expected an integer >= 1"),
        ({"tp_size": "2"}, "tp_size='2' is not valid: expected an integer >= 1"),
        ({"backend": 1}, "backend=1 is not valid: expected a ParallelismBackend or its value"),
        ({"backend": None}, "backend=None is not valid"),
        ({"backend": ParallelismBackend.NONE, "tp_size": 2}, "expected Native_PyTorch or Auto, as tp_size is above 1"),
        ({"parallel_kwargs": ["native"]}, r"parallel_kwargs=\['native'\] is not valid: expected a dict"),
        ({"parallel_kwargs": {"attn_backend": "native"}}, "unknown key 'attn_backend'; did you mean 'attention_back"),
        ({"parallel_kwargs": {"attention_backend": 3}}, "attention_backend=3 is not valid: expected a name"),
        ({"parallel_kwargs": {"extra_parallel_modules": "vae"}}, "expected a list of modules"),
        ({"parallel_kwargs": {"cp_plan": ["blocks"]}}, "cp_plan=.* expected a dict"),
        ({"parallel_kwargs": {"has_controlnet": 1}}, "has_controlnet=1 is not valid: expected True or False"),
        ({"_has_text_encoder": 1}, "_has_text_encoder=1 is not valid: expected True or False"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelismConfig(**options)


def test_the_options_are_the_configurations_own() -> None:
    options = {"attention_backend": "native", "extra_parallel_modules": [object(), "vae"], "cp_plan": None}
    config = ParallelismConfig(tp_size=2, parallel_kwargs=options)
    assert config.parallel_kwargs == options
    assert config.parallel_kwargs is not options
    assert ParallelismConfig(parallel_kwargs=None).parallel_kwargs == {}


def test_tags() -> None:
    assert ParallelismConfig().strify() == ParallelismConfig(ulysses_size=1).strify() == "NONE"
    assert ParallelismConfig(ulysses_size=2).strify() == "Ulysses2"
    assert ParallelismConfig(ring_size=4).strify(vae=True) == "Ring4_VAEP"
    spread = ParallelismConfig(tp_size=2, _has_text_encoder=True, parallel_kwargs={"has_controlnet": True})
    assert spread.strify(vae=True) == "TP2_TEP_VAEP_CNP"
    assert spread.strify(details=True) == "Native_PyTorch(tp_size=2)_TEP_CNP"
