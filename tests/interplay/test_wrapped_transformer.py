"""A pipeline's transformer that is none, or stands inside something else: cached, or refused with what to pass."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

import cache_dit
from cache_dit import UnsupportedModelError
from cache_dit.engine.subclass import state_of
from tests.interplay.test_copies import is_plain
from tests.kit.equality import same
from tests.kit.tiny_flux import (
    STEPS,
    counted,
    denoise,
    expected_calls,
    flux_inputs,
    generate,
    static_config,
    tiny_pipeline,
    tiny_transformer,
)

# -- refused


class Wrapper(nn.Module):
    """Somebody's own, around a transformer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"model": inner})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner["model"](*args, **kwargs)


HELD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "None": (lambda t: None, "FluxPipeline.transformer is None: load the transformer and set it before enable_cache"),
    "a function": (
        lambda t: denoise,
        "FluxPipeline.transformer is a function, no torch.nn.Module: load the transformer and set it",
    ),
    "DataParallel": (
        nn.DataParallel,
        "FluxPipeline.transformer is a DataParallel around the FluxTransformer2DModel in its module: "
        "set transformer to that before enable_cache",
    ),
    "a wrapper": (
        Wrapper,
        "FluxPipeline.transformer is a Wrapper around the FluxTransformer2DModel in its inner.model: set",
    ),
    "wrappers": (
        lambda t: Wrapper(nn.DataParallel(t)),
        "FluxPipeline.transformer is a Wrapper around the FluxTransformer2DModel in its inner.model.module: set",
    ),
    "a compiled wrapper": (
        lambda t: torch.compile(Wrapper(t), backend="eager"),
        "FluxPipeline.transformer is a Wrapper around the FluxTransformer2DModel in its inner.model: set",
    ),
    "an unknown one": (
        lambda t: nn.Linear(1, 1),
        "there is no record of Linear, which is FluxPipeline.transformer: call cache_dit.inspect",
    ),
}


@pytest.mark.parametrize("held", HELD)
def test_a_pipeline_with_something_else_as_its_transformer_is_told_what_it_holds(held: str) -> None:
    make, message = HELD[held]
    pipe = tiny_pipeline()
    pipe.transformer = make(pipe.transformer)
    with pytest.raises(UnsupportedModelError) as caught:
        cache_dit.enable_cache(pipe, static_config())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert is_plain(pipe)


def test_a_wrapper_by_itself_is_told_what_it_holds() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"^this is a Wrapper around the FluxTransformer2DModel in its inner"
    ):
        cache_dit.enable_cache(Wrapper(tiny_transformer()), static_config())


def test_a_pipeline_without_a_transformer_is_named_itself() -> None:
    class Other(diffusers.DiffusionPipeline):  # type: ignore[misc]
        pass

    with pytest.raises(UnsupportedModelError, match=r"there is no record of Other: call cache_dit\.inspect"):
        cache_dit.enable_cache(Other(), static_config())


def test_a_u_net_in_the_place_of_a_transformer_is_refused_with_its_reason() -> None:
    class UNet2DModel(nn.Module):
        pass

    pipe = tiny_pipeline()
    pipe.transformer = UNet2DModel()
    with pytest.raises(UnsupportedModelError, match="UNet2DModel cannot be cached: in a U-Net"):
        cache_dit.enable_cache(pipe, static_config())


def test_what_the_message_says_to_set_can_be_cached() -> None:
    pipe = tiny_pipeline()
    pipe.transformer = Wrapper(pipe.transformer)
    pipe.transformer = pipe.transformer.get_submodule("inner.model")
    cache_dit.enable_cache(pipe, static_config())
    assert same(generate(pipe), generate(cache_dit.enable_cache(tiny_pipeline(), static_config())))


# -- a PEFT model


