"""The networks of LPIPS: the trunks of torchvision's AlexNet and VGG16, and the heads.

Their layers are made here, so that neither torchvision, whose wheels cannot be imported beside a PyTorch without CUDA,
nor the package `lpips`, which imports it, is needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

#: The heads of LPIPS 0.1, by its authors: ``alex.0`` … ``vgg.4``, each (channels,), all ≥ 0.
_HEADS = Path(__file__).with_name("lpips_heads.safetensors")

# torchvision's `features`: (channels out, kernel, stride, padding), each followed by a ReLU; None is a pooling
_Layers = tuple[tuple[int, int, int, int] | None, ...]
_ALEX: _Layers = ((64, 11, 4, 2), None, (192, 5, 1, 2), None, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
_VGG_CHANNELS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)
_VGG: _Layers = tuple(None if channels is None else (channels, 3, 1, 1) for channels in _VGG_CHANNELS)
_LAYERS = {"alex": (_ALEX, 3), "vgg": (_VGG, 2)}  # and the size of the pooling's window


def features(network: str) -> nn.Sequential:
    """torchvision's `features` of AlexNet (``"alex"``) or VGG16 (``"vgg"``), without weights."""
    layers, window = _LAYERS[network]
    modules: list[nn.Module] = []
    channels = 3
    for layer in layers:
        if layer is None:
            modules.append(nn.MaxPool2d(window, 2))
        else:
            out, kernel, stride, padding = layer
            modules += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
            channels = out
    return nn.Sequential(*modules)


def convolutions(network: str) -> list[int]:
    """The places of the convolutions in torchvision's `features` of ``"alex"`` or ``"vgg"``, in order."""
    with torch.device("meta"):
        return [index for index, module in enumerate(features(network)) if isinstance(module, nn.Conv2d)]


def load_heads(network: str) -> list[Tensor]:
    """The weights of the channels of each of the five layers that are compared, (channels,)."""
    with safe_open(_HEADS, framework="pt") as file:
        return [file.get_tensor(f"{network}.{index}") for index in range(5)]
