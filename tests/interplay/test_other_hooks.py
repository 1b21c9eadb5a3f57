"""Hooks, caches and class changes of other libraries, put on before or after ours."""

from __future__ import annotations

import logging
import operator
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import LayerSkipConfig, apply_first_block_cache, apply_layer_skip
from diffusers.hooks._helpers import TransformerBlockRegistry
from torch.nn.utils import parametrize

import cache_dit
from tests.interplay.test_copies import is_plain
from tests.kit.equality import same
from tests.kit.tiny_flux import (
    BLOCKS,
    STEPS,
    blocks_of,
    cached_reference,
    counted,
    denoise,
    expected_calls,
    flux_inputs,
    generate,
    generate_video,
    static_config,
    tiny_pipeline,
    tiny_transformer,
    tiny_wan,
    tiny_wan_pipeline,
)

WHEN = pytest.mark.parametrize("when", ["before", "after"])


@pytest.fixture
def config() -> cache_dit.DBCacheConfig:
    return static_config(1, 1)


def wan_inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(1, 4, 2, 4, 4, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=generator),
    }


def denoise_wan(transformer: Any) -> list[torch.Tensor]:
    return denoise(transformer, inputs=wan_inputs())


# -- the class that a cached module has


def test_a_cached_class_equals_the_plain_one_and_has_a_hash_of_its_own() -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), static_config())
    plain = tiny_transformer()
    pairs = [(type(transformer), type(plain))]
    pairs += [(type(a), type(b)) for a, b in zip(blocks_of(transformer), blocks_of(plain), strict=True)]
    for cached_class, plain_class in pairs:
        assert cached_class is not plain_class
        assert cached_class == plain_class and plain_class == cached_class
        assert not operator.ne(cached_class, plain_class) and not operator.ne(plain_class, cached_class)
        assert cached_class in (plain_class,) and plain_class in [cached_class]
        assert hash(cached_class) != hash(plain_class)
        assert len({cached_class, plain_class}) == 2
        assert cached_class != torch.nn.Linear and torch.nn.Linear != cached_class


def test_all_blocks_of_a_class_share_one_cached_class() -> None:
    """Compiled code is made for a class: one each would compile every block anew."""
    transformers = [cache_dit.enable_cache(tiny_transformer(seed), static_config()) for seed in (0, 1)]
    classes = {type(block) for transformer in transformers for block in blocks_of(transformer)}
    assert len(classes) == 2
    assert len({type(transformer) for transformer in transformers}) == 1


def test_cached_classes_of_different_classes_differ() -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), static_config())
    first, second = (
        type(blocks[0]) for blocks in (transformer.transformer_blocks, transformer.single_transformer_blocks)
    )
    assert first != second


@pytest.mark.parametrize("make", [tiny_transformer, tiny_wan])
def test_diffusers_table_of_block_classes_has_the_cached_one_with_the_same_entry(make: Callable[[], Any]) -> None:
    def blocks(transformer: Any) -> Any:
        return transformer.blocks if hasattr(transformer, "blocks") else blocks_of(transformer)

    cached = cache_dit.enable_cache(make(), static_config())
    for block, plain in zip(blocks(cached), blocks(make()), strict=True):
        found, expected = TransformerBlockRegistry.get(type(block)), TransformerBlockRegistry.get(type(plain))
        assert found.return_hidden_states_index == expected.return_hidden_states_index
        assert found.return_encoder_hidden_states_index == expected.return_encoder_hidden_states_index
        assert found._cls is type(block) and expected._cls is type(plain)


# -- diffusers' hooks


@WHEN
@pytest.mark.parametrize("skipped", [0, 2, 3])
def test_layer_skip_gives_what_it_gives_without_a_cache(skipped: int, when: str) -> None:
    """Every step computed: bit for bit. Cached steps: those of a model that was cached with the hook on."""
    layers = LayerSkipConfig(indices=[skipped], fqn="blocks")
    plain, reference = tiny_wan(), tiny_wan()
    apply_layer_skip(plain, layers)
    apply_layer_skip(reference, layers)
    cache_dit.enable_cache(reference, static_config())
    for mask, expected in (([1] * STEPS, denoise_wan(plain)), (None, denoise_wan(reference))):
        transformer = tiny_wan()
        if when == "before":
            apply_layer_skip(transformer, layers)
        cache_dit.enable_cache(transformer, static_config(mask=mask))
        if when == "after":
            apply_layer_skip(transformer, layers)
        assert same(denoise_wan(transformer), expected)
        cache_dit.disable_cache(transformer)
        assert same(denoise_wan(transformer), denoise_wan(plain))


