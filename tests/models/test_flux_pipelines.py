"""FLUX.1's pipelines that are steered by a picture: what they are given reaches a cached run as it does a plain one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxControlPipeline, FluxFillPipeline, FluxKontextPipeline

import cache_dit
from tests.kit.tiny_flux import embeddings, tiny_pipeline
from tests.kit.tiny_models import tiny
from tests.kit.toys import lines, static

SIZE = 16
STEPS = 6


def picture(seed: int) -> torch.Tensor:
    """A picture of random colors."""
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def steered_by(channels: int) -> torch.nn.Module:
    """A transformer that reads so many channels beside those of the latents."""
    text = {"joint_attention_dim": 32, "pooled_projection_dim": 16}
    return tiny("FluxTransformer2DModel", in_channels=16 + channels, out_channels=16, **text)


def made(kind: Any, transformer: torch.nn.Module) -> Any:
    """A pipeline of a kind that has no encoder of pictures for adapters."""
    parts = tiny_pipeline(transformer=transformer).components
    return kind(**{name: part for name, part in parts.items() if name in inspect.signature(kind).parameters})


def control() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    pipe = made(FluxControlPipeline, steered_by(16))
    return pipe, lambda seed: {"control_image": picture(seed)}


def fill() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    pipe = made(FluxFillPipeline, steered_by(16 + 4))
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., SIZE // 2 :] = 1
    return pipe, lambda seed: {"image": picture(seed), "mask_image": mask}


def kontext() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    pipe = FluxKontextPipeline(**tiny_pipeline().components)
    return pipe, lambda seed: {"image": picture(seed), "_auto_resize": False, "max_area": SIZE**2}


@pytest.mark.parametrize("make", [control, fill, kontext])
def test_another_picture_changes_the_output_as_it_does_without_the_cache(make: Callable[[], Any]) -> None:
    pipe, steered = make()
    pipe.set_progress_bar_config(disable=True)

    def generate(seed: int) -> torch.Tensor:
        given = {**embeddings(), **steered(seed), "height": SIZE, "width": SIZE, "num_inference_steps": STEPS}
        generator = torch.Generator().manual_seed(2)
        return pipe(**given, generator=generator, output_type="latent").images  # type: ignore[no-any-return]

    plain = generate(0), generate(1)
    assert not torch.equal(*plain)
    cache_dit.enable_cache(pipe, static("F" * STEPS))
    assert all(map(torch.equal, (generate(0), generate(1)), plain))
    cache_dit.enable_cache(pipe, static("FFCCFF"))
    cached = generate(0), generate(1)
    assert set(lines(pipe.transformer).values()) == {"FFCCFF"}
    for own, other in ((0, 1), (1, 0)):
        assert (cached[own] - plain[own]).norm() < (cached[own] - plain[other]).norm()
