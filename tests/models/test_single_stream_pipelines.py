"""Pipelines around models of one block list, of random weights, with guidance: which branches a request has."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

import cache_dit
from tests.kit.claims import blocks_of
from tests.kit.equality import same
from tests.kit.row import TEXT, normal
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import counted, dynamic, lines, static
from tests.models.test_conditioned_video_pipelines import FLOW, LINE, SHIFTED, Made, generate, wan_vae

# a scheduler of diffusers, with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PARTS = "vae text_encoder tokenizer"


def pipeline(
    name: str, transformer: str, parts: str = PARTS, *, scheduler: str = FLOW, plan: Any = None, **others: Any
) -> Any:
    """A pipeline around a tiny transformer.

    Args:
        name, transformer, scheduler: the classes.
        parts: the names of the components that it can do without here.
        plan: the scheduler's arguments.
        others: the other components.
    """
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    steps = getattr(diffusers, scheduler)(**(plan or {}))
    empty = dict.fromkeys(parts.split())
    pipe = getattr(diffusers, name)(transformer=tiny(transformer), scheduler=steps, **{**empty, **others})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(width: int = 12, *, mask: str | None = None, size: int = 64, **more: Any) -> dict[str, Any]:
    """What pipelines are called with: embeddings of two prompts, with masks of a name, and a size in pixels."""
    given = {
        "prompt_embeds": normal(1, TEXT, width, seed=1),
        "negative_prompt_embeds": normal(1, TEXT, width, seed=2),
    }
    if mask is not None:
        both = torch.ones(1, TEXT, dtype=torch.bool)
        given |= {mask: both, f"negative_{mask}": both}
    return {**given, "height": size, "width": size, **more}


def lists(given: dict[str, Any]) -> dict[str, Any]:
    """The same with the embeddings in lists, one for each prompt."""
    return {key: list(value) if isinstance(value, Tensor) else value for key, value in given.items()}


def z_image() -> Made:
    return pipeline("ZImagePipeline", "ZImageTransformer2DModel"), lists(prompts())


def ernie_image() -> Made:
    return pipeline("ErnieImagePipeline", "ErnieImageTransformer2DModel"), lists(prompts())


def encoded(*, prompt: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Stands for a pipeline's way to encode prompts: embeddings, their mask, and where pictures stand in them."""
    embeddings = normal(1, TEXT, 12, seed=len("".join(prompt)))
    return embeddings, torch.ones(1, TEXT, dtype=torch.bool), torch.zeros(1, TEXT, dtype=torch.bool)


def qwen_image21() -> Made:
    parts = {"plan": SHIFTED, "processor": mock.MagicMock()}
    pipe = pipeline("QwenImage21Pipeline", "QwenImage21Transformer2DModel", "vae text_encoder", **parts)
    pipe.encode_prompt = encoded
    given = {"prompt": "a cat", "negative_prompt": "", "true_cfg_scale": 4.0}
    return pipe, {**given, "height": 64, "width": 64}


def joyimage_edit() -> Made:
    pipe = pipeline("JoyImageEditPipeline", "JoyImageEditTransformer3DModel", f"{PARTS} processor")
    # its own sizes are larger
    pipe.vae_image_processor.get_default_height_width = lambda image, height, width: (height, width)
    return pipe, prompts(mask="prompt_embeds_mask")


def joyimage_edit_plus() -> Made:
    pipe = pipeline("JoyImageEditPlusPipeline", "JoyImageEditPlusTransformer3DModel", f"{PARTS} processor")
    pipe.encode_prompt_multiple_images = lambda **given: encoded(**given)[:2]
    return pipe, {"prompt": "a cat", "height": 64, "width": 64}


def kandinsky5() -> Made:
    pipe = pipeline("Kandinsky5T2IPipeline", "Kandinsky5Transformer3DModel", f"{PARTS} text_encoder_2 tokenizer_2")
    pipe.resolutions = [(64, 64)]
    ends = torch.tensor([0, TEXT])
    return pipe, {
        "prompt_embeds_qwen": normal(1, TEXT, 12, seed=1),
        "negative_prompt_embeds_qwen": normal(1, TEXT, 12, seed=2),
        "prompt_embeds_clip": normal(1, 6, seed=3),
        "negative_prompt_embeds_clip": normal(1, 6, seed=4),
        "prompt_cu_seqlens": ends,
        "negative_prompt_cu_seqlens": ends,
    }


