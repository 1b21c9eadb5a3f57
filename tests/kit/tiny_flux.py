"""Real diffusers pipelines of random weights, small enough to run in milliseconds, made without any download."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
    WanTransformer3DModel,
)

import cache_dit

#: Steps of a request, and which of them a cached run computes: 1 compute, 0 cached.
STEPS = 6
MASK = [1, 1, 0, 1, 0, 0]

#: The double and single blocks of the tiny transformer: one chain of six.
DOUBLE, SINGLE = 3, 3
BLOCKS = DOUBLE + SINGLE


def static_config(
    front: int = 1, back: int = 0, mask: list[int] | None = None, **options: Any
) -> cache_dit.DBCacheConfig:
    """A configuration whose decisions are fixed: what is computed follows from the mask alone."""
    return cache_dit.DBCacheConfig(
        Fn_compute_blocks=front,
        Bn_compute_blocks=back,
        max_warmup_steps=1,
        steps_computation_mask=MASK if mask is None else mask,
        steps_computation_policy="static",
        **{"num_inference_steps": STEPS, **options},
    )


def tiny_transformer(seed: int = 0, *, double: int = DOUBLE, single: int = SINGLE) -> FluxTransformer2DModel:
    """A FLUX.1 transformer with random weights, frozen."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    return transformer.eval().requires_grad_(False)


def tiny_vae(seed: int = 0) -> AutoencoderKL:
    """An autoencoder that keeps the picture's size: 4 latent channels, no down-sampling."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=2,
        layers_per_block=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    return vae.eval().requires_grad_(False)


def tiny_text_models(seed: int = 0) -> dict[str, Any]:
    """CLIP and T5 encoders with their tokenizers, over a vocabulary of letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    torch.manual_seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in letters)]
    tokenizer_2 = T5TokenizerFast(vocab=pieces, extra_ids=0)
    clip = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    t5 = T5Config(vocab_size=len(pieces), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    return {
        "tokenizer": CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77),
        "text_encoder": CLIPTextModel(clip).eval().requires_grad_(False),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": T5EncoderModel(t5).eval().requires_grad_(False),
    }


