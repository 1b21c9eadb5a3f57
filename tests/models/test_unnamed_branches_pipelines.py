"""Pipelines that name no branch, on tiny models without text encoders or a hub: which branches a request has.

Mostly guidance is one batch; where a pipeline calls its transformer twice at a step, the calls take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import cache_dit
from tests.kit.equality import same
from tests.kit.row import TEXT, normal
from tests.kit.tiny_flux import tiny_vae
from tests.kit.tiny_models import tiny
from tests.kit.toys import dynamic, lines, static
from tests.models.test_unnamed_branches import VARIANTS

# of diffusers of its own parts, and of one of its schedulers with numpy 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

LINE = "FFCCFC"
MASK = torch.ones(1, TEXT, dtype=torch.long)
GUIDED = {"prompt_embeds": normal(1, TEXT, 12, seed=1), "negative_prompt_embeds": normal(1, TEXT, 12, seed=2)}
MASKED = {**GUIDED, "prompt_attention_mask": MASK, "negative_prompt_attention_mask": MASK}


class Stub(nn.Module):
    """Stands for a part that is asked for numbers alone: its attributes."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class Conditions(Stub):
    """Stands for ACE-Step's encoder: its states depend on the text alone."""

    def forward(self, text_hidden_states: Tensor, **others: Any) -> tuple[Tensor, None]:
        return text_hidden_states, None


@dataclass(frozen=True)
class Case:
    """A pipeline: what it is made of, what it is called with, and what its transformer's steps are then.

    Args:
        model: makes its transformer.
        parts: makes what else it is made of; its other parts are None.
        arguments: what it is called with, beside what all are.
        lines: the steps of each branch.
        methods: what takes the place of methods that ask a text encoder.
        attribute: what holds the transformer.
    """

    model: Callable[[], nn.Module]
    parts: Callable[[], dict[str, Any]]
    arguments: dict[str, Any]
    lines: dict[str, str] = field(default_factory=lambda: {"default": LINE})
    methods: dict[str, Callable[..., Any]] = field(default_factory=dict)
    attribute: str = "transformer"


def ace_step_text(instruction: str, **options: Any) -> tuple[Tensor, ...]:
    """Text states that depend on what is asked for."""
    return normal(1, TEXT, 12, seed=len(instruction)), None, None, None