class Audio:
    """Stands for Kandinsky 6's audio codec, which is asked for lengths alone."""

    config = SimpleNamespace(sample_rate=100)
    latent_hop_length = 4


def kandinsky6(audio: bool = True) -> Made:
    parts: dict[str, Any] = {"audio_vae": Audio(), "vocoder": Audio()}
    names = f"{PARTS} text_encoder_2 tokenizer_2"
    pipe = pipeline("Kandinsky6TI2VAPipeline", "Kandinsky6Transformer3DModel", names, **parts)
    return pipe, {
        **prompts(num_frames=5, sample_audio=audio),
        "pooled_prompt_embeds": normal(1, 6, seed=3),
        "negative_pooled_prompt_embeds": normal(1, 6, seed=4),
    }


def kandinsky6_without_audio() -> Made:
    return kandinsky6(audio=False)


GLM = "GlmImagePipeline", "GlmImageTransformer2DModel", f"{PARTS} processor vision_language_encoder"


def glm_image() -> Made:
    return pipeline(*GLM, plan=SHIFTED), prompts(prior_token_ids=torch.arange(16)[None])


def lumina() -> Made:
    return pipeline("LuminaPipeline", "LuminaNextDiT2DModel"), prompts(mask="prompt_attention_mask")


def lumina2() -> Made:
    pipe = pipeline("Lumina2Pipeline", "Lumina2Transformer2DModel", plan=SHIFTED)
    return pipe, prompts(mask="prompt_attention_mask")


class Processor:
    """Stands for OmniGen's, and gives two prompts with a picture each and one without."""

    def __init__(self, tokenizer: Any, max_image_size: int) -> None:
        self.max_image_size = max_image_size

    def __call__(self, *given: Any, **options: Any) -> dict[str, Any]:
        made = inputs("OmniGenTransformer2DModel", batch=3)
        made["input_image_sizes"].pop(2)
        return {**made, "input_pixel_values": [torch.zeros(1, 3, 32, 32)] * 2}


def omnigen() -> Made:
    module = "diffusers.pipelines.omnigen.pipeline_omnigen"
    with mock.patch(f"{module}.OmniGenMultiModalProcessor", Processor, create=True):  # it needs torchvision
        pipe = pipeline("OmniGenPipeline", "OmniGenTransformer2DModel", "vae tokenizer")
    pipe.encode_input_images = lambda images, device: list(normal(2, 1, 4, 4, 4, seed=1))
    return pipe, {"prompt": "a cat", "input_images": [], "height": 64, "width": 64}


class Tokenizer:
    """Stands for Cosmos 3's, which is asked for two tokens of its own alone."""

    eos_token_id = 1

    def convert_tokens_to_ids(self, token: str) -> int:
        return 2


def cosmos3() -> Made:
    plan = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    parts = {"text_tokenizer": Tokenizer(), "vae": wan_vae(4), "enable_safety_checker": False}
    pipe = pipeline(
        "Cosmos3OmniPipeline", "Cosmos3OmniTransformer", "", scheduler="UniPCMultistepScheduler", plan=plan, **parts
    )
    pipe.tokenize_prompt = lambda *given, **options: ([3, 4, 5], [6, 7])
    return pipe, {"prompt": "a cat", "num_frames": 5, "height": 64, "width": 64}


#: Each pipeline, and the branches that its calls belong to: the two of guidance are one batch, or two calls.
PIPELINES: dict[Callable[[], Made], tuple[str, ...]] = {
    z_image: ("default",),
    ernie_image: ("default",),
    qwen_image21: ("cond", "uncond"),
    joyimage_edit: ("cond", "uncond"),
    joyimage_edit_plus: ("default",),
    kandinsky5: ("cond", "uncond"),
    kandinsky6: ("cond", "uncond"),
    kandinsky6_without_audio: ("cond", "uncond"),
    cosmos3: ("cond", "uncond"),
    glm_image: ("cond", "uncond"),
    lumina: ("default",),
    lumina2: ("cond", "uncond"),
    omnigen: ("default",),
}


