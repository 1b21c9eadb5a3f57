"""Pipelines of CogView and of video models, of random weights, with guidance: what the cache sees of their loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit.engine.sessions.call_reader import CallReader
from tests.kit.claims import blocks_of
from tests.kit.equality import same
from tests.kit.row import TEXT, normal
from tests.kit.tiny_flux import tiny_vae
from tests.kit.tiny_models import tiny
from tests.kit.toys import counted, dynamic, lines, static

LINE = "FFCCFC"

pytestmark = [
    # Mochi's rotary embedding asks for autocast to float32, which is none on a CPU
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    # a scheduler of diffusers 0.36, with numpy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


class Checker:
    """Stands for Cosmos' safety checker, which is asked for prompts and finished videos alone."""

    def to(self, device: Any) -> None:
        """It is nowhere."""


def wan_vae(channels: int) -> diffusers.AutoencoderKLWan:
    """An autoencoder of Wan's kind, for latents of so many channels."""
    torch.manual_seed(0)
    statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **statistics
    ).eval()


def magvit_vae() -> diffusers.AutoencoderKLMagvit:
    """An autoencoder that is asked for its number of channels alone."""
    return diffusers.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=4,
        layers_per_block=1,
    )


def pipeline(
    name: str, transformer: str, scheduler: str, *, changes: Any = None, plan: Any = None, **parts: Any
) -> Any:
    """A pipeline for embeddings and latents around a tiny transformer.

    Args:
        name, transformer, scheduler: the classes.
        changes: what differs from the row in the transformer's constructor's arguments.
        plan: the scheduler's arguments.
        parts: the other components.
    """
    model = tiny(transformer, **(changes or {}))
    parts = {**dict.fromkeys(("tokenizer", "text_encoder", "vae")), **parts}
    steps = getattr(diffusers, scheduler)(**(plan or {}))
    pipe = getattr(diffusers, name)(transformer=model, scheduler=steps, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(width: int = 12, *, tokens: int = TEXT, mask: Any = None, size: int = 32, **more: Any) -> dict[str, Any]:
    """What pipelines are called with: embeddings of two prompts, with masks of a type, and a size in pixels."""
    given = {
        "prompt_embeds": normal(1, tokens, width, seed=1),
        "negative_prompt_embeds": normal(1, tokens, width, seed=2),
    }
    if mask is not None:
        both = torch.ones(1, tokens, dtype=mask)
        given |= {"prompt_attention_mask": both, "negative_prompt_attention_mask": both}
    return {**given, "height": size, "width": size, **more}


FLOW = "FlowMatchEulerDiscreteScheduler"
SHIFTED = {"use_dynamic_shifting": True}

Made = tuple[Any, dict[str, Any]]
"""A pipeline, and what to call it with."""


def allegro() -> Made:
    pipe = pipeline("AllegroPipeline", "AllegroTransformer3DModel", "DDIMScheduler")
    return pipe, prompts(mask=torch.int64, num_frames=8, negative_prompt=None)


def anyflow() -> Made:
    pipe = pipeline("AnyFlowPipeline", "AnyFlowTransformer3DModel", "FlowMapEulerDiscreteScheduler")
    return pipe, prompts(num_frames=5, guidance_scale=3)


def chronoedit() -> Made:
    pipe = pipeline(
        "ChronoEditPipeline",
        "ChronoEditTransformer3DModel",
        "UniPCMultistepScheduler",
        changes={"out_channels": 2},
        plan={"prediction_type": "flow_prediction", "use_flow_sigmas": True},
        vae=wan_vae(2),
        image_encoder=None,
        image_processor=None,
    )
    pipe.encode_image = lambda image, device: normal(1, 3, 10)
    return pipe, prompts(tokens=512, image=torch.zeros(1, 3, 32, 32))


def cogvideox() -> Made:
    pipe = pipeline("CogVideoXPipeline", "CogVideoXTransformer3DModel", "CogVideoXDDIMScheduler")
    return pipe, prompts(num_frames=5)


def cogview3_plus() -> Made:
    return pipeline("CogView3PlusPipeline", "CogView3PlusTransformer2DModel", "CogVideoXDDIMScheduler"), prompts()


def cogview4() -> Made:
    return pipeline("CogView4Pipeline", "CogView4Transformer2DModel", FLOW, plan=SHIFTED), prompts()


def cogview4_control() -> Made:
    parts: dict[str, Any] = {"changes": {"in_channels": 8}, "plan": SHIFTED, "vae": tiny_vae()}
    pipe = pipeline("CogView4ControlPipeline", "CogView4Transformer2DModel", FLOW, **parts)
    return pipe, prompts(size=16, control_image=torch.zeros(1, 3, 16, 16))


def cosmos() -> Made:
    parts = {"safety_checker": Checker()}
    pipe = pipeline("CosmosTextToWorldPipeline", "CosmosTransformer3DModel", "EDMEulerScheduler", **parts)
    return pipe, prompts(num_frames=9)


def easyanimate() -> Made:
    pipe = pipeline("EasyAnimatePipeline", "EasyAnimateTransformer3DModel", FLOW, vae=magvit_vae())
    return pipe, prompts(mask=torch.bool, num_frames=5)


def helios(chunks: int = 1) -> Made:
    pipe = pipeline("HeliosPipeline", "HeliosTransformer3DModel", FLOW, plan=SHIFTED, vae=wan_vae(4))
    return pipe, prompts(num_frames=5 * chunks, history_sizes=[4, 2, 1], num_latent_frames_per_chunk=2)


def mochi() -> Made:
    parts = {"changes": {"in_channels": 12}, "plan": {"invert_sigmas": True}}
    return pipeline("MochiPipeline", "MochiTransformer3DModel", FLOW, **parts), prompts(
        16, mask=torch.bool, num_frames=7
    )


#: Each pipeline, and the branches that its calls belong to: the two of guidance are one batch, or two calls.
PIPELINES: dict[Callable[[], Made], tuple[str, ...]] = {
    allegro: ("default",),
    anyflow: ("default",),
    chronoedit: ("cond", "uncond"),
    cogvideox: ("cond_uncond",),
    cogview3_plus: ("default",),
    cogview4: ("cond", "uncond"),
    cogview4_control: ("cond", "uncond"),
    cosmos: ("cond", "uncond"),
    easyanimate: ("default",),
    helios: ("cond", "uncond"),
    mochi: ("cond_uncond",),
}


def generate(pipe: Any, given: dict[str, Any], steps: int = len(LINE)) -> Tensor:
    """Latents from one call of a pipeline."""
    torch.manual_seed(0)  # CogView4's control image is encoded without a generator
    generator = torch.Generator().manual_seed(2)
    options = {"num_inference_steps": steps, "output_type": "latent", "generator": generator, "return_dict": False}
    latents: Tensor = pipe(**given, **options)[0]
    return latents


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
    assert same([generate(pipe, given)], [cached])
    cache_dit.disable_cache(pipe)
    assert same([generate(pipe, given)], [plain])


def test_chronoedit_begins_anew_when_only_two_frames_go_on() -> None:
    pipe, given = chronoedit()
    given |= {"num_frames": 9, "enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 3}
    cache_dit.enable_cache(pipe, static("FCCCCC"))
    assert generate(pipe, given).shape[2] == 2
    assert lines(pipe.transformer) == {"cond": "FCCFCC", "uncond": "FCCFCC"}


def test_helios_begins_anew_with_each_chunk() -> None:
    pipe, given = helios(chunks=2)
    cache_dit.enable_cache(pipe, static("FCCF"))
    with counted(pipe.transformer.blocks) as fired:
        generate(pipe, given, steps=4)
    assert (fired[0], fired[1]) == (2 * 2 * 4, 2 * 2 * 2)
    assert lines(pipe.transformer) == {"cond": "FCCF", "uncond": "FCCF"}


def test_a_chunk_begins_anew_where_no_timestep_is_read_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator under a static plan: there the scheduler tells."""
    read = CallReader.timestep

    def timestep(self: CallReader, call: Any, *, waits: bool) -> float | None:
        return read(self, call, waits=waits) if waits else None

    monkeypatch.setattr(CallReader, "timestep", timestep)
    pipe, given = helios(chunks=2)
    cache_dit.enable_cache(pipe, static("FCCF"))
    with counted(pipe.transformer.blocks) as fired:
        generate(pipe, given, steps=4)
    assert (fired[0], fired[1]) == (2 * 2 * 4, 2 * 2 * 2)


def test_anyflow_begins_anew_with_each_chunk_and_writes_keys_between_them() -> None:
    parts = {"changes": {"full_chunk_limit": 2}}
    pipe = pipeline("AnyFlowFARPipeline", "AnyFlowFARTransformer3DModel", "FlowMapEulerDiscreteScheduler", **parts)
    given = prompts(num_frames=5, chunk_partition=[1, 1], guidance_scale=3)
    plain = generate(pipe, given, steps=4)
    cache_dit.enable_cache(pipe, dynamic(residual_diff_threshold=0.0))
    assert same([generate(pipe, given, steps=4)], [plain])
    cache_dit.enable_cache(pipe, static("FCCF"))
    with counted(pipe.transformer.blocks) as fired:
        generate(pipe, given, steps=4)
    assert (fired[0], fired[1]) == (2 * 4 + 1, 2 * 2 + 1)
    assert lines(pipe.transformer) == {"default": "FCCF"}