def test_skip_layer_guidance_installs_and_removes_its_hooks_in_the_middle_of_a_cached_run() -> None:
    """What a guider does: hooks on for its extra pass, a branch of its own, and off again."""
    from diffusers.guiders import SkipLayerGuidance

    def run(transformer: Any) -> list[torch.Tensor]:
        layers = LayerSkipConfig(indices=[1, 2], fqn="blocks")
        guider = SkipLayerGuidance(
            skip_layer_config=layers, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
        )
        inputs = wan_inputs()
        outputs = []
        for step in range(STEPS):
            timestep = torch.tensor([1000.0 * (1 - step / STEPS)])
            guider.set_state(step=step, num_inference_steps=STEPS, timestep=timestep)
            names = ("pred_cond", "pred_uncond", "pred_cond_skip")[: guider.num_conditions]
            predictions = {}
            for name in names:
                guider.prepare_models(transformer)
                with torch.no_grad(), transformer.cache_context(name):
                    predictions[name] = transformer(**inputs, timestep=timestep, return_dict=False)[0]
                guider.cleanup_models(transformer)
            if "pred_cond_skip" in predictions:
                assert not same(predictions["pred_cond_skip"], predictions["pred_cond"])
            noise = sum(predictions.values()) / len(predictions)
            inputs["hidden_states"] = inputs["hidden_states"] - noise / STEPS
            outputs.append(noise)
        return outputs

    plain = run(tiny_wan())
    computing = cache_dit.enable_cache(tiny_wan(), static_config(mask=[1] * STEPS))
    assert same(run(computing), plain)
    cached = cache_dit.enable_cache(tiny_wan(), static_config())
    first = run(cached)
    lines = cache_dit.summary(cached, logging=False)[0].steps_line
    assert lines == {"pred_cond": "FFCFCC", "pred_uncond": "FFCFCC", "pred_cond_skip": "-FCFCC"}
    assert same(run(cached), first)
    cache_dit.disable_cache(cached)
    assert same(run(cached), plain)


def test_a_cache_of_diffusers_that_is_on_already_is_a_reason_to_refuse() -> None:
    transformer = tiny_transformer()
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(cache_dit.ConfigError, match=r"cache of diffusers .* transformer\.disable_cache\(\)"):
        cache_dit.enable_cache(transformer, static_config())
    assert is_plain(transformer)
    transformer.disable_cache()
    cache_dit.enable_cache(transformer, static_config())
    assert same(denoise(transformer), cached_reference(tiny_transformer(), static_config()))


def test_a_cache_of_diffusers_on_a_pipeline_s_transformer_is_a_reason_to_refuse() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(cache_dit.ConfigError, match="cache of diffusers"):
        cache_dit.enable_cache(pipe, static_config())
    assert is_plain(pipe) and is_plain(pipe.transformer)


def test_a_cache_of_diffusers_put_on_after_ours_works_alone_and_we_say_so(caplog: pytest.LogCaptureFixture) -> None:
    first_block = FirstBlockCacheConfig(threshold=0.5)
    alone, cached = tiny_wan_pipeline(), tiny_wan_pipeline()
    alone.transformer.enable_cache(first_block)
    expected = generate_video(alone)
    assert not same(expected, generate_video(tiny_wan_pipeline()))
    cache_dit.enable_cache(cached, static_config())
    ours = generate_video(cached)
    cached.transformer.enable_cache(first_block)
    with caplog.at_level(logging.WARNING, "cache_dit"):
        assert same(generate_video(cached), expected)
    assert "a cache of diffusers is on as well" in caplog.text
    assert "a cache of diffusers" in (cache_dit.summary(cached, logging=False)[0].reason or "")
    cached.transformer.disable_cache()
    assert same(generate_video(cached), ours)


