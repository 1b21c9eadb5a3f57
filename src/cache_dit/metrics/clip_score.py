"""The CLIP score: how well a picture fits its prompt, as CLIP sees it.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021, in the form that is usual for
generated pictures: CLIP's own logit, the cosine of the two embeddings times the model's learned scale (about 100).
"""

from __future__ import annotations

import os
from typing import Any

import torch
from PIL import Image

from cache_dit.errors import ConfigError
from cache_dit.metrics.averages import Mean
from cache_dit.metrics.networks.files import CLIP, chosen_device, find
from cache_dit.metrics.pictures import Source, read_picture
from cache_dit.metrics.prompts import Pictures, Prompts, mean_over_prompts


class ClipScore:
    """CLIP's logit of a prompt and a picture. Load it once for many; `compute_clip_score` does so for folders.

    Args:
        model: a folder with a CLIP model and its processor in transformers' form, or the name of a repository in the
            hub's local cache; None looks where `networks.files.find` does.
        device: where it runs; None takes CUDA if it is there.

    Raises:
        MissingModelError: the model is nowhere; nothing is downloaded.
        ConfigError: the folder holds no CLIP model.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, device: str | torch.device | None = None) -> None:
        from transformers import CLIPModel, CLIPProcessor

        path = find(CLIP, model)
        try:
            loaded, info = CLIPModel.from_pretrained(path, local_files_only=True, output_loading_info=True)
            self._processor = CLIPProcessor.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"{path} cannot be loaded as a CLIP model: {error}") from error
        if info["missing_keys"]:  # transformers would leave them random
            raise ConfigError(f"{path} is no complete CLIP model: it lacks {sorted(info['missing_keys'])[:3]}")
        self.device = chosen_device(device)
        self._model = loaded.eval().float().to(self.device)

    @torch.no_grad()
    def __call__(self, prompt: str, picture: Source) -> float:
        """The logit of a prompt, cut to the model's length (77 tokens), and a picture."""
        image = Image.fromarray(read_picture(picture))
        inputs = self._processor(text=[prompt], images=image, return_tensors="pt", padding=True, truncation=True)
        return float(self._model(**inputs.to(self.device)).logits_per_image)


def compute_clip_score(
    prompts: Prompts,
    img_dir: Pictures,
    clip_model_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
) -> Mean:
    """The mean CLIP score of pictures and their prompts: higher is better.

    Args:
        prompts: a text file with one prompt in each line, or a list of prompts.
        img_dir: a folder of pictures, in natural order; a picture's file; or several of them. It may come first too,
            where it is plain which is which.
        clip_model_path, device: as `ClipScore` takes them.

    Returns:
        ``(value, n)``, n pictures.

    Raises:
        ConfigError, MissingModelError: as `ClipScore` and `mean_over_prompts` do.
    """
    return mean_over_prompts(ClipScore(clip_model_path, device), prompts, img_dir, name="CLIP_SCORE")


def compute_clip_score_img(
    img: Source, prompt: str, clip_model_path: str | os.PathLike[str] | None = None, **options: Any
) -> float:
    """The CLIP score of one picture and its prompt; the model is loaded for it, so `ClipScore` is for many.

    Args:
        img: the picture.
        prompt: its prompt.
        clip_model_path, options: as `ClipScore` takes them.
    """
    return ClipScore(clip_model_path, **options)(prompt, img)


CLIPScore = ClipScore  # the name that scripts for cache-dit 1.2.0 have