def tiny_pipeline(seed: int = 0, *, text: bool = False, **components: Any) -> FluxPipeline:
    """A FluxPipeline: with text encoders if ``text``, else for embeddings only."""
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"))
    if text:
        parts = tiny_text_models(seed)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=components.pop("vae", None) or tiny_vae(seed),
        transformer=components.pop("transformer", None) or tiny_transformer(seed),
        **{**parts, **components},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(batch: int = 1, tokens: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    """What text encoders would give."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(batch, tokens, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(batch, 16, generator=generator),
    }


def generate(
    pipe: Any, *, seed: int = 2, steps: int = STEPS, size: int = 8, batch: int = 1, **options: Any
) -> torch.Tensor:
    """Latents from one call of a FLUX pipeline."""
    inputs: dict[str, Any] = {**embeddings(batch), "height": size, "width": size, "guidance_scale": 3.0}
    return pipe(
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(seed),
        **{**inputs, **options},
    ).images


def flux_inputs(seed: int = 3, *, size: int = 4, tokens: int = 4, batch: int = 1) -> dict[str, Any]:
    """The arguments of one call of the transformer, without the timestep."""
    generator = torch.Generator().manual_seed(seed)
    image_ids = torch.zeros(size, size, 3)
    image_ids[..., 1], image_ids[..., 2] = torch.arange(size)[:, None], torch.arange(size)[None, :]
    return {
        "hidden_states": torch.randn(batch, size * size, 16, generator=generator),
        "encoder_hidden_states": torch.randn(batch, tokens, 32, generator=generator),
        "pooled_projections": torch.randn(batch, 16, generator=generator),
        "img_ids": image_ids.reshape(-1, 3),
        "txt_ids": torch.zeros(tokens, 3),
    }


def denoise(
    transformer: Any, *, steps: int = STEPS, inputs: dict[str, Any] | None = None, start: int = 0, grad: bool = False
) -> list[torch.Tensor]:
    """A denoising loop around a bare transformer: its output at each step."""
    inputs = dict(flux_inputs() if inputs is None else inputs)
    outputs = []
    with torch.set_grad_enabled(grad):
        for step in range(start, steps):
            timestep = torch.tensor([1.0 - step / steps], device=inputs["hidden_states"].device)
            output = transformer(**inputs, timestep=timestep, return_dict=False)[0]
            inputs["hidden_states"] = inputs["hidden_states"] - output / steps
            outputs.append(output)
    return outputs


def blocks_of(transformer: Any) -> list[torch.nn.Module]:
    """The blocks of a FLUX transformer in call order."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


@contextmanager
def counted(transformer: Any) -> Iterator[Counter[int]]:
    """Counts the blocks that run, by position."""
    calls: Counter[int] = Counter()

    def count(position: int) -> Callable[..., None]:
        return lambda module, args, output: calls.update([position])

    handles = [block.register_forward_hook(count(i)) for i, block in enumerate(blocks_of(transformer))]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def expected_calls(front: int = 1, back: int = 0, mask: list[int] | None = None) -> Counter[int]:
    """How often each block runs under ``static_config`` of the same arguments."""
    mask = MASK if mask is None else mask
    always = {*range(front), *range(BLOCKS - back, BLOCKS)}
    return Counter({i: len(mask) if i in always else sum(mask) for i in range(BLOCKS)})


def cached_reference(transformer: Any, config: cache_dit.DBCacheConfig) -> list[torch.Tensor]:
    """What a cached transformer gives that nothing else was done to: a cache put on, run and taken off."""
    cache_dit.enable_cache(transformer, config)
    try:
        return denoise(transformer)
    finally:
        cache_dit.disable_cache(transformer)


def tiny_wan(seed: int = 0, *, layers: int = 4) -> WanTransformer3DModel:
    """A Wan transformer with random weights, frozen."""
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    return transformer.eval().requires_grad_(False)


def tiny_wan_pipeline(*, two: bool = False) -> WanPipeline:
    """A Wan pipeline for embeddings and latents, with one or two transformers."""
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=tiny_wan(0),
        transformer_2=tiny_wan(1) if two else None,
        boundary_ratio=0.5 if two else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate_video(pipe: Any, *, seed: int = 2, steps: int = STEPS, **options: Any) -> torch.Tensor:
    """Latents from one call of a Wan pipeline."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        prompt_embeds=torch.randn(1, 5, 16, generator=generator),
        negative_prompt_embeds=torch.randn(1, 5, 16, generator=generator),
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=steps,
        output_type="latent",
        generator=generator,
        **{"guidance_scale": 3.0, **options},
    ).frames


def tiny_sd3_pipeline() -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline for embeddings and latents."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
    )
    text = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval().requires_grad_(False),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        **dict.fromkeys(text),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate_sd3(pipe: Any, *, seed: int = 2, **options: Any) -> torch.Tensor:
    """Latents from one call of a Stable Diffusion 3 pipeline with guidance, both branches in one batch."""
    negative = {f"negative_{name}": value for name, value in embeddings(seed=9).items()}
    return pipe(
        **embeddings(),
        **negative,
        height=8,
        width=8,
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).images


def tiny_qwen_pipeline() -> QwenImagePipeline:
    """A Qwen-Image pipeline for embeddings and latents."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
    )
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval().requires_grad_(False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate_qwen(pipe: Any, *, seed: int = 2, **options: Any) -> torch.Tensor:
    """Latents from one call of a Qwen-Image pipeline with guidance."""
    inputs = {
        "prompt_embeds": embeddings()["prompt_embeds"],
        "negative_prompt_embeds": embeddings(seed=9, tokens=6)["prompt_embeds"],
        "prompt_embeds_mask": torch.ones(1, 4, dtype=torch.long),
        "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
    }
    return pipe(
        **inputs,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).images
