"""Small helpers for scripts around the cache."""

from __future__ import annotations

import builtins
import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch


def dummy_print(*args: Any, **kwargs: Any) -> None:
    """Print nothing, whatever is passed: what ``print`` is within ``disable_print``."""


def print_tensor(tensor: torch.Tensor, name: str = "tensor") -> None:
    """Print what a tensor is, in one line: its shape, type and device, and the mean, deviation and range of its values.

    Args:
        tensor: the tensor; its values are read back from its device.
        name: what it is called in the line, which begins with the rank in a distributed run.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = f"[rank {torch.distributed.get_rank()}] " if distributed else ""
    values = tensor.detach().double().flatten() if tensor.numel() else None
    numbers = "empty"
    if values is not None:
        numbers = (
            f"mean {values.mean():.6g}, std {values.std(correction=0):.6g}, min {values.min():.6g}, "
            f"max {values.max():.6g}"
        )
    print(f"{rank}{name}: {tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}, {numbers}")


@contextlib.contextmanager
def disable_print() -> Iterator[None]:
    """Within it ``print`` does nothing, in every thread: for ``with disable_print(): pipe(…)`` on all ranks but one."""
    plain = builtins.print
    builtins.print = dummy_print
    try:
        yield
    finally:
        builtins.print = plain


def maybe_empty_cache() -> None:
    """Collect garbage, and give memory that nothing uses back to the device, where there is one."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()


def is_diffusers_at_least_0_3_5() -> bool:
    """Whether the installed diffusers is 0.35 or newer."""
    import diffusers
    from packaging.version import Version

    return Version(diffusers.__version__) >= Version("0.35")
