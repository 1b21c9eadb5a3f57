"""Some samples of a batch: taken out of what a block is called with, and put back where they belong."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch


class UnclearError(Exception):
    """Whether something in a block's arguments belongs to single samples cannot be told."""


#: What says nothing of single samples.
_SHARED = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum)


class BatchSplit:
    """Some samples of a batch: their part of what a block is called with, and its results put back in their places.

    Args:
        rows: the samples' numbers.
        batch: how many there are in all.
        device: where the streams are.
    """

    def __init__(self, rows: Iterable[int], batch: int, device: torch.device) -> None:
        self.batch = batch
        self.places = places(rows, device)

    def part(self, value: Any, streams: Sequence[Any]) -> Any:
        """The samples' part of arguments: of each tensor that has the batch's length, however deep it lies.

        What there is nothing to take from is the same object still.

        Args:
            value: the arguments.
            streams: H and E as the block gets them.

        Raises:
            UnclearError: if something could be of single samples and need not be: a tensor of the batch's length where
                the streams have that length along another dimension too (as a table of positions has), rows of the
                streams' width that are neither samples nor tokens (as modulations of two times are), a mask for each
                head of each sample, a list of the batch's length, an object that could hold anything; or a key-value
                cache, which a block may write into.
        """
        if isinstance(value, torch.Tensor):
            return self._part_of_tensor(value, streams)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            parts = self.part(items, streams)
            return value if parts is items else dataclasses.replace(value, **parts)
        if isinstance(value, Mapping):
            if any("cache" in str(key) and not isinstance(item, _SHARED) for key, item in value.items()):
                raise UnclearError("a key-value cache")
            taken = {key: self.part(item, streams) for key, item in value.items()}
            return value if all(taken[key] is item for key, item in value.items()) else taken
        if isinstance(value, (list, tuple)):
            return self._part_of_sequence(value, streams)
        if isinstance(value, _SHARED) or callable(value):
            return value
        raise UnclearError(f"an object of class {type(value).__name__}")

    def _part_of_tensor(self, tensor: torch.Tensor, streams: Sequence[Any]) -> torch.Tensor:
        if tensor.dim() == 0:
            return tensor
        shapes = [stream.shape for stream in streams if isinstance(stream, torch.Tensor)]
        lengths = {length for shape in shapes for length in shape[1:-1]} | {sum(sum(shape[1:2]) for shape in shapes)}
        if tensor.shape[0] != self.batch:
            wide = any(tensor.shape[-1] % shape[-1] == 0 for shape in shapes)
            per_head = tensor.shape[0] % self.batch == 0 and tensor.shape[-1] in lengths
            unclear = wide if tensor.dim() == 2 else tensor.dim() > 2 and per_head
            if unclear and tensor.shape[0] not in {0, 1, *lengths}:
                raise UnclearError(f"a tensor of shape {tuple(tensor.shape)}")
            return tensor
        if self.batch in lengths and tensor.shape not in shapes:
            raise UnclearError(f"a tensor of shape {tuple(tensor.shape)}")
        return tensor.index_select(0, self.places.to(tensor.device))

    def _part_of_sequence(self, value: Any, streams: Sequence[Any]) -> Any:
        parts = [self.part(item, streams) for item in value]
        if any(part is not item for part, item in zip(parts, value, strict=True)):
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, list) and len(value) == self.batch:
            raise UnclearError(f"a list of {self.batch} items")
        return value

    def put(self, whole: Any, part: Any) -> Any:
        """A stream with the samples' part in its places; the others are zero where the stream looked otherwise."""
        if not isinstance(part, torch.Tensor):
            return part
        fits = isinstance(whole, torch.Tensor) and whole.dtype == part.dtype
        if not fits or whole.shape != (self.batch, *part.shape[1:]):
            whole = part.new_zeros(self.batch, *part.shape[1:])
        return whole.index_copy(0, self.places, part)


def places(rows: Iterable[int], device: torch.device) -> torch.Tensor:
    """Numbers of samples to select by, sent without waiting for the device."""
    on_cuda = device.type == "cuda"
    return torch.tensor(list(rows), pin_memory=on_cuda).to(device, non_blocking=on_cuda)
