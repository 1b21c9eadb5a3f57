"""ImageReward: how much people would like a picture for its prompt, as a network trained on their choices predicts it.

Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation", 2023.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache_dit.metrics.averages import Mean
from cache_dit.metrics.networks.files import BERT_TOKENIZER, IMAGE_REWARD, chosen_device, find
from cache_dit.metrics.networks.reward import load_network
from cache_dit.metrics.pictures import Pixels, Source, read_picture
from cache_dit.metrics.prompts import Pictures, Prompts, mean_over_prompts

#: What prompts are cut or filled to, in tokens.
TOKENS = 35
_CHANNEL_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
_CHANNEL_DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)


class ImageReward:
    """The reward of a prompt and a picture. Load it once for many; `compute_image_reward` does so for folders.

    Args:
        model: ``ImageReward.pt`` or the folder that holds it; None looks where `networks.files.find` does.
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


def compute_reward_score_img(
    img: Source, prompt: str, imagereward_model_path: str | os.PathLike[str] | None = None, **options: Any
) -> float:
    """The reward of one picture and its prompt; the model is loaded for it, so `ImageReward` is for many.

    Args:
        img: the picture.
        prompt: its prompt.
        imagereward_model_path, options: as `ImageReward` takes them.
    """
    return ImageReward(imagereward_model_path, **options)(prompt, img)


# the names that scripts for cache-dit 1.2.0 have
ImageRewardScore, compute_reward_score = ImageReward, compute_image_reward