@pytest.mark.parametrize("make", PIPELINES, ids=lambda make: make.__name__)
def test_each_branch_of_guidance_follows_the_plan(make: Callable[[], Made]) -> None:
    pipe, given = make()
    plain = generate(pipe, given)
    cache_dit.enable_cache(pipe, dynamic(residual_diff_threshold=0.0))
    assert same([generate(pipe, given)], [plain])
    cache_dit.enable_cache(pipe, static(LINE))
    with counted(blocks_of(pipe.transformer)) as fired:
        cached = generate(pipe, given)
    branches = PIPELINES[make]
    assert lines(pipe.transformer) == dict.fromkeys(branches, LINE)
    assert (fired[0], fired[1]) == (len(LINE) * len(branches), LINE.count("F") * len(branches))
    assert cached.isfinite().all()
    assert not same([cached], [plain])
    cache_dit.disable_cache(pipe)
    assert same([generate(pipe, given)], [plain])


def test_glm_image_keeps_a_pictures_keys_before_its_first_step() -> None:
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=4, latent_channels=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).eval()
    pipe = pipeline(*GLM, plan=SHIFTED, vae=vae)
    given = prompts(
        size=8,
        image=[Image.new("RGB", (4, 4))],
        prior_token_ids=torch.arange(16)[None],
        prior_token_image_ids=[torch.arange(4)],
        source_image_grid_thw=[torch.tensor([[1, 2, 2]])],
    )
    plain = generate(pipe, given)
    cache_dit.enable_cache(pipe, dynamic(residual_diff_threshold=0.0))
    assert same([generate(pipe, given)], [plain])
    cache_dit.enable_cache(pipe, static(LINE))
    with counted(pipe.transformer.transformer_blocks) as fired:
        generate(pipe, given)
    assert (fired[0], fired[1]) == (1 + 2 * len(LINE), 1 + 2 * LINE.count("F"))
    assert lines(pipe.transformer) == {"cond": LINE, "uncond": LINE}


def test_lumina2_may_leave_guidance_out_at_the_end() -> None:
    pipe, given = lumina2()
    cache_dit.enable_cache(pipe, static("FFCFCF"))
    generate(pipe, {**given, "cfg_trunc_ratio": 0.5})
    assert lines(pipe.transformer) == {"cond": "FFCFCF", "uncond": "FFC"}


def test_z_image_may_leave_guidance_out_at_the_end() -> None:
    pipe, given = z_image()
    cache_dit.enable_cache(pipe, static("FCCCCC"))
    generate(pipe, {**given, "cfg_truncation": 0.5})
    line = lines(pipe.transformer)["default"]
    assert line.startswith("FCC") and line.count("F") == 2  # the step at which half the batch is gone


def test_flux3_denoises_in_a_modular_pipeline() -> None:
    module = pytest.importorskip("diffusers.modular_pipelines.flux3.denoise")
    given = inputs("Flux3Transformer2DModel")
    transformer, scheduler = tiny("Flux3Transformer2DModel"), diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = module.Flux3DenoiseStep().init_pipeline()
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=3.0)
    pipe.update_components(transformer=transformer, scheduler=scheduler, guider=guider)
    fields = {name: given[name] for name in ("img_ids", "txt_ids")} | {"negative_txt_ids": given["txt_ids"]}
    fields |= {"prompt_embeds": normal(1, TEXT, 12, seed=1), "negative_prompt_embeds": normal(1, TEXT, 12, seed=2)}

    def denoised() -> Tensor:
        scheduler.set_timesteps(len(LINE))
        plan = {"timesteps": scheduler.timesteps, "num_inference_steps": len(LINE)}
        latents: Tensor = pipe(
            latents=given["hidden_states"], denoiser_input_fields=dict(fields), output="latents", **plan
        )
        return latents

    plain = denoised()
    cache_dit.enable_cache(transformer, static(LINE))
    cached = denoised()
    assert lines(transformer) == {"cond": LINE, "uncond": LINE}
    assert same([denoised()], [cached])
    assert not same([cached], [plain])
    cache_dit.disable_cache(transformer)
    assert same([denoised()], [plain])
