"""Keeping a GPU's tensors in the host's memory: there and back on a stream of their own, with no wait of the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class PinnedTransfer:
    """Copies tensors between one CUDA device and pinned memory, in order, beside what the device computes.

    All copies run on one stream, so a buffer that is written anew is not written before what was read from it has left.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._arriving: dict[int, torch.Tensor] = {}

    @staticmethod
    def buffer(like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Pinned memory for tensors like one, as ``dtype``."""
        return torch.empty_like(like, dtype=dtype, device="cpu", pin_memory=True)

    def send(self, tensor: torch.Tensor, buffer: torch.Tensor) -> None:
        """Copy a tensor of the device into a buffer; its memory is not used for anything else before that is done."""
        self._arriving.clear()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            buffer.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)

    def start(self, buffers: Sequence[torch.Tensor]) -> None:
        """Begin to bring buffers back, for a ``fetch`` to come."""
        with torch.cuda.stream(self.stream):
            for buffer in buffers:
                if id(buffer) not in self._arriving:
                    self._arriving[id(buffer)] = buffer.to(self.device, non_blocking=True)

    def fetch(self, buffers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies of buffers on the device, for the current stream; the stream waits for them, the host does not."""
        self.start(buffers)
        tensors = [self._arriving[id(buffer)] for buffer in buffers]
        self._arriving.clear()
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(current)  # their memory belongs to this stream
        return tensors
