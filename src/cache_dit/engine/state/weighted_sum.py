"""anchor + Σ c_j · s_j: the one sum that every prediction comes down to, in as few passes over memory as there can be.

Two kernels compute it. ``plain`` is eager torch: a pass for each snapshot, in pieces where it converts. ``Compiled`` is
one generated kernel that reads each tensor once: the choice on CUDA. Both sum half precision in float32, since the
coefficients of an extrapolation alternate in sign.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch

logger = logging.getLogger(__name__)

#: Elements that are converted at a time on a processor, so that what is between two dtypes stays small.
_PIECE = 1 << 20


class Kernel(Protocol):
    """A way to compute out ← anchor + Σ weight_j · scale_j · part_j."""

    def __call__(
        self,
        out: torch.Tensor,
        parts: Sequence[torch.Tensor],
        weights: Sequence[float],
        *,
        scales: Sequence[torch.Tensor] | None = None,
        anchor: torch.Tensor | None = None,
    ) -> None:
        """Compute the sum.

        Args:
            out: what the result is written to; it shares no memory with the others.
            parts: at least one tensor of the shape and device of ``out``, all of one dtype.
            weights: one number for each part.
            scales: one 0-dim tensor for each part, on the parts' device; None: 1.
            anchor: a tensor of the shape, dtype and device of ``out``, strided in any way; None: zero.
        """


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values of ``dtype`` are summed in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weighted_sum(
    out: torch.Tensor,
    parts: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    scales: Sequence[torch.Tensor] | None = None,
    anchor: torch.Tensor | None = None,
) -> None:
    """out ← anchor + Σ weight_j · scale_j · part_j, by the kernel for the device; arguments as in ``Kernel``."""
    one_pass = len(parts) == 1 and parts[0].dtype == out.dtype == wide_dtype(out.dtype)
    kernel = plain if one_pass or torch.compiler.is_compiling() else kernel_for(out.device.type)
    kernel(out, parts, weights, scales=scales, anchor=anchor)


@functools.cache
def kernel_for(device_type: str) -> Kernel:
    """The kernel for devices of a type, chosen once: compiled on CUDA where Triton is installed, else eager torch."""
    if device_type != "cuda":
        return plain
    if importlib.util.find_spec("triton") is None:
        logger.warning("cache_dit: Triton is not installed: predictions are summed by eager torch, in several passes")
        return plain
    return Compiled()


def plain(
    out: torch.Tensor,
    parts: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    scales: Sequence[torch.Tensor] | None = None,
    anchor: torch.Tensor | None = None,
) -> None:
    """The sum by eager torch; see ``Kernel``."""
    if parts[0].dtype == out.dtype == wide_dtype(out.dtype) and scales is None:
        if anchor is None:
            torch.mul(parts[0], weights[0], out=out)
        else:
            torch.add(anchor, parts[0], alpha=weights[0], out=out)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            out.add_(part, alpha=weight)
        return
    for out_piece, *others in pieces([out, *parts] if anchor is None else [out, *parts, anchor]):
        _convert_and_sum(out_piece, others[: len(parts)], weights, scales, None if anchor is None else others[-1])


def _convert_and_sum(
    out: torch.Tensor,
    parts: Sequence[torch.Tensor],
    weights: Sequence[float],
    scales: Sequence[torch.Tensor] | None,
    anchor: torch.Tensor | None,
) -> None:
    wide = wide_dtype(out.dtype)
    total = torch.zeros_like(out, dtype=wide) if anchor is None else anchor.to(wide, copy=True)
    for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        if scales is None:
            total.add_(part.to(wide), alpha=weight)
        else:
            total.addcmul_(part.to(wide), scales[index], value=weight)
    out.copy_(total)


def pieces(tensors: Sequence[torch.Tensor], size: int = _PIECE) -> Iterator[Sequence[torch.Tensor]]:
    """Tensors of one shape, cut alike into views of about ``size`` elements on a processor, left whole elsewhere."""
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= size:
        yield tensors
        return
    dim = max(range(first.dim()), key=lambda d: first.shape[d])
    rows = max(1, size * first.shape[dim] // first.numel())
    yield from zip(*(tensor.split(rows, dim) for tensor in tensors), strict=True)


class Compiled:
    """The sum by one kernel of ``torch.compile``; see ``Kernel``.

    The weights are a small tensor and the sizes symbols, so that neither another step nor another size compiles anew:
    once for each number of parts, with and without an anchor, dtype, and number of dimensions. Where the compiler
    fails, one line says so, and eager torch computes the sum from then on.

    Args:
        backend: torch.compile's.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        self.broken = False
        self._compiled: dict[tuple[Any, ...], Callable[..., None]] = {}

    def __call__(
        self,
        out: torch.Tensor,
        parts: Sequence[torch.Tensor],
        weights: Sequence[float],
        *,
        scales: Sequence[torch.Tensor] | None = None,
        anchor: torch.Tensor | None = None,
    ) -> None:
        """Compute the sum; arguments as in ``Kernel``."""
        if self.broken:
            plain(out, parts, weights, scales=scales, anchor=anchor)
            return
        try:
            self._call(out, parts, weights, scales, anchor)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            plain(out, parts, weights, scales=scales, anchor=anchor)
            self.broken = True
            reason = str(error).partition("\n")[0]
            logger.warning("cache_dit: the compiler failed (%s): predictions are summed by eager torch", reason)

    def _call(
        self,
        out: torch.Tensor,
        parts: Sequence[torch.Tensor],
        weights: Sequence[float],
        scales: Sequence[torch.Tensor] | None,
        anchor: torch.Tensor | None,
    ) -> None:
        vector = _on_device(weights, wide_dtype(out.dtype), out.device)
        if scales is not None:
            vector = vector * torch.stack(list(scales))
        tensors = [out, *parts] if anchor is None else [out, anchor, *parts]
        if all(tensor.is_contiguous() for tensor in tensors):
            tensors = [tensor.view(-1) for tensor in tensors]
        key = (len(parts), anchor is None, parts[0].dtype, out.dtype, tensors[0].dim())
        if key not in self._compiled:
            function: Callable[..., None] = _sum if anchor is None else _anchored_sum
            self._compiled[key] = self._compile(cast(types.FunctionType, function), key)
        with torch.no_grad():
            self._compiled[key](vector, *tensors)

    def _compile(self, function: types.FunctionType, key: tuple[Any, ...]) -> Callable[..., None]:
        """Compile a copy of a function with a code of its own: torch limits how often one code is compiled."""
        code = function.__code__.replace(co_name=f"{function.__name__}_{'_'.join(map(str, key))}")
        copy = types.FunctionType(code, function.__globals__)
        compiled: Callable[..., None] = torch.compile(copy, backend=self.backend, fullgraph=True, dynamic=True)
        return compiled


def _on_device(weights: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The weights as a tensor, sent without waiting for the device."""
    on_cuda = device.type == "cuda"
    return torch.tensor(weights, dtype=dtype, pin_memory=on_cuda).to(device, non_blocking=on_cuda)


def _sum(weights: torch.Tensor, out: torch.Tensor, *parts: torch.Tensor) -> None:
    total = parts[0].to(weights.dtype) * weights[0]
    for index in range(1, len(parts)):
        total = total + parts[index].to(weights.dtype) * weights[index]
    out.copy_(total)


def _anchored_sum(weights: torch.Tensor, out: torch.Tensor, anchor: torch.Tensor, *parts: torch.Tensor) -> None:
    total = anchor.to(weights.dtype)
    for index in range(len(parts)):
        total = total + parts[index].to(weights.dtype) * weights[index]
    out.copy_(total)
