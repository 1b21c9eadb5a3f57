"""The InceptionV3 that the Fréchet inception distance is defined with: the network of 2015, in PyTorch's layers.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015, with three habits of the network
behind the published weights: average pooling leaves the border out, the last block pools by maximum, 1008 classes.
Names are those of the file. Only torch is needed: torchvision's wheels do not import beside a PyTorch without CUDA.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cache_dit.errors import ConfigError
from cache_dit.metrics.networks.files import INCEPTION, find, load_tensors

_Size = tuple[int, int]
_TALL, _WIDE = (7, 1), (1, 7)


class Convolution(nn.Module):
    """A convolution without bias, a batch norm and a ReLU. It keeps the size, unless it has a stride or no padding."""

    def __init__(self, channels: int, out: int, kernel: int | _Size, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class _Step(NamedTuple):
    """A convolution of a branch; `ends` are names of several beside each other, whose outputs are joined."""

    name: str
    out: int
    kernels: tuple[int | _Size, ...]
    ends: tuple[str, ...] = ("",)
    stride: int = 1


def _step(name: str, out: int, kernel: int | _Size = 1, stride: int = 1) -> _Step:
    return _Step(name, out, (kernel,), stride=stride)


def _fork(name: str, out: int) -> _Step:
    return _Step(name, out, ((1, 3), (3, 1)), ("a", "b"))


class Mixed(nn.Module):
    """Branches of convolutions beside each other and one of pooling, joined by channel.

    Args:
        channels: of the input.
        branches: the convolutions of each branch.
        pooled: channels of the convolution after the pooling; 0: none, and the pooling halves the size.
        maximum: whether the pooling takes the maximum although it keeps the size.
    """

    def __init__(self, channels: int, branches: list[list[_Step]], pooled: int = 0, maximum: bool = False) -> None:
        super().__init__()
        self.branches, self.pooled, self.maximum = branches, pooled, maximum
        self.channels = pooled or channels
        for branch in branches:
            width = channels
            for step in branch:
                for kernel, end in zip(step.kernels, step.ends, strict=True):
                    self.add_module(step.name + end, Convolution(width, step.out, kernel, step.stride))
                width = step.out * len(step.ends)
            self.channels += width
        if pooled:
            self.branch_pool = Convolution(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H', W')."""
        results = []
        for branch in self.branches:
            result = x
            for step in branch:
                result = torch.cat([self.get_submodule(step.name + end)(result) for end in step.ends], dim=1)
            results.append(result)
        return torch.cat([*results, self._pool(x)], dim=1)

    def _pool(self, x: Tensor) -> Tensor:
        if not self.pooled:
            return F.max_pool2d(x, 3, 2)
        if self.maximum:
            result: Tensor = self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        else:
            result = self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        return result


def small(channels: int, pooled: int) -> Mixed:
    """A block at 35 x 35 with this many channels, and this many of its result from the pooling."""
    double = [_step("branch3x3dbl_1", 64), _step("branch3x3dbl_2", 96, 3), _step("branch3x3dbl_3", 96, 3)]
    single = [_step("branch5x5_1", 48), _step("branch5x5_2", 64, 5)]
    return Mixed(channels, [[_step("branch1x1", 64)], single, double], pooled)


def middle(channels: int, width: int) -> Mixed:
    """A block at 17 x 17 with this many channels, and this many between its convolutions of 7 pixels."""
    single = [_step("branch7x7_1", width), _step("branch7x7_2", width, _WIDE), _step("branch7x7_3", 192, _TALL)]
    double = [
        *(_step("branch7x7dbl_1", width), _step("branch7x7dbl_2", width, _TALL), _step("branch7x7dbl_3", width, _WIDE)),
        *(_step("branch7x7dbl_4", width, _TALL), _step("branch7x7dbl_5", 192, _WIDE)),
    ]
    return Mixed(channels, [[_step("branch1x1", 192)], single, double], 192)


def large(channels: int, *, maximum: bool = False) -> Mixed:
    """A block at 8 x 8 with this many channels, whose pooling takes the mean or the maximum."""
    single = [_step("branch3x3_1", 384), _fork("branch3x3_2", 384)]
    double = [_step("branch3x3dbl_1", 448), _step("branch3x3dbl_2", 384, 3), _fork("branch3x3dbl_3", 384)]
    return Mixed(channels, [[_step("branch1x1", 320)], single, double], 192, maximum)


def large_by_maximum(channels: int) -> Mixed:
    """The last block: ``large`` with the maximum."""
    return large(channels, maximum=True)


_HALVE_SMALL = [
    [_step("branch3x3", 384, 3, 2)],
    [_step("branch3x3dbl_1", 64), _step("branch3x3dbl_2", 96, 3), _step("branch3x3dbl_3", 96, 3, 2)],
]
_HALVE_MIDDLE = [
    [_step("branch3x3_1", 192), _step("branch3x3_2", 320, 3, 2)],
    [
        *(_step("branch7x7x3_1", 192), _step("branch7x7x3_2", 192, _WIDE), _step("branch7x7x3_3", 192, _TALL)),
        _step("branch7x7x3_4", 192, 3, 2),
    ],
]


class InceptionV3(nn.Module):
    """The network, as the file ``pt_inception-2015-12-05-6726825d.pth`` holds it."""

    #: The features that can be asked for, by their number: the last block that they need.
    ENDS = {64: "Conv2d_2b_3x3", 192: "Conv2d_4a_3x3", 768: "Mixed_6e", 2048: "Mixed_7c"}  # noqa: RUF012
    SIDE = 299  # of the pictures, in pixels

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.Mixed_5b = small(192, 32)
        self.Mixed_5c = small(256, 64)
        self.Mixed_5d = small(288, 64)
        self.Mixed_6a = Mixed(288, _HALVE_SMALL)
        self.Mixed_6b = middle(768, 128)
        self.Mixed_6c = middle(768, 160)
        self.Mixed_6d = middle(768, 160)
        self.Mixed_6e = middle(768, 192)
        self.Mixed_7a = Mixed(768, _HALVE_MIDDLE)
        self.Mixed_7b = large(1280)
        self.Mixed_7c = large_by_maximum(2048)
        self.fc = nn.Linear(2048, 1008)  # in the file; no feature needs it

    def forward(self, x: Tensor, dims: int = 2048) -> Tensor:
        """The features of pictures, averaged over their area.

        Args:
            x: (N, 3, 299, 299), in -1 … 1.
            dims: a key of `ENDS`.

        Returns:
            (N, dims).
        """
        for name, block in self.named_children():
            x = block(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
            if name == self.ENDS[dims]:
                break
        return x.mean(dim=(2, 3))


def load_inception(weights: str | os.PathLike[str] | None = None) -> InceptionV3:
    """The network with its weights, for inference.

    Args:
        weights: the file or its folder; None looks where `networks.files.find` does.

    Raises:
        ConfigError: the file holds another network.
        MissingModelError: the weights are nowhere; nothing is downloaded.
    """
    path = find(INCEPTION, weights)
    with torch.device("meta"):
        network = InceptionV3()
    state = load_tensors(path)
    # files from before batch norms counted their batches
    state |= {k: torch.tensor(0) for k in network.state_dict() if k.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not hold {INCEPTION.name}: {error}") from error
    return network.eval().requires_grad_(False)