def test_the_hooks_of_a_first_block_cache_put_on_after_ours_find_the_blocks() -> None:
    """By the function, which leaves no sign on the transformer."""
    transformer = cache_dit.enable_cache(tiny_wan(), static_config(mask=[1] * STEPS))
    plain = tiny_wan()
    for model in (transformer, plain):
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.5))

    def run(model: Any) -> list[torch.Tensor]:
        with model.cache_context("cond"):
            return denoise_wan(model)

    assert same(run(transformer), run(plain))


# -- hooks of torch


def test_forward_hooks_fire_on_computed_blocks_and_on_no_other(config: cache_dit.DBCacheConfig) -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), config)
    before: list[int] = []
    for position, block in enumerate(blocks_of(transformer)):
        block.register_forward_pre_hook(lambda module, args, position=position: before.append(position))
    with counted(transformer) as calls:
        denoise(transformer)
    assert calls == expected_calls(1, 1)
    assert sorted(before) == sorted(calls.elements())


def test_a_forward_hook_that_changes_a_block_s_output_is_heard(config: cache_dit.DBCacheConfig) -> None:
    def louder(module: Any, args: Any, output: Any) -> Any:
        return tuple(stream * 1.5 for stream in output)

    def hooked() -> Any:
        transformer = tiny_transformer()
        transformer.transformer_blocks[1].register_forward_hook(louder)
        return transformer

    after = cache_dit.enable_cache(tiny_transformer(), config)
    after.transformer_blocks[1].register_forward_hook(louder)
    assert same(denoise(after), cached_reference(hooked(), config))
    cache_dit.disable_cache(after)
    assert same(denoise(after), denoise(hooked()))


def test_global_module_hooks_see_computed_blocks_only(config: cache_dit.DBCacheConfig) -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), config)
    blocks = {id(block): position for position, block in enumerate(blocks_of(transformer))}
    seen: list[int] = []

    def note(module: Any, args: Any, output: Any) -> None:
        if id(module) in blocks:
            seen.append(blocks[id(module)])

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        denoise(transformer)
    finally:
        handle.remove()
    assert sorted(seen) == sorted(expected_calls(1, 1).elements())


class Doubled(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def _on_a_linear(transformer: Any) -> None:
    parametrize.register_parametrization(transformer.transformer_blocks[2].attn.to_q, "weight", Doubled())


@WHEN
def test_parametrize_on_a_linear_in_a_block(config: cache_dit.DBCacheConfig, when: str) -> None:
    plain = tiny_transformer()
    _on_a_linear(plain)
    expected, reference = denoise(plain), cached_reference(plain, config)
    assert not same(expected, denoise(tiny_transformer()))
    transformer = tiny_transformer()
    if when == "before":
        _on_a_linear(transformer)
    cache_dit.enable_cache(transformer, config)
    if when == "after":
        _on_a_linear(transformer)
    assert same(denoise(transformer), reference)
    cache_dit.disable_cache(transformer)
    assert same(denoise(transformer), expected)
    parametrize.remove_parametrizations(transformer.transformer_blocks[2].attn.to_q, "weight", leave_parametrized=False)
    assert same(denoise(transformer), denoise(tiny_transformer()))


def _on_blocks_themselves(transformer: Any) -> None:
    for block in transformer.blocks:
        parametrize.register_parametrization(block, "scale_shift_table", Doubled())


@WHEN
def test_parametrize_on_a_block_s_own_parameter(when: str) -> None:
    """It gives the block a subclass too: over ours or under it."""
    plain = tiny_wan()
    _on_blocks_themselves(plain)
    expected = denoise_wan(plain)
    cache_dit.enable_cache(plain, static_config())
    reference = denoise_wan(plain)
    transformer = tiny_wan()
    if when == "before":
        _on_blocks_themselves(transformer)
    cache_dit.enable_cache(transformer, static_config())
    if when == "after":
        _on_blocks_themselves(transformer)
    assert same(denoise_wan(transformer), reference)
    cache_dit.disable_cache(transformer)
    assert same(denoise_wan(transformer), expected)
    cache_dit.enable_cache(transformer, static_config())
    assert same(denoise_wan(transformer), reference)
    cache_dit.disable_cache(transformer)
    for block in transformer.blocks:
        parametrize.remove_parametrizations(block, "scale_shift_table", leave_parametrized=False)
    assert same(denoise_wan(transformer), denoise_wan(tiny_wan()))


# -- gradients


def test_gradient_checkpointing_changes_nothing_where_no_gradient_is_asked_for(
    config: cache_dit.DBCacheConfig,
) -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), config)
    transformer.enable_gradient_checkpointing()
    reference = cached_reference(tiny_transformer(), config)
    for grad in (False, True):  # with gradients on, the model calls its blocks through torch.utils.checkpoint
        with counted(transformer) as calls:
            assert same(denoise(transformer, grad=grad), reference)
        assert calls == expected_calls(1, 1)


