"""Copies of what is cached are plain, and nobody who looks at a cached module sees a difference."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

import cache_dit
from cache_dit.engine.subclass import STATE
from tests.kit.equality import same
from tests.kit.tiny_flux import (
    BLOCKS,
    blocks_of,
    counted,
    denoise,
    expected_calls,
    flux_inputs,
    generate,
    static_config,
    tiny_pipeline,
    tiny_transformer,
)


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def _saved(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, _pickled, _saved])


def is_plain(module: Any) -> bool:
    """Whether nothing of a cache is left on a module or pipeline, or in it."""
    parts = module.modules() if isinstance(module, torch.nn.Module) else [module]
    return all(STATE not in vars(part) and "_cache_dit_plain" not in vars(type(part)) for part in parts)


@pytest.fixture
def cached() -> Iterator[FluxTransformer2DModel]:
    """A cached transformer with a history."""
    transformer = tiny_transformer()
    cache_dit.enable_cache(transformer, static_config())
    denoise(transformer)
    yield transformer
    cache_dit.disable_cache(transformer)


@COPIES
def test_a_copy_of_a_cached_transformer_is_a_plain_one(cached: Any, copied: Callable[[Any], Any]) -> None:
    made = copied(cached)
    assert type(made) is FluxTransformer2DModel
    assert is_plain(made) and not is_plain(cached)
    assert same(denoise(made), denoise(tiny_transformer()))


@COPIES
def test_copying_leaves_the_original_cached(cached: Any, copied: Callable[[Any], Any]) -> None:
    before = denoise(cached)
    copied(cached)
    with counted(cached) as calls:
        assert same(denoise(cached), before)
    assert calls == expected_calls()


@COPIES
def test_a_copy_can_be_cached_in_its_turn(cached: Any, copied: Callable[[Any], Any]) -> None:
    made = copied(cached)
    cache_dit.enable_cache(made, static_config())
    with counted(made) as calls:
        assert same(denoise(made), denoise(cached))
    assert calls == expected_calls()


@COPIES
@pytest.mark.parametrize("position", [0, 2, 5])
def test_a_copy_of_a_cached_block_is_a_plain_one(cached: Any, position: int, copied: Callable[[Any], Any]) -> None:
    block = blocks_of(cached)[position]
    made = copied(block)
    assert type(made) is type(blocks_of(tiny_transformer())[position])
    assert is_plain(made)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), block.parameters(), strict=True))


@COPIES
def test_a_copy_of_a_cached_pipeline_is_a_plain_one(copied: Callable[[Any], Any]) -> None:
    pipe = tiny_pipeline(text=copied is copy.deepcopy)
    plain = generate(pipe)
    cache_dit.enable_cache(pipe, static_config())
    generate(pipe)
    made = copied(pipe)
    assert type(made) is FluxPipeline
    assert is_plain(made) and is_plain(made.transformer)
    assert made.transformer is not pipe.transformer
    made.set_progress_bar_config(disable=True)
    assert same(generate(made), plain)


def test_a_shallow_copy_of_a_cached_transformer_is_plain_and_harms_nothing(cached: Any) -> None:
    """It shares its blocks with the original, which act plain unless the original is running."""
    made = copy.copy(cached)
    assert type(made) is FluxTransformer2DModel
    before = denoise(cached)
    assert same(denoise(made), denoise(tiny_transformer()))
    assert same(denoise(cached), before)
    cache_dit.disable_cache(cached)
    assert is_plain(made)


def test_a_cached_block_called_by_itself_acts_plain(cached: Any) -> None:
    block = blocks_of(cached)[2]
    inputs = {
        "hidden_states": torch.randn(1, 16, 32),
        "encoder_hidden_states": torch.randn(1, 4, 32),
        "temb": torch.randn(1, 32),
    }
    with torch.no_grad():
        outputs = block(**inputs)
        expected = blocks_of(tiny_transformer())[2](**inputs)
    assert same(list(outputs), list(expected))


def test_the_state_dict_of_a_cached_transformer_is_that_of_a_plain_one(cached: Any) -> None:
    plain = tiny_transformer()
    assert list(cached.state_dict()) == list(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(cached.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_loading_weights_into_a_cached_transformer_gives_the_other_model(cached: Any) -> None:
    other = tiny_transformer(seed=7)
    assert not cached.load_state_dict(other.state_dict()).missing_keys
    expected = tiny_transformer(seed=7)
    cache_dit.enable_cache(expected, static_config())
    assert same(denoise(cached), denoise(expected))
    cache_dit.disable_cache(cached)
    assert same(denoise(cached), denoise(other))


def test_a_cached_transformer_is_seen_as_a_plain_one(cached: Any) -> None:
    plain = tiny_transformer()
    assert [name for name, _ in cached.named_modules()] == [name for name, _ in plain.named_modules()]
    assert [name for name, _ in cached.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert repr(cached) == repr(plain)
    assert len(cached.transformer_blocks) == len(plain.transformer_blocks)
    assert dict(cached.config) == dict(plain.config)


def test_a_cached_class_says_what_the_plain_one_says(cached: Any) -> None:
    for found, plain in zip(cached.modules(), tiny_transformer().modules(), strict=True):
        assert isinstance(found, type(plain))
        assert issubclass(type(found), type(plain))
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(type(found), name) == getattr(type(plain), name)
        assert inspect.signature(found.forward) == inspect.signature(plain.forward)
        assert inspect.signature(found.__call__) == inspect.signature(plain.__call__)
        assert inspect.getsource(type(found).forward) == inspect.getsource(type(plain).forward)


def test_a_cached_transformer_can_be_moved_and_cast(cached: Any) -> None:
    expected = tiny_transformer().double()
    cache_dit.enable_cache(expected, static_config())

    def run(transformer: Any) -> list[torch.Tensor]:
        return denoise(transformer, inputs={name: value.double() for name, value in flux_inputs().items()})

    assert same(run(cached.to("cpu").double()), run(expected))


def test_save_pretrained_of_a_cached_transformer_writes_a_plain_one(cached: Any, tmp_path: Any) -> None:
    cached.save_pretrained(tmp_path)
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path).requires_grad_(False)
    assert is_plain(loaded)
    # a copy, since weights mapped from a file lie elsewhere in memory and kernels round differently there
    assert same(denoise(copy.deepcopy(loaded)), denoise(tiny_transformer()))


def test_disabling_gives_every_module_its_class_back(cached: Any) -> None:
    classes = [type(module) for module in tiny_transformer().modules()]

    def changed() -> int:
        return sum(type(module) is not plain for module, plain in zip(cached.modules(), classes, strict=True))

    assert changed() == 1 + BLOCKS
    cache_dit.disable_cache(cached)
    assert changed() == 0
    assert is_plain(cached)
