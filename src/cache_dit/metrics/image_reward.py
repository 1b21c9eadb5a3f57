"""ImageReward: how much people would like a picture for its prompt, as a network trained on their choices predicts it.

Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation", 2023. The network is
BLIP's image encoder and its text encoder with cross-attention, both made of transformers' parts here, and a head of
linear layers. The authors' package needs torchvision and old releases of timm and fairscale; here only their file of
weights is needed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cache_dit.errors import ConfigError
from cache_dit.metrics.averages import Mean
from cache_dit.metrics.networks import BERT_TOKENIZER, IMAGE_REWARD, chosen_device, find, load_tensors
from cache_dit.metrics.pictures import Pixels, Source, read_picture
from cache_dit.metrics.prompts import Pictures, Prompts, mean_over_prompts

#: The reward's mean and standard deviation in training, which the published score takes off.
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
#: What prompts are cut or filled to, in tokens.
TOKENS = 35
_HEAD = (1024, 128, 64, 16, 1)
_HEAD_DIM = 64  # channels of an attention head, in both encoders
_CHANNEL_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
_CHANNEL_DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)

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


class ImageReward:
    """The reward of a prompt and a picture. Load it once for many; `compute_image_reward` does so for folders.

    Args:
        model: ``ImageReward.pt`` or the folder that holds it; None looks where `cache_dit.metrics.networks.find` does.
            BERT's ``vocab.txt`` is taken from beside it, or from the hub's local cache.
        device: where it runs; None takes CUDA if it is there.

    Raises:
        MissingModelError: the weights or the tokenizer are nowhere; nothing is downloaded.
        ConfigError: the file holds another network.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, device: str | torch.device | None = None) -> None:
        from tokenizers import BertWordPieceTokenizer

        path = find(IMAGE_REWARD, model)
        beside = path.with_name(BERT_TOKENIZER.files[0])
        vocabulary = beside if beside.is_file() else find(BERT_TOKENIZER)
        self._tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        self._tokenizer.enable_truncation(TOKENS)
        self._tokenizer.enable_padding(length=TOKENS)
        self.device = chosen_device(device)
        self._network = load_network(path).to(self.device)

    @torch.no_grad()
    def __call__(self, prompt: str, picture: Source) -> float:
        """The reward of a prompt, cut to 35 tokens, and a picture; 0 is the mean, 1 the deviation."""
        encoded = self._tokenizer.encode(prompt)
        tokens, mask = (torch.tensor([x], device=self.device) for x in (encoded.ids, encoded.attention_mask))
        pixels = prepare(read_picture(picture), self._network.side)[None].to(self.device)
        return float(self._network(pixels, tokens, mask))


def prepare(picture: Pixels, side: int) -> Tensor:
    """The middle square of a picture, its shorter side brought to `side` bicubically, normalised: (3, side, side)."""
    height, width = picture.shape[:2]
    shorter = min(height, width)
    width, height = int(side * width / shorter), int(side * height / shorter)
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    normalised = (square - _CHANNEL_MEAN) / _CHANNEL_DEVIATION
    return torch.from_numpy(normalised).permute(2, 0, 1)


def compute_image_reward(
    prompts: Prompts,
    img_dir: Pictures,
    imagereward_model_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
) -> Mean:
    """The mean ImageReward of pictures and their prompts: higher is better.

    Args:
        prompts: a text file with one prompt in each line, or a list of prompts.
        img_dir: a folder of pictures, in natural order; a picture's file; or several of them. It may come first too,
            where it is plain which is which.
        imagereward_model_path, device: as `ImageReward` takes them.

    Returns:
        ``(value, n)``, n pictures.

    Raises:
        ConfigError, MissingModelError: as `ImageReward` and `mean_over_prompts` do.
    """
    return mean_over_prompts(ImageReward(imagereward_model_path, device), prompts, img_dir, name="IMAGE_REWARD")