def _gradients(transformer: Any) -> list[torch.Tensor]:
    for parameter in transformer.parameters():
        parameter.grad = None
    for step in range(4):
        output = transformer(**flux_inputs(), timestep=torch.tensor([1.0 - step / STEPS]), return_dict=False)[0]
        output.square().mean().backward()
    return [p.grad for _, p in sorted(transformer.named_parameters()) if p.grad is not None]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_cached_model_are_those_of_the_plain_one(
    config: cache_dit.DBCacheConfig, checkpointing: bool
) -> None:
    """With gradients on, everything is computed and nothing kept, so that each step can be gone back through."""
    plain = tiny_transformer().requires_grad_(True)
    transformer = cache_dit.enable_cache(tiny_transformer().requires_grad_(True), config)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
        plain.enable_gradient_checkpointing()
    expected = _gradients(plain)
    assert len(expected) == len(list(plain.parameters()))
    assert same(_gradients(transformer), expected)


# -- FSDP2, in a process of its own, which is a group of one


_SHARDED = """
import os, sys, tempfile
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
torch.set_num_threads(1)
sys.path.insert(0, {root!r})
import cache_dit
from tests.kit.tiny_flux import *

store = dist.FileStore({store!r}, 1)
dist.init_process_group("gloo", rank=0, world_size=1, store=store)

def shard(transformer):
    for block in blocks_of(transformer):
        fully_shard(block)
    fully_shard(transformer)
    return transformer

def full(outputs):
    return [o.full_tensor() if hasattr(o, "full_tensor") else o for o in outputs]

config = static_config(1, 1)
plain = denoise(tiny_transformer())
reference = cached_reference(tiny_transformer(), config)
for when in ("before", "after"):
    transformer = tiny_transformer()
    if when == "before":
        shard(transformer)
    sharded_type = type(transformer)
    cache_dit.enable_cache(transformer, config)
    if when == "after":
        shard(transformer)
    for _ in range(2):
        with counted(transformer) as calls:
            outputs = full(denoise(transformer))
        assert same(outputs, reference), when
        assert calls == expected_calls(1, 1), when
    cache_dit.disable_cache(transformer)
    assert same(full(denoise(transformer)), plain), when
    cache_dit.enable_cache(transformer, config)
    assert same(full(denoise(transformer)), reference), when
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
def test_fully_shard_before_and_after(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    script = _SHARDED.format(root=root, store=str(tmp_path / "store"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, cwd=root, check=False
    )
    assert done.stdout.endswith("equal\n"), done.stderr[-3000:]


@pytest.fixture(autouse=True)
def unchanged_table() -> Iterator[None]:
    """diffusers' table of block classes has no entry replaced by what these tests do."""
    before = dict(TransformerBlockRegistry._registry)
    yield
    after = TransformerBlockRegistry._registry
    assert all(after[cls] is entry for cls, entry in before.items())


def test_a_cached_pipeline_still_runs_after_all_blocks_got_hooks() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    first = generate(pipe)
    with counted(pipe.transformer) as calls:
        assert same(generate(pipe), first)
    assert len(calls) == BLOCKS
