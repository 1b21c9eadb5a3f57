"""The network of ImageReward: BLIP's image encoder, its text encoder with cross-attention, and a head of linear layers.

Both encoders are made of transformers' parts. The authors' package needs torchvision and old releases of timm and
fairscale; here only their file of weights is needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cache_dit.errors import ConfigError
from cache_dit.metrics.networks.files import IMAGE_REWARD, load_tensors

#: The reward's mean and standard deviation in training, which the published score takes off.
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
_HEAD = (1024, 128, 64, 16, 1)
_HEAD_DIM = 64  # channels of an attention head, in both encoders

# How transformers names the parts of the image encoder
_RENAMED = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm", r"vision.encoder.layers.\1.layer_norm"),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^mlp\.layers\.", "head."),
)


class RewardNetwork(nn.Module):
    """The network, in the sizes that a published state dictionary has.

    Args:
        state: names and tensors of ``ImageReward.pt``; only the shapes are used.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        vision = {k.removeprefix("blip.visual_encoder."): v.shape for k, v in state.items()}
        text = {k.removeprefix("blip.text_encoder."): v.shape for k, v in state.items()}
        patch, width = vision["patch_embed.proj.weight"][-1], vision["cls_token"][-1]
        self.side = math.isqrt(vision["pos_embed"][1] - 1) * patch  # of the pictures, in pixels
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=width,
                intermediate_size=vision["blocks.0.mlp.fc1.weight"][0],
                num_hidden_layers=_count(state, r"blip\.visual_encoder\.blocks\.(\d+)\."),
                num_attention_heads=width // _HEAD_DIM,
                image_size=self.side,
                patch_size=patch,
                layer_norm_eps=1e-6,
            )
        )
        vocabulary, hidden = text["embeddings.word_embeddings.weight"]
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                encoder_hidden_size=width,
                intermediate_size=text["encoder.layer.0.intermediate.dense.weight"][0],
                num_hidden_layers=_count(state, r"blip\.text_encoder\.encoder\.layer\.(\d+)\."),
                num_attention_heads=hidden // _HEAD_DIM,
                max_position_embeddings=text["embeddings.position_embeddings.weight"][0],
                is_decoder=True,  # for its layers of cross-attention; it is called as an encoder
                bos_token_id=None,
                sep_token_id=None,
                eos_token_id=None,
            ),
            add_pooling_layer=False,
        )
        layers: list[nn.Module] = []
        for index, out in enumerate(_HEAD):
            layers.append(nn.Linear(hidden, out))
            if index < 3:
                layers.append(nn.Identity())  # a dropout while training, which the numbering counts
            hidden = out
        self.head = nn.Sequential(*layers)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Rewards (N,), higher for pictures that people would rather have.

        Args:
            pixels: (N, 3, side, side), normalised.
            tokens: (N, tokens), of BERT's vocabulary.
            mask: (N, tokens), 1 for tokens and 0 for what fills up.
        """
        seen = self.vision(pixels).last_hidden_state
        read = self.text(tokens, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state[:, 0]
        rewards: Tensor = (self.head(read.float())[:, 0] - MEAN) / DEVIATION
        return rewards


def _count(state: Mapping[str, Any], pattern: str) -> int:
    return 1 + max(int(match[1]) for key in state if (match := re.match(pattern, key)))


def load_network(path: Path) -> RewardNetwork:
    """The network with the weights of a published file.

    Raises:
        ConfigError: the file holds another network.
    """
    state = load_tensors(path)
    try:
        network = RewardNetwork(state)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(f"{path} does not hold {IMAGE_REWARD.name}: {error!r} while its sizes were read") from error
    renamed = {}
    for key, tensor in state.items():
        for pattern, name in _RENAMED:
            key = re.sub(pattern, name, key)
        renamed[key] = tensor.float()
    try:
        missing = network.load_state_dict(renamed, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise ConfigError(f"{path} does not hold {IMAGE_REWARD.name}: {error}") from error
    if missing:
        raise ConfigError(f"{path} does not hold {IMAGE_REWARD.name}: it lacks {', '.join(missing[:3])}")
    return network.eval().requires_grad_(False)
