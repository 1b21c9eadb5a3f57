"""Pipelines for pictures on tiny transformers, without text encoders or a hub: which branches a request has.

Classifier-free guidance is one batch, or two calls with names or without, or two transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

import cache_dit
from tests.kit.equality import same
from tests.kit.row import TEXT, normal
from tests.kit.tiny_flux import tiny_vae
from tests.kit.tiny_models import tiny
from tests.kit.toys import dynamic, lines, static

LINE = "FFCCFC"


def text(*shape: int, **named: int) -> dict[str, Tensor]:
    """Text embeddings of a shape for the prompt and for the negative one; ``named``: seeds of others by their names."""
    names = named or {"prompt_embeds": 1, "negative_prompt_embeds": 2}
    return {name: normal(*shape, seed=seed) for name, seed in names.items()}


def masks(*names: str) -> dict[str, Tensor]:
    """A mask of the text tokens by each of these names."""
    return {name: torch.ones(1, TEXT, dtype=torch.bool) for name in names}


@dataclass(frozen=True)
class Case:
    """A pipeline: what it is made of, what it is called with, and which branches its transformer has then.

    Args:
        transformer: the class name of its transformers.
        parts: the names of its parts that it can do without here.
        arguments: what it is called with, beside what all are.
        branches: the names of the branches.
        changes: what is special in the transformer.
        others: parts that it cannot do without.
        methods: what takes the place of methods that ask a text encoder.
    """

    transformer: str
    parts: str
    arguments: Callable[[], dict[str, Any]]
    branches: tuple[str, ...] = ("default",)
    changes: dict[str, Any] = field(default_factory=dict)
    others: Callable[[], dict[str, Any]] = dict
    methods: dict[str, Callable[..., Any]] = field(default_factory=dict)


def fibo_text(prompt: Any, **options: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    """FIBO's text states: for the blocks, more than there are blocks."""
    seed = 1 + len("".join(prompt))
    layers = [normal(1, TEXT, 6, seed=seed + layer) for layer in range(8)]
    return normal(1, TEXT, 12, seed=seed), layers, torch.ones(1, TEXT)


