"""LoRA by peft, loaded, switched, fused and removed while the cache is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cache_dit
from tests.kit.equality import close, same
from tests.kit.tiny_flux import (
    cached_reference,
    counted,
    denoise,
    expected_calls,
    generate,
    static_config,
    tiny_pipeline,
    tiny_transformer,
)

peft = pytest.importorskip("peft")

# what peft says whenever a model gets a second adapter
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model:UserWarning:peft")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out"]


def add_lora(transformer: Any, name: str = "default", seed: int = 5) -> Any:
    """A LoRA with random weights in the attention of all blocks."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False)
    transformer.add_adapter(config, adapter_name=name)
    return transformer.requires_grad_(False)


def lora_weights(seed: int = 5) -> dict[str, torch.Tensor]:
    """The same LoRA as a file for a pipeline holds it."""
    from peft.utils import get_peft_model_state_dict

    weights = get_peft_model_state_dict(add_lora(tiny_transformer(), seed=seed))
    return {f"transformer.{name}": value for name, value in weights.items()}


def afresh(apply: Callable[[Any], Any], config: cache_dit.DBCacheConfig) -> list[torch.Tensor]:
    """What a model gives to which all was done before a cache was put on."""
    transformer = tiny_transformer()
    apply(transformer)
    return cached_reference(transformer, config)


@pytest.fixture(params=[(1, 0), (0, 0), (2, 1)], ids=["F1B0", "F0B0", "F2B1"])
def config(request: pytest.FixtureRequest) -> cache_dit.DBCacheConfig:
    return static_config(*request.param)


@pytest.fixture
def cached(config: cache_dit.DBCacheConfig) -> Any:
    """A cached transformer that has run."""
    transformer = cache_dit.enable_cache(tiny_transformer(), config)
    denoise(transformer)
    return transformer


def _added(model: Any) -> None:
    add_lora(model)


def _two_added(model: Any) -> None:
    add_lora(model, "first")
    add_lora(model, "second", seed=6)
    model.set_adapters(["first", "second"], [0.5, 2.0])


def _disabled(model: Any) -> None:
    add_lora(model)
    model.disable_adapters()


def _deleted(model: Any) -> None:
    add_lora(model)
    model.delete_adapters("default")


def _fused(model: Any) -> None:
    add_lora(model)
    model.fuse_lora()


def _unfused(model: Any) -> None:
    add_lora(model)
    model.fuse_lora()
    model.unfuse_lora()


CHANGES = pytest.mark.parametrize("change", [_added, _two_added, _disabled, _deleted, _fused, _unfused])


@CHANGES
def test_outputs_equal_those_of_a_model_that_was_changed_before_it_was_cached(
    change: Callable[[Any], None], cached: Any, config: cache_dit.DBCacheConfig
) -> None:
    change(cached)
    with counted(cached) as calls:
        assert same(denoise(cached), afresh(change, config))
    assert calls == expected_calls(config.Fn_compute_blocks, config.Bn_compute_blocks)


@CHANGES
def test_state_dict_keys_are_those_of_a_model_without_a_cache(change: Callable[[Any], None], cached: Any) -> None:
    plain = tiny_transformer()
    change(plain)
    change(cached)
    assert list(cached.state_dict()) == list(plain.state_dict())


@CHANGES
def test_disabled_afterwards_the_model_gives_what_it_gives_without_a_cache(
    change: Callable[[Any], None], cached: Any
) -> None:
    plain = tiny_transformer()
    change(plain)
    change(cached)
    denoise(cached)
    cache_dit.disable_cache(cached)
    assert same(denoise(cached), denoise(plain))
    assert [type(module) for module in cached.modules()] == [type(module) for module in plain.modules()]


def test_a_lora_changes_the_output() -> None:
    """Without this, the comparisons above would say nothing."""
    assert not same(denoise(add_lora(tiny_transformer())), denoise(tiny_transformer()))


def test_a_lora_added_and_deleted_leaves_the_plain_model(cached: Any, config: cache_dit.DBCacheConfig) -> None:
    add_lora(cached)
    denoise(cached)
    cached.delete_adapters("default")
    assert same(denoise(cached), cached_reference(tiny_transformer(), config))
    cache_dit.disable_cache(cached)
    assert same(denoise(cached), denoise(tiny_transformer()))
    assert list(cached.state_dict()) != list(add_lora(tiny_transformer()).state_dict())


def test_enabling_with_a_lora_on_and_taking_the_lora_off(config: cache_dit.DBCacheConfig) -> None:
    transformer = cache_dit.enable_cache(add_lora(tiny_transformer()), config)
    assert same(denoise(transformer), afresh(add_lora, config))
    transformer.disable_adapters()
    assert same(denoise(transformer), cached_reference(tiny_transformer(), config))


def test_a_pipeline_s_lora_methods_work_while_it_is_cached() -> None:
    weights = lora_weights()
    plain = tiny_pipeline()
    uncached = generate(plain)
    without = generate(cache_dit.enable_cache(tiny_pipeline(), static_config()))
    prepared = tiny_pipeline()
    prepared.load_lora_weights(weights, adapter_name="style")
    with_lora = generate(cache_dit.enable_cache(prepared, static_config()))
    assert not same(with_lora, without)

    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    assert same(generate(pipe), without)
    pipe.load_lora_weights(weights, adapter_name="style")
    assert same(generate(pipe), with_lora)
    pipe.disable_lora()
    assert same(generate(pipe), without)
    pipe.enable_lora()
    assert same(generate(pipe), with_lora)
    pipe.fuse_lora()
    fused = generate(pipe)
    # Weights that a LoRA was added to, and taken from, are rounded anew; six steps pass it on.
    assert close(fused, with_lora, growth=10)
    assert same(generate(pipe), fused)
    pipe.unfuse_lora()
    pipe.set_adapters(["style"], [0.0])
    assert close(generate(pipe), without, growth=10)
    pipe.unload_lora_weights()
    cache_dit.disable_cache(pipe)
    assert close(generate(pipe), uncached, growth=10)


def test_a_lora_loaded_and_unloaded_leaves_the_pipeline_as_it_was() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    first = generate(pipe)
    keys = list(pipe.transformer.state_dict())
    pipe.load_lora_weights(lora_weights(), adapter_name="style")
    generate(pipe)
    pipe.unload_lora_weights()
    assert list(pipe.transformer.state_dict()) == keys
    assert same(generate(pipe), first)
    cache_dit.disable_cache(pipe)
    assert same(generate(pipe), generate(tiny_pipeline()))


def test_save_lora_weights_of_a_cached_pipeline_writes_what_was_loaded(tmp_path: Any) -> None:
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    weights = lora_weights()
    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    pipe.load_lora_weights(weights, adapter_name="style")
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="style")
    type(pipe).save_lora_weights(tmp_path, transformer_lora_layers=layers)
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert sorted(saved) == sorted(weights)
    assert all(torch.equal(saved[name], weights[name]) for name in saved)
