"""The demo model's networks before training, and the loss that trains them together."""

from dataclasses import dataclass

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .captions import CLIP_LENGTH

TEXT_WIDTH = 192
PATCH_CHANNELS = 32


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Sizes and special ids of the two tokenizers."""

    clip_size: int
    clip_start: int
    clip_end: int
    t5_size: int


class Denoiser(nn.Module):
    """Transformer and both text encoders: all that flow matching trains."""

    def __init__(self, vocabulary: Vocabulary, heads: int = 4) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(_clip_config(vocabulary))
        self.text_encoder_2 = T5EncoderModel(_t5_config(vocabulary))
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=PATCH_CHANNELS,
            num_layers=4,
            num_single_layers=8,
            attention_head_dim=48,
            num_attention_heads=heads,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(12, 18, 18),
        )
        self._zero_gates()

    def _zero_gates(self) -> None:
        """Every block starts as the identity and the output as zero, as in DiT (arXiv:2212.09748, section 3.2)."""
        for name, module in self.transformer.named_modules():
            if isinstance(module, nn.Linear) and (".norm" in name or name.startswith(("norm_out", "proj_out"))):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        clean: torch.Tensor,
        noise: torch.Tensor,
        time: torch.Tensor,
        clip_ids: torch.Tensor,
        t5_ids: torch.Tensor,
        image_ids: torch.Tensor,
    ) -> torch.Tensor:
        """The flow matching loss: mean squared error of the velocity noise - clean at time in 0 (clean) to 1 (noise).

        `clean` and `noise` are packed latents (B, 64, 32), `time` is (B,), ids are (B, length), `image_ids` (64, 3).
        """
        pooled = self.text_encoder(clip_ids).pooler_output
        text = self.text_encoder_2(t5_ids)[0]
        mixture = torch.lerp(clean, noise, time[:, None, None])
        velocity = self.transformer(
            hidden_states=mixture,
            timestep=time,
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=image_ids.new_zeros(text.shape[1], 3),
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return mse_loss(velocity.float(), noise - clean)


def _clip_config(vocabulary: Vocabulary) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary.clip_size,
        hidden_size=TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=vocabulary.clip_start,
        eos_token_id=vocabulary.clip_end,
        pad_token_id=vocabulary.clip_end,
    )


def _t5_config(vocabulary: Vocabulary) -> T5Config:
    return T5Config(
        vocab_size=vocabulary.t5_size,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=6,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        use_cache=False,
        is_encoder_decoder=False,
    )


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, H, W) as tokens (N, H/2 * W/2, 4C), in FluxPipeline's order."""
    packed: torch.Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def image_positions(side: int) -> torch.Tensor:
    """FluxPipeline's position ids (side * side, 3) of the tokens of a picture of side x side tokens."""
    positions: torch.Tensor = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    return positions