def longcat_text(prompt_embeds: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """LongCat's embeddings as they are given, with their places."""
    return prompt_embeds, torch.zeros(TEXT, 3)


def ideogram_text(grid_h: int, grid_w: int, max_sequence_length: int, **options: Any) -> tuple[Tensor, ...]:
    """Ideogram's packed sequence: text tokens, then image tokens."""
    tokens = torch.tensor([[3] * max_sequence_length + [2] * grid_h * grid_w])
    places = torch.arange(tokens.shape[1])[None, :, None].expand(-1, -1, 3)
    return normal(1, tokens.shape[1], 12, seed=1), places, torch.ones_like(tokens), tokens


CFG = ("cond", "uncond")
PIPELINES = {
    "AuraFlowPipeline": Case(
        "AuraFlowTransformer2DModel",
        "tokenizer text_encoder vae",
        lambda: text(1, TEXT, 12) | masks("prompt_attention_mask", "negative_prompt_attention_mask"),
    ),
    "BriaPipeline": Case(
        "BriaTransformer2DModel",
        "text_encoder tokenizer",
        lambda: text(1, TEXT, 12) | {"height": 16, "width": 16},
        others=lambda: {"vae": tiny_vae()},
    ),
    "BriaFiboPipeline": Case(
        "BriaFiboTransformer2DModel",
        "vae tokenizer",
        lambda: {"prompt": "a cat", "negative_prompt": "", "guidance_scale": 3.0},
        others=lambda: {"text_encoder": tiny_vae()},  # asked for its dtype alone
        methods={"get_prompt_embeds": fibo_text},
    ),
    "BriaFibo2Pipeline": Case(
        "BriaFibo2Transformer2DModel",
        "vae text_encoder processor",
        lambda: text(1, 3, TEXT, 12) | {"guidance_scale": 3.0},
        CFG,
    ),
    "ChromaPipeline": Case(
        "ChromaTransformer2DModel",
        "vae text_encoder tokenizer",
        lambda: text(1, TEXT, 12) | masks("prompt_attention_mask", "negative_prompt_attention_mask"),
        CFG,
    ),
    "HiDreamImagePipeline": Case(
        "HiDreamImageTransformer2DModel",
        "vae text_encoder tokenizer text_encoder_2 tokenizer_2 text_encoder_3 tokenizer_3 text_encoder_4 tokenizer_4",
        lambda: {
            **text(1, TEXT, 12, prompt_embeds_t5=1, negative_prompt_embeds_t5=2),
            **text(6, 1, TEXT, 10, prompt_embeds_llama3=3, negative_prompt_embeds_llama3=4),
            **text(1, 6, pooled_prompt_embeds=5, negative_pooled_prompt_embeds=6),
        },
    ),
    "HunyuanImagePipeline": Case(
        "HunyuanImageTransformer2DModel",
        "vae text_encoder tokenizer text_encoder_2 tokenizer_2",
        lambda: {
            **text(1, TEXT, 12),
            **masks("prompt_embeds_mask", "negative_prompt_embeds_mask"),
            **text(1, TEXT, 6, prompt_embeds_2=3, negative_prompt_embeds_2=4),
            **masks("prompt_embeds_mask_2", "negative_prompt_embeds_mask_2"),
        },
        ("pred_cond", "pred_uncond"),
        others=lambda: {"guider": diffusers.ClassifierFreeGuidance(), "ocr_guider": None},
    ),
    "LongCatImagePipeline": Case(
        "LongCatImageTransformer2DModel",
        "vae text_encoder tokenizer text_processor",
        lambda: text(1, TEXT, 12) | {"enable_prompt_rewrite": False},
        CFG,
        {"in_channels": 64},
        methods={"encode_prompt": longcat_text},
    ),
    "OvisImagePipeline": Case(
        "OvisImageTransformer2DModel",
        "vae text_encoder tokenizer",
        lambda: text(1, TEXT, 12) | {"negative_prompt": None},
        CFG,
    ),
    "Krea2Pipeline": Case(
        "Krea2Transformer2DModel",
        "vae text_encoder tokenizer",
        lambda: text(1, TEXT, 3, 12) | masks("prompt_embeds_mask", "negative_prompt_embeds_mask"),
        CFG,
    ),
    "NucleusMoEImagePipeline": Case(
        "NucleusMoEImageTransformer2DModel",
        "vae text_encoder processor",
        lambda: text(1, TEXT, 12) | masks("prompt_embeds_mask", "negative_prompt_embeds_mask"),
        CFG,
        {"out_channels": 2},
    ),
    "Ideogram4Pipeline": Case(
        "Ideogram4Transformer2DModel",
        "vae text_encoder tokenizer",
        lambda: {"prompt": "a cat", "max_sequence_length": TEXT, "guidance_scale": 3.0, "guidance_schedule": None},
        others=lambda: {"unconditional_transformer": tiny("Ideogram4Transformer2DModel")},
        methods={"encode_prompt": ideogram_text},
    ),
}


def pipeline(name: str) -> Any:
    """A tiny pipeline for embeddings and latents."""
    case = PIPELINES[name]
    transformer = tiny(case.transformer, **case.changes)
    pipe = getattr(diffusers, name)(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **dict.fromkeys(case.parts.split()),
        **case.others(),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 8  # HiDream makes all pictures as large as that
    for method, replacement in case.methods.items():
        setattr(pipe, method, replacement)
    return pipe


def generate(pipe: Any, name: str, **options: Any) -> Tensor:
    """Latents from one call with guidance."""
    given = {"height": 64, "width": 64, **PIPELINES[name].arguments(), **options}
    generator = torch.Generator().manual_seed(0)
    latents: Tensor = pipe(
        **given, num_inference_steps=len(LINE), output_type="latent", generator=generator, return_dict=False
    )[0]
    return latents


@pytest.mark.parametrize("name", PIPELINES)
def test_each_branch_of_guidance_has_steps_of_its_own(name: str) -> None:
    pipe = pipeline(name)
    plain = generate(pipe, name)
    cache_dit.enable_cache(pipe, static(LINE))
    cached = generate(pipe, name)
    held = [pipe.transformer, getattr(pipe, "unconditional_transformer", None)]
    for transformer in filter(None, held):
        assert lines(transformer) == dict.fromkeys(PIPELINES[name].branches, LINE)
    assert same([generate(pipe, name)], [cached])
    assert not same([cached], [plain])
    cache_dit.disable_cache(pipe)
    assert same([generate(pipe, name)], [plain])


@pytest.mark.parametrize("name", PIPELINES)
def test_with_every_step_computed_a_picture_is_the_plain_one_bit_for_bit(name: str) -> None:
    pipe = pipeline(name)
    plain = generate(pipe, name)
    cache_dit.enable_cache(pipe, dynamic(residual_diff_threshold=0.0))
    assert same([generate(pipe, name)], [plain])


@pytest.mark.parametrize("name", ["BriaFibo2Pipeline", "ChromaPipeline", "Krea2Pipeline", "NucleusMoEImagePipeline"])
@pytest.mark.parametrize("steps", [None, len(LINE)])
def test_without_guidance_an_unnamed_call_is_a_step(name: str, steps: int | None) -> None:
    pipe = pipeline(name)
    cache_dit.enable_cache(pipe, static(LINE, num_inference_steps=steps))
    generate(pipe, name, guidance_scale=0.0)
    assert lines(pipe.transformer) == {"cond": LINE}
