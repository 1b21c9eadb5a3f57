"""LPIPS: how different two pictures look, by the features of a network that was trained to classify pictures.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, eq. 1, in version 0.1 of
its authors' weights.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from cache_dit.config.base import bad_value
from cache_dit.errors import ConfigError
from cache_dit.metrics.averages import Mean, mean_over_frames, mean_over_pairs
from cache_dit.metrics.networks.files import LPIPS, chosen_device, find, load_tensors
from cache_dit.metrics.networks.lpips import features, load_heads
from cache_dit.metrics.pairs import PathLike
from cache_dit.metrics.pictures import Source, check_same_size, read_picture

#: The ReLUs that are compared, by their place in `features`.
_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}

#: The smallest side of a picture that leaves something after the last pooling, in pixels.
_SMALLEST = {"alex": 31, "vgg": 16}


class Lpips:
    """LPIPS of two pictures. Load it once for many pictures; `compute_lpips` does so for folders.

    Args:
        network: ``"alex"`` (the usual one for quality) or ``"vgg"``.
        weights: the trunk's file or its folder; None looks where `networks.files.find` does.
        device: where it runs; None takes CUDA if it is there.

    Raises:
        ConfigError: there is no such network, or the file holds another one.
        MissingModelError: the trunk is nowhere; nothing is downloaded.
    """

    def __init__(
        self,
        network: str = "alex",
        weights: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if network not in LPIPS:
            raise bad_value("network", network, "one of " + ", ".join(map(repr, LPIPS)))
        path = find(LPIPS[network], weights)
        with torch.device("meta"):
            trunk = features(network)
        prefix = "features."
        state = {k.removeprefix(prefix): v.float() for k, v in load_tensors(path).items() if k.startswith(prefix)}
        try:
            trunk.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ConfigError(f"{path} does not hold {LPIPS[network].name}: {error}") from error
        self.network = network
        self.device = chosen_device(device)
        self._layers = list(trunk.eval().requires_grad_(False).to(self.device))
        self._heads = [head.to(self.device) for head in load_heads(network)]
        # ImageNet's mean and standard deviation, for pictures in -1 … 1
        self._shift = torch.tensor([-0.030, -0.088, -0.188], device=self.device).view(3, 1, 1)
        self._scale = torch.tensor([0.458, 0.448, 0.450], device=self.device).view(3, 1, 1)

    @torch.no_grad()
    def __call__(self, true: Source, test: Source) -> float:
        """The distance of two pictures, as `read_picture` takes them: 0 where they are equal.

        Raises:
            ConfigError: one cannot be read, they differ in size, or a side is shorter than the network can take (31
                pixels for AlexNet, 16 for VGG16).
        """
        true, test = read_picture(true), read_picture(test)
        check_same_size(true, test, where="LPIPS")
        smallest = _SMALLEST[self.network]
        if min(true.shape[:2]) < smallest:
            height, width = true.shape[:2]
            raise ConfigError(
                f"LPIPS with {self.network!r} needs {smallest}x{smallest} pixels or more: {width}x{height}"
            )
        pair = torch.stack([torch.tensor(picture, device=self.device).permute(2, 0, 1) for picture in (true, test)])
        hidden = (pair.float() / 127.5 - 1 - self._shift) / self._scale
        distance, heads = 0.0, iter(self._heads)
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden)
            if index in _TAPS[self.network]:
                unit = hidden / (hidden.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                by_channel = (unit[0] - unit[1]).square().mean(dim=(1, 2), dtype=torch.float64)
                distance += float(by_channel @ next(heads).double())
        return distance


def compute_lpips(image_true: Source, image_test: Source, **options: Any) -> Mean:
    """The mean LPIPS of pictures: 0 for equal ones, lower is better.

    Args:
        image_true, image_test: two files, two folders, or two pictures in memory.
        options: of `Lpips`: ``network``, ``weights``, ``device``.

    Returns:
        ``(value, n)``, n pairs.

    Raises:
        ConfigError, MissingModelError: as `Lpips` and `mean_over_pairs` do.
    """
    return mean_over_pairs(Lpips(**options), image_true, image_test, name="LPIPS")


def compute_video_lpips(video_true: PathLike, video_test: PathLike, **options: Any) -> Mean:
    """As `compute_lpips`, over the frames of two videos or of two folders' videos; n counts frames."""
    return mean_over_frames(Lpips(**options), video_true, video_test, name="LPIPS")


def compute_lpips_img(image_true: Source, image_test: Source, **options: Any) -> float:
    """LPIPS of two pictures; the network is loaded for them, so `Lpips` is for many.

    Args:
        image_true, image_test: the pictures.
        options: of `Lpips`.
    """
    return Lpips(**options)(image_true, image_test)