ACE_STEP = Case(
    lambda: tiny("AceStepTransformer1DModel", in_channels=12),
    lambda: {
        "condition_encoder": Conditions(
            silence_latent=torch.zeros(1, 750, 4), null_condition_emb=normal(1, 1, 12, seed=3)
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    },
    {"prompt": "rain", "audio_duration": 1.0},
    methods={
        "encode_prompt": ace_step_text,
        "prepare_src_latents": lambda **options: (normal(1, 25, 4, seed=4), 25),
        "_build_chunk_mask": lambda **options: torch.ones(1, 25, 4),
    },
)
CASES: dict[str, tuple[str, Case]] = {
    "ACE-Step": ("AceStepPipeline", ACE_STEP),
    "ACE-Step, cover": (
        "AceStepPipeline",
        replace(
            ACE_STEP,
            arguments={**ACE_STEP.arguments, "task_type": "cover", "audio_cover_strength": 0.5},
            lines={"cond": LINE, "uncond": LINE},
        ),
    ),
    "aMUSEd": (
        "AmusedPipeline",
        Case(
            lambda: tiny("UVit2DModel", sample_size=4),
            lambda: {"scheduler": diffusers.AmusedScheduler(mask_token_id=20)},
            {
                "prompt_embeds": normal(1, 12, seed=1),
                "encoder_hidden_states": normal(1, TEXT, 12, seed=2),
                "negative_prompt_embeds": normal(1, 12, seed=3),
                "negative_encoder_hidden_states": normal(1, TEXT, 12, seed=4),
            },
        ),
    ),
    "DiT": (
        "DiTPipeline",
        Case(
            lambda: tiny("DiTTransformer2DModel"),
            lambda: {"vae": tiny_vae(), "scheduler": diffusers.DDIMScheduler()},
            {"class_labels": [3], "output_type": "np"},
        ),
    ),
    "Kandinsky 2.2": (
        "KandinskyV22PriorPipeline",
        Case(
            lambda: tiny("PriorTransformer"),
            lambda: {"scheduler": diffusers.UnCLIPScheduler(prediction_type="sample", variance_type="fixed_small_log")},
            {"prompt": "a cat", "output_type": "pt"},
            methods={
                "_encode_prompt": lambda *args: (normal(2, 8), normal(2, TEXT, 8), torch.ones(2, TEXT)),
                "get_zero_embed": lambda *args, **options: torch.zeros(1, 8),
            },
            attribute="prior",
        ),
    ),
    "LongCat-Audio": (
        "LongCatAudioDiTPipeline",
        Case(
            lambda: tiny("LongCatAudioDiTTransformer"),
            lambda: {"vae": Stub(config=SimpleNamespace()), "scheduler": None},
            {"prompt": "rain", "audio_duration_s": 1.0},
            {"cond": LINE, "uncond": LINE},
            {"encode_prompt": lambda *args: (normal(1, TEXT, 12), torch.tensor([TEXT]))},
        ),
    ),
    "PRX": (
        "PRXPipeline",
        Case(
            lambda: tiny("PRXTransformer2DModel"),
            lambda: {"scheduler": FlowMatchEulerDiscreteScheduler()},
            {**MASKED, "height": 64, "width": 64, "use_resolution_binning": False},
        ),
    ),
    "Sana": (
        "SanaPipeline",
        Case(
            lambda: tiny("SanaTransformer2DModel"),
            lambda: {"scheduler": FlowMatchEulerDiscreteScheduler()},
            {**MASKED, "height": 128, "width": 128, "use_resolution_binning": False, "negative_prompt": None},
        ),
    ),
    "Sana-Video": (
        "SanaVideoPipeline",
        Case(
            lambda: tiny("SanaVideoTransformer3DModel"),
            lambda: {"scheduler": FlowMatchEulerDiscreteScheduler()},
            {
                **MASKED,
                "height": 64,
                "width": 64,
                "frames": 5,
                "use_resolution_binning": False,
                "negative_prompt": None,
            },
        ),
    ),
    # Its scheduler asks twice at each timestep but the first: eleven times in all.
    "Shap-E": (
        "ShapEPipeline",
        Case(
            VARIANTS["Shap-E"].model,
            lambda: {"scheduler": diffusers.HeunDiscreteScheduler(prediction_type="sample")},
            {"prompt": "a chair"},
            {"default": LINE + "F" * (len(LINE) - 1)},
            {"_encode_prompt": lambda *args: normal(2, 10)},
            "prior",
        ),
    ),
    "Stable Audio": (
        "StableAudioPipeline",
        Case(
            lambda: tiny("StableAudioDiTModel"),
            lambda: {
                "vae": Stub(config=SimpleNamespace(sampling_rate=8, audio_channels=2), hop_length=1),
                "projection_model": Stub(config=SimpleNamespace(min_value=0, max_value=8)),
                "scheduler": diffusers.EDMDPMSolverMultistepScheduler(),
            },
            {"prompt": "rain"},
            methods={
                "encode_prompt": lambda *args: normal(1, TEXT, 12),
                "encode_duration": lambda *args: (normal(1, 1, 12, seed=1), normal(1, 1, 12, seed=2)),
            },
        ),
    ),
}


def pipeline(name: str) -> Any:
    """A tiny pipeline."""
    cls, case = CASES[name]
    found = getattr(diffusers, cls, None)
    if found is None:
        pytest.skip(f"this diffusers has no {cls}")
    parts = dict.fromkeys(found._get_signature_keys(found)[0])
    pipe = found(**{**parts, **case.parts(), case.attribute: case.model()})
    pipe.set_progress_bar_config(disable=True)
    for method, replacement in case.methods.items():
        setattr(pipe, method, replacement)
    return pipe


def generate(pipe: Any, name: str, **options: Any) -> Tensor:
    """What one call with guidance gives."""
    generator = torch.Generator().manual_seed(0)
    given = {"output_type": "latent", **CASES[name][1].arguments, **options}
    output = pipe(**given, num_inference_steps=len(LINE), generator=generator, return_dict=False)[0]
    return torch.as_tensor(output)


@pytest.mark.parametrize("name", CASES)
def test_each_branch_of_guidance_has_steps_of_its_own(name: str) -> None:
    pipe, case = pipeline(name), CASES[name][1]
    plain = generate(pipe, name)
    cache_dit.enable_cache(pipe, static(LINE))
    cached = generate(pipe, name)
    assert lines(getattr(pipe, case.attribute)) == case.lines
    assert same([generate(pipe, name)], [cached])
    assert not same([cached], [plain])
    cache_dit.disable_cache(pipe)
    assert same([generate(pipe, name)], [plain])


@pytest.mark.parametrize("name", CASES)
def test_with_every_step_computed_the_result_is_the_plain_one_bit_for_bit(name: str) -> None:
    pipe = pipeline(name)
    plain = generate(pipe, name)
    cache_dit.enable_cache(pipe, dynamic(residual_diff_threshold=0.0))
    assert same([generate(pipe, name)], [plain])


def test_without_guidance_an_unnamed_call_of_longcat_audio_is_a_step() -> None:
    name = "LongCat-Audio"
    pipe = pipeline(name)
    cache_dit.enable_cache(pipe, static(LINE))
    generate(pipe, name, guidance_scale=1.0)
    assert lines(pipe.transformer) == {"cond": LINE}


def test_where_the_guidance_of_ace_step_begins_the_batch_doubles_and_the_step_is_computed() -> None:
    name = "ACE-Step"
    pipe = pipeline(name)
    plain = generate(pipe, name, cfg_interval_start=0.5, shift=1.0)
    cache_dit.enable_cache(pipe, static("FCCCCC"))
    assert not same([generate(pipe, name, cfg_interval_start=0.5, shift=1.0)], [plain])
    assert lines(pipe.transformer) == {"default": "FCCFCC"}


def test_the_prior_of_a_combined_pipeline_has_as_many_steps_as_it_is_given() -> None:
    name = "Kandinsky 2.2"
    alone, case = pipeline(name), CASES[name][1]
    config = dynamic(residual_diff_threshold=100.0)  # of two steps, none would be cached
    cache_dit.enable_cache(alone, config)
    expected = generate(alone, name)
    cls = diffusers.KandinskyV22CombinedPipeline
    parts = {"prior_prior": case.model(), "prior_scheduler": alone.scheduler, "movq": tiny_vae()}
    pipe = cls(**{**dict.fromkeys(cls._get_signature_keys(cls)[0]), **parts})
    for method, replacement in case.methods.items():
        setattr(pipe.prior_pipe, method, replacement)
    pipe.decoder_pipe = lambda image_embeds, **options: (image_embeds,)  # what it would paint is not looked at
    cache_dit.enable_cache(pipe, config)
    generator = torch.Generator().manual_seed(0)
    steps = {"prior_num_inference_steps": len(LINE), "num_inference_steps": 2}
    assert same([pipe("a cat", **steps, generator=generator, return_dict=False)[0]], [expected])
    assert lines(pipe.prior_prior) == {"default": "FCCCCC"}
