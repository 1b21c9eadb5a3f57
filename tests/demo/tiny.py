"""A random FluxPipeline folder with the layout of the demo model's."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast, T5Config, T5EncoderModel, T5TokenizerFast

from tools.train_demo.captions import CLIP_LENGTH, T5_LENGTH, save_clip_tokenizer, save_t5_tokenizer

CAPTIONS = ("glossy 3d emoji of rocket", "noto emoji of owl", "flat emoji of hot beverage")
RECOMMENDED = {"max_sequence_length": T5_LENGTH, "guidance_scale": 1.0}


def save_tiny_pipeline(folder: Path, *, double: int = 1, single: int = 2, heads: int = 1) -> Path:
    """Write a pipeline with random weights to a folder: `double` + `single` blocks of `heads` * 32 channels."""
    torch.manual_seed(0)
    save_clip_tokenizer(CAPTIONS, folder / "tokenizer")
    save_t5_tokenizer(CAPTIONS, folder / "tokenizer_2")
    clip = CLIPTokenizerFast.from_pretrained(folder / "tokenizer")
    t5 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
    width = 32 * heads
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=32,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=width,
        pooled_projection_dim=width,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    with torch.no_grad():
        # Random weights react to the time like nothing trained does; so damped, there are steps to skip.
        transformer.time_text_embed.timestep_embedder.linear_2.weight.mul_(0.1)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=_autoencoder(),
        text_encoder=_clip(clip, width),
        tokenizer=clip,
        text_encoder_2=_t5(t5, width),
        tokenizer_2=t5,
        transformer=transformer,
    ).to(torch.bfloat16).save_pretrained(folder)
    (folder / "cache_dit_demo.json").write_text(json.dumps(RECOMMENDED), encoding="utf-8")
    return folder


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def _clip(tokenizer: CLIPTokenizerFast, width: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _t5(tokenizer: T5TokenizerFast, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=1,
        num_heads=1,
        dropout_rate=0.0,
        use_cache=False,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)