def with_lora(transformer: Any) -> Any:
    """A PEFT model around a transformer, with random weights in the attention of all blocks."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    return peft.get_peft_model(transformer, config).requires_grad_(False)


def lora_pipeline() -> Any:
    pipe = tiny_pipeline()
    pipe.transformer = with_lora(pipe.transformer)
    return pipe


def test_of_a_peft_model_in_a_pipeline_the_base_is_cached() -> None:
    pipe = lora_pipeline()
    plain, base = generate(pipe), pipe.transformer.get_base_model()
    assert not same(plain, generate(tiny_pipeline()))
    assert cache_dit.enable_cache(pipe, static_config()) is pipe
    with counted(base) as calls:
        cached = generate(pipe)
    assert calls == expected_calls() and not same(cached, plain)
    assert same(generate(pipe), cached)
    assert cache_dit.summary(pipe, logging=False)[0].steps_line == {"cond": "FFCFCC"}
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(pipe.transformer) and same(generate(pipe), plain)


def test_a_peft_model_by_itself_is_cached_looked_at_refreshed_and_taken_off() -> None:
    model = with_lora(tiny_transformer())
    plain = denoise(model)
    assert cache_dit.enable_cache(model, static_config()) is model
    denoise(model)
    for holder in (model, model.get_base_model()):
        assert list(cache_dit.summary(holder, logging=False)[0].steps_line.values()) == ["FFCFCC"]
    cache_dit.refresh_context(model, steps_computation_mask=[1, 0, 0, 0, 0, 1])
    denoise(model)
    assert list(cache_dit.summary(model, logging=False)[0].steps_line.values()) == ["FCCCCF"]
    cache_dit.disable_cache(model)
    assert is_plain(model) and same(denoise(model), plain)


def test_a_peft_model_made_of_a_cached_transformer_goes_on_and_is_freed_when_it_is_taken_out() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    pipe.transformer = with_lora(pipe.transformer)
    fresh = cache_dit.enable_cache(lora_pipeline(), static_config())
    assert same(generate(pipe), generate(fresh))
    for one in (pipe, fresh):
        old, one.transformer = weakref.ref(one.transformer.get_base_model()), tiny_transformer()
        generate(one)
        gc.collect()
        assert old() is None
    assert same(generate(pipe), generate(cache_dit.enable_cache(tiny_pipeline(), static_config())))


def test_a_peft_model_of_an_unknown_model_is_told_of_by_its_base() -> None:
    model = with_lora(nn.ModuleDict({"to_q": nn.Linear(2, 2)}))
    with pytest.raises(UnsupportedModelError, match="there is no record of ModuleDict"):
        cache_dit.enable_cache(model, static_config())


# -- a modular pipeline


def modular(transformer: Any) -> Any:
    """A modular pipeline that denoises with a FLUX transformer, and nothing else."""
    from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks
    from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

    class Denoise(ModularPipelineBlocks):  # type: ignore[misc]
        model_name = "flux"

        @property
        def expected_components(self) -> list[Any]:
            return [ComponentSpec("transformer", diffusers.FluxTransformer2DModel)]

        @property
        def inputs(self) -> list[Any]:
            return [InputParam(name="num_inference_steps", default=STEPS), InputParam(name="latents")]

        @property
        def intermediate_outputs(self) -> list[Any]:
            return [OutputParam("latents")]

        def __call__(self, components: Any, state: Any) -> Any:
            block = self.get_block_state(state)
            inputs = {**flux_inputs(), "hidden_states": block.latents}
            outputs = denoise(components.transformer, steps=block.num_inference_steps, inputs=inputs)
            block.latents = outputs[-1]
            self.set_block_state(state, block)
            return components, state

    pipe = Denoise().init_pipeline()
    pipe.update_components(transformer=transformer)
    return pipe


def latents(pipe: Any, **options: Any) -> torch.Tensor:
    made: torch.Tensor = pipe(latents=flux_inputs()["hidden_states"], output="latents", **options)
    return made


modular_only = pytest.mark.skipif(not hasattr(diffusers, "ModularPipeline"), reason="diffusers has no modular ones")


@modular_only
def test_a_modular_pipeline_is_cached_and_its_calls_are_requests() -> None:
    pipe = modular(tiny_transformer())
    plain = latents(pipe)
    assert same(plain, denoise(tiny_transformer())[-1])
    assert cache_dit.enable_cache(pipe, static_config(num_inference_steps=None)) is pipe
    cached = latents(pipe)
    assert same(cached, denoise(cache_dit.enable_cache(tiny_transformer(), static_config()))[-1])
    latents(pipe, num_inference_steps=3)
    assert list(cache_dit.summary(pipe, logging=False)[0].steps_line.values()) == ["FFC"]
    assert same(latents(pipe), cached), "the short call before it ended its own request"
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(pipe.transformer) and same(latents(pipe), plain)


@modular_only
def test_a_modular_pipeline_knows_the_number_of_its_steps() -> None:
    pipe = cache_dit.enable_cache(modular(tiny_transformer()), static_config(num_inference_steps=None))
    for options, steps in (({}, STEPS), ({"num_inference_steps": 4}, 4)):
        latents(pipe, **options)
        assert state_of(pipe.transformer).latest.num_inference_steps == steps


@modular_only
def test_a_modular_pipeline_has_options_of_its_own_and_lets_its_transformer_go() -> None:
    pipe = cache_dit.enable_cache(modular(tiny_transformer()), static_config())
    other = FluxPipeline(**{**tiny_pipeline().components, "transformer": pipe.transformer})
    cache_dit.enable_cache(other, static_config(mask=[1, 0, 0, 0, 0, 1]))
    latents(pipe)
    assert list(cache_dit.summary(pipe, logging=False)[0].steps_line.values()) == ["FFCFCC"]
    del other
    old, _ = weakref.ref(pipe.transformer), pipe.update_components(transformer=tiny_transformer(4))
    expected = denoise(cache_dit.enable_cache(tiny_transformer(4), static_config()))[-1]
    assert same(latents(pipe), expected)
    gc.collect()
    assert old() is None


@modular_only
def test_a_modular_pipeline_whose_transformer_is_not_loaded_says_so() -> None:
    pipe = modular(None)
    with pytest.raises(UnsupportedModelError, match="transformer is None: load the transformer and set it"):
        cache_dit.enable_cache(pipe, static_config())
