"""Pipelines of video models of two streams, of HunyuanDiT and Latte, of random weights: what the cache sees of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

import cache_dit
from tests.kit.claims import blocks_of
from tests.kit.equality import same
from tests.kit.row import TEXT, normal
from tests.kit.toys import counted, dynamic, lines, static
from tests.models.test_conditioned_video_pipelines import (
    FLOW,
    LINE,
    SHIFTED,
    Made,
    generate,
    pipeline,
    prompts,
    wan_vae,
)

UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


class Part:
    """Stands for an autoencoder that is asked for a few facts alone.

    Args:
        config: its configuration.
        facts: its attributes.
    """

    def __init__(self, config: dict[str, Any], **facts: Any) -> None:
        self.config = SimpleNamespace(**config)
        self.__dict__.update(facts)


#: An autoencoder for video latents of 4 channels.
VIDEO = Part(
    {"latent_channels": 4, "scaling_factor": 1.0},
    temporal_compression_ratio=4,
    spatial_compression_ratio=8,
    dtype=torch.float32,
)


def masks(*names: str, tokens: int = TEXT) -> dict[str, Tensor]:
    """A mask of text tokens by each of these names."""
    return {name: torch.ones(1, tokens, dtype=torch.int64) for name in names}


def pooled(width: int = 6) -> dict[str, Tensor]:
    """The pooled embeddings of two prompts."""
    return {"pooled_prompt_embeds": normal(1, width, seed=3), "negative_pooled_prompt_embeds": normal(1, width, seed=4)}


def second(tokens: int, width: int) -> dict[str, Tensor]:
    """The embeddings of two prompts by a second encoder."""
    return {
        "prompt_embeds_2": normal(1, tokens, width, seed=3),
        "negative_prompt_embeds_2": normal(1, tokens, width, seed=4),
    }


def hunyuan_video() -> Made:
    parts = dict.fromkeys(("text_encoder_2", "tokenizer_2"))
    pipe = pipeline("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", FLOW, **parts)
    return pipe, prompts(mask=torch.int64, num_frames=5, true_cfg_scale=3.0, **pooled())


def skyreels_v1() -> Made:
    parts = dict.fromkeys(("text_encoder_2", "tokenizer_2"))
    changes = {"in_channels": 8}
    pipe = pipeline(
        "HunyuanSkyreelsImageToVideoPipeline",
        "HunyuanVideoTransformer3DModel",
        FLOW,
        changes=changes,
        **{**parts, "vae": VIDEO},
    )
    pipe.prepare_latents = lambda *given, **options: (normal(1, 4, 2, 4, 4), normal(1, 4, 2, 4, 4, seed=5))
    image = torch.zeros(1, 3, 32, 32)
    return pipe, prompts(mask=torch.int64, num_frames=5, true_cfg_scale=3.0, image=image, **pooled())


def hunyuan_video_15() -> Made:
    parts = {"vae": VIDEO, "text_encoder_2": None, "tokenizer_2": None, "guider": diffusers.ClassifierFreeGuidance()}
    pipe = pipeline("HunyuanVideo15Pipeline", "HunyuanVideo15Transformer3DModel", FLOW, **parts)
    names = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
    given = {**masks(*names), **masks(*(f"{name}_2" for name in names), tokens=4), **second(4, 6)}
    return pipe, prompts(num_frames=5, size=16, **given)


def hunyuan_dit() -> Made:
    parts = dict.fromkeys(("text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor"))
    pipe = pipeline("HunyuanDiTPipeline", "HunyuanDiT2DModel", "DDPMScheduler", requires_safety_checker=False, **parts)
    names = ("prompt_attention_mask_2", "negative_prompt_attention_mask_2")
    given = {**second(TEXT, 16), **masks(*names), "use_resolution_binning": False}
    return pipe, prompts(tokens=3, mask=torch.int64, size=64, **given)


def motif_video() -> Made:
    parts = {"vae": wan_vae(4), "guider": diffusers.ClassifierFreeGuidance()}
    pipe = pipeline("MotifVideoPipeline", "MotifVideoTransformer3DModel", FLOW, plan=SHIFTED, **parts)
    return pipe, prompts(mask=torch.int64, num_frames=5)


def ltx() -> Made:
    pipe = pipeline("LTXPipeline", "LTXVideoTransformer3DModel", FLOW, plan=SHIFTED)
    return pipe, prompts(mask=torch.int64, num_frames=9, size=64)


def ltx2() -> Made:
    sound = {"sample_rate": 16000, "mel_hop_length": 160, "mel_bins": 64, "latent_channels": 8}
    ratios = {"temporal_compression_ratio": 4, "mel_compression_ratio": 4}
    audio = Part(sound, latents_mean=torch.zeros(128), latents_std=torch.ones(128), **ratios)
    ratios = {"temporal_compression_ratio": 8, "spatial_compression_ratio": 32}
    video = Part({"scaling_factor": 1.0}, latents_mean=torch.zeros(8), latents_std=torch.ones(8), **ratios)
    pipe = pipeline(
        "LTX2Pipeline",
        "LTX2VideoTransformer3DModel",
        FLOW,
        changes={"audio_in_channels": 128, "audio_out_channels": 128, "perturbed_attn": True},
        plan=SHIFTED,
        vae=video,
        audio_vae=audio,
        connectors=None,
        vocoder=None,
    )
    pipe.connectors = lambda embeds, mask, **options: (embeds, embeds, mask)
    return pipe, prompts(mask=torch.int64, num_frames=9, size=64, spatio_temporal_guidance_blocks=[2])


def latte() -> Made:
    pipe = pipeline("LattePipeline", "LatteTransformer3DModel", "DDIMScheduler", plan={"prediction_type": "epsilon"})
    return pipe, prompts(size=64, video_length=3, negative_prompt=None, mask_feature=False)


def skyreels_v2() -> Made:
    pipe = pipeline("SkyReelsV2Pipeline", "SkyReelsV2Transformer3DModel", "UniPCMultistepScheduler", plan=UNIPC)
    return pipe, prompts(num_frames=5)


def diffusion_forcing(**options: Any) -> Made:
    pipe = pipeline(
        "SkyReelsV2DiffusionForcingPipeline", "SkyReelsV2Transformer3DModel", "UniPCMultistepScheduler", plan=UNIPC
    )
    return pipe, prompts(prompt=None, num_frames=9, base_num_frames=9, **options)


def vace() -> Made:
    changes = {"vace_in_channels": 72}
    pipe = pipeline(
        "WanVACEPipeline",
        "WanVACETransformer3DModel",
        "UniPCMultistepScheduler",
        changes=changes,
        plan=UNIPC,
        vae=wan_vae(4),
    )
    frames = [Image.new("RGB", (32, 32), (40 * place, 0, 0)) for place in range(5)]
    return pipe, prompts(num_frames=5, video=frames, conditioning_scale=[1.0, 0.5, 2.0])


def wan_animate(frames: int = 5) -> Made:
    pipe = pipeline(
        "WanAnimatePipeline",
        "WanAnimateTransformer3DModel",
        "UniPCMultistepScheduler",
        plan=UNIPC,
        vae=wan_vae(4),
        image_encoder=None,
        image_processor=None,
    )
    pipe.encode_image = lambda image, device: normal(1, 3, 10)
    pose = [Image.new("RGB", (32, 32), (40 * place, 0, 0)) for place in range(frames)]
    face = [Image.new("RGB", (16, 16), (0, 40 * place, 0)) for place in range(frames)]
    given = {"image": pose[0], "pose_video": pose, "face_video": face, "segment_frame_length": 5}
    return pipe, prompts(tokens=512, guidance_scale=3.0, **given)


#: Each pipeline, and the branches that its calls belong to: the two of guidance are one batch, or two calls.
PIPELINES: dict[Callable[[], Made], tuple[str, ...]] = {
    hunyuan_video: ("cond", "uncond"),
    skyreels_v1: ("cond", "uncond"),
    hunyuan_video_15: ("pred_cond", "pred_uncond"),
    hunyuan_dit: ("default",),
    motif_video: ("pred_cond", "pred_uncond"),
    ltx: ("cond_uncond",),
    ltx2: ("cond_uncond", "uncond_stg [2]", "uncond_modality True"),
    latte: ("default",),
    skyreels_v2: ("cond", "uncond"),
    diffusion_forcing: ("cond", "uncond"),
    vace: ("cond", "uncond"),
    wan_animate: ("cond", "uncond"),
}


@pytest.mark.parametrize("make", PIPELINES, ids=lambda make: make.__name__)
def test_each_branch_of_guidance_follows_the_plan(make: Callable[[], Made]) -> None:
    pipe, given = make()
    plain = generate(pipe, given)
    cache_dit.enable_cache(pipe, dynamic(residual_diff_threshold=0.0))
    assert same([generate(pipe, given)], [plain])
    cache_dit.enable_cache(pipe, static(LINE))
    blocks = blocks_of(pipe.transformer)
    with counted(blocks) as fired:
        cached = generate(pipe, given)
    branches = PIPELINES[make]
    assert lines(pipe.transformer) == dict.fromkeys(branches, LINE)
    assert (fired[0], fired[len(blocks) - 1]) == (len(LINE) * len(branches), LINE.count("F") * len(branches))
    assert cached.isfinite().all()
    assert not same([cached], [plain])
    assert same([generate(pipe, given)], [cached])
    cache_dit.disable_cache(pipe)
    assert same([generate(pipe, given)], [plain])


def test_frames_that_are_denoised_in_turn_make_one_run_whatever_came_before() -> None:
    pipe, given = diffusion_forcing(ar_step=2, causal_block_size=1)
    long = {**given, "ar_step": 0, "num_frames": 17, "overlap_history": 5, "addnoise_condition": 20}
    plan = dict.fromkeys(("cond", "uncond"), "FCCCCCCCCC")
    cache_dit.enable_cache(pipe, static("FCCCCCCCCC"))
    first = generate(pipe, given)
    assert lines(pipe.transformer) == plan
    generate(pipe, long)  # two loops: timesteps are known to fall then
    assert same([generate(pipe, given)], [first])
    assert lines(pipe.transformer) == plan


def test_wan_animate_begins_anew_with_each_segment() -> None:
    pipe, given = wan_animate(frames=9)
    cache_dit.enable_cache(pipe, static("FCCF"))
    with counted(pipe.transformer.blocks) as fired:
        generate(pipe, given, steps=4)
    assert (fired[0], fired[1]) == (2 * 2 * 4, 2 * 2 * 2)
    assert lines(pipe.transformer) == dict.fromkeys(("cond", "uncond"), "FCCF")


def test_framepack_begins_anew_with_each_section() -> None:
    names = ("text_encoder_2", "tokenizer_2", "image_encoder", "feature_extractor")
    parts: dict[str, Any] = {**dict.fromkeys(names), "vae": VIDEO}
    pipe = pipeline("HunyuanVideoFramepackPipeline", "HunyuanVideoFramepackTransformer3DModel", FLOW, **parts)
    pipe.encode_image = lambda image, device: normal(1, 3, 10)
    pipe.prepare_image_latents = lambda image, **options: normal(1, 4, 1, 4, 4, seed=5)
    sizes = {"num_frames": 10, "latent_window_size": 2, "image": torch.zeros(1, 3, 32, 32)}
    given = prompts(mask=torch.int64, true_cfg_scale=3.0, **sizes, **pooled())
    plain = generate(pipe, given, steps=4)
    cache_dit.enable_cache(pipe, dynamic(residual_diff_threshold=0.0))
    assert same(list(generate(pipe, given, steps=4)), list(plain))
    cache_dit.enable_cache(pipe, static("FCCF"))
    blocks = blocks_of(pipe.transformer)
    with counted(blocks) as fired:
        generate(pipe, given, steps=4)
    assert (fired[0], fired[1]) == (2 * 2 * 4, 2 * 2 * 2)
    assert lines(pipe.transformer) == dict.fromkeys(("cond", "uncond"), "FCCF")
