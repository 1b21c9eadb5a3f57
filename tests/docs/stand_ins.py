"""Small random models in place of published weights: `from_pretrained` gives a real pipeline of the same class.

Text encoders are left out: the call's prompt is replaced by embeddings, and its size by a small one.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import QwenImageLoraLoaderMixin

from tests.kit.row import TEXT, normal
from tests.kit.tiny_flux import embeddings, tiny_pipeline, tiny_vae, tiny_wan
from tests.kit.tiny_models import tiny

_NO_TEXT = dict.fromkeys(("tokenizer", "text_encoder"))


def _flux(kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = tiny_pipeline().components
    return {**parts, "vae": tiny_vae()}, {**embeddings(), "height": 8, "width": 8}


def _flux2(kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    transformer = tiny("Flux2Transformer2DModel", in_channels=16)
    parts = {**_NO_TEXT, "vae": None, "transformer": transformer}
    return parts, {"prompt_embeds": normal(1, TEXT, 12), "height": 32, "width": 32}


def _qwen(kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    # 40 blocks: the preset for four steps runs 32 of them in every step.
    transformer = tiny("QwenImageTransformer2DModel", num_layers=40)
    text = {f"{sign}prompt_embeds": normal(1, TEXT, 12, seed=seed) for seed, sign in enumerate(("", "negative_"))}
    masks = {f"{name}_mask": torch.ones(1, TEXT, dtype=torch.int64) for name in text}
    return {**_NO_TEXT, "vae": None, "transformer": transformer}, {**text, **masks, "height": 32, "width": 32}


def _wan(kind: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = {**_NO_TEXT, "vae": None, "transformer": tiny_wan(0), "transformer_2": tiny_wan(1), "boundary_ratio": 0.5}
    text = {"prompt_embeds": normal(1, TEXT, 16), "negative_prompt_embeds": normal(1, TEXT, 16, seed=1)}
    return parts, {**text, "height": 32, "width": 32, "num_frames": 5}


_MAKERS = {
    "FluxPipeline": _flux,
    "FluxImg2ImgPipeline": _flux,
    "Flux2Pipeline": _flux2,
    "QwenImagePipeline": _qwen,
    "WanPipeline": _wan,
}


def stand_in(kind: type[Any], name: str = "", **options: Any) -> Any:
    """A pipeline of a class, of random weights; it is called as the published one is, and gives latents."""
    parts, given = _MAKERS[kind.__name__](kind)

    known = inspect.signature(kind.__call__).parameters

    class Small(kind):  # type: ignore[misc]
        def __call__(self, prompt: str, negative_prompt: str = "", **asked: Any) -> Any:
            small = {name: value for name, value in given.items() if name in known}
            return super().__call__(**{**asked, **small, "output_type": "latent"})

    Small.__name__ = kind.__name__
    pipe = Small(**{"scheduler": FlowMatchEulerDiscreteScheduler(), **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def install(patch: pytest.MonkeyPatch) -> None:
    """Let the classes of diffusers give stand-ins, which stay on the CPU and load no LoRA."""
    patch.setattr(DiffusionPipeline, "from_pretrained", classmethod(stand_in))
    patch.setattr(DiffusionPipeline, "to", lambda pipe, device: pipe)
    patch.setattr(QwenImageLoraLoaderMixin, "load_lora_weights", lambda pipe, name, **options: None)
