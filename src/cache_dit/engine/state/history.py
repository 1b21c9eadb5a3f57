"""The past of one stream: a few snapshots, where and as what they are kept, and what is predicted from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cache_dit.config.base import bad_value, check_integer
from cache_dit.engine.state.measure import read_back
from cache_dit.engine.state.transfer import PinnedTransfer
from cache_dit.engine.state.weighted_sum import pieces, weighted_sum, wide_dtype

#: What all snapshots of a history have in common: shape, dtype and device.
Kind = tuple[torch.Size, torch.dtype, torch.device]


class History:
    """The last ``capacity`` snapshots of one stream (a residual or a state), with the times they were taken at.

    Snapshots are kept as they are, or on another device, or as another dtype. In float8, and in float16 where they are
    of another dtype, each has one scale: its largest magnitude over the format's, found without a host read.

    CUDA snapshots kept on ``"cpu"`` lie in pinned memory. They travel both ways on a stream of their own while the
    device computes, and the host waits for neither. Where a snapshot is converted, the memory of the oldest is used for
    the newest.

    Args:
        capacity: how many snapshots to keep, at least 1.
        device: where to keep them; None: where they are.
        dtype: as what to keep them, a floating dtype or its name; None: as what they are.

    Raises:
        ConfigError: a value cannot work.
    """

    def __init__(
        self,
        capacity: int,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        check_integer("capacity", capacity, minimum=1)
        self.capacity = capacity
        self.device = None if device is None else _device(device)
        self.dtype = _floating(dtype)
        #: When the snapshots were taken, in the caller's unit.
        self.times: list[float] = []
        #: What the snapshots look like; None: there are none.
        self.kind: Kind | None = None
        #: Whether eager torch adds them up as they are: on a processor, and as wide as the sum.
        self.plain = False
        self._place: torch.device | None = None  # where they are kept
        self._converts = False
        self._tensors: list[torch.Tensor] = []  # as they are kept, the oldest first
        self._scales: list[torch.Tensor | None] = []  # what each is to be multiplied by
        self._transfer: PinnedTransfer | None = None
        self._products: list[list[float]] = []  # the lower triangle of the Gram matrix, as far as it was asked for

    def append(self, time: float, snapshot: torch.Tensor) -> bool:
        """Keep a snapshot (detached; not copied where nothing is converted), and drop the oldest beyond ``capacity``.

        It takes the place of one of the same time. Where shape, dtype or device changed, all earlier ones are dropped.

        Returns:
            Whether other bytes may be held than before.
        """
        if snapshot.requires_grad:
            snapshot = snapshot.detach()
        if (snapshot.shape, snapshot.dtype, snapshot.device) != self.kind:
            self._begin(snapshot)
        spare = scale = None
        again = bool(self.times) and self.times[-1] == time
        if again or len(self.times) == self.capacity:  # it takes the place of the newest, or of the oldest
            place = -1 if again else 0
            spare = self._tensors.pop(place)
            del self.times[place], self._scales[place]
            if self._products:
                self._forget_products(len(self.times) if again else 0)
        if self._converts:
            snapshot, scale = self._converted(snapshot, spare)
        self._tensors.append(snapshot)
        self._scales.append(scale)
        self.times.append(time)
        return spare is None

    def fits(self, tensor: torch.Tensor | None) -> bool:
        """Whether a tensor has the shape, dtype and device of the snapshots; None fits where there are none."""
        if tensor is None or self.kind is None:
            return tensor is None and self.kind is None
        shape, dtype, device = self.kind
        return tensor.shape == shape and tensor.dtype == dtype and tensor.device == device

    def predict(
        self, coefficients: Sequence[float], anchor: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """anchor + Σ c_j · s_j over the newest ``len(coefficients)`` snapshots.

        Half precision is summed in float32 and rounded once. A snapshot whose coefficient is 0 is not read.

        Args:
            coefficients: one for each of the newest snapshots, oldest first.
            anchor: a tensor that fits; None: zero.
            out: what to write to, a tensor or view that fits and shares no memory with the anchor; None: a new tensor.

        Returns:
            The sum, with the dtype and on the device of what was appended. Without anchor and ``out``, a coefficient
            of 1 alone gives the very tensor that is kept, where it is kept as it came: it must not be written to.

        Raises:
            ConfigError: there are no coefficients, or more than snapshots.
        """
        if self.kind is None or not 1 <= len(coefficients) <= len(self.times):
            raise bad_value("coefficients", list(coefficients), f"1 to {len(self.times)} numbers, one for a snapshot")
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.predict(coefficients, anchor, out)
        oldest = len(self.times) - len(coefficients)
        weights: list[float] = []
        parts: list[torch.Tensor] = []
        scales: list[torch.Tensor] = []
        for place, coefficient in enumerate(coefficients, start=oldest):
            if coefficient or (not parts and place == len(self.times) - 1):
                weights.append(coefficient)
                parts.append(self._tensors[place])
                if (scale := self._scales[place]) is not None:
                    scales.append(scale)
        if self._transfer is not None or self._place != self.kind[2]:
            parts = self._fetched(parts)
        if out is None:
            if weights == [1.0] and not scales and parts[0].dtype == self.kind[1]:
                return parts[0] if anchor is None else anchor + parts[0]
            out = torch.empty_like(parts[0] if anchor is None else anchor, dtype=self.kind[1])
        weighted_sum(out, parts, weights, scales=scales or None, anchor=anchor)
        return out

    def predict_with(
        self, other: History, coefficients: Sequence[float], anchor: torch.Tensor, other_anchor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``predict`` over two ``plain`` histories with the same coefficients, by one operator for each of these.

        Args:
            other: the other history.
            coefficients: as for ``predict``.
            anchor, other_anchor: what is added to; each fits its history.
        """
        count = len(coefficients)
        sums: tuple[torch.Tensor, ...] | list[torch.Tensor] = ()
        kept = zip(coefficients, self._tensors[-count:], other._tensors[-count:], strict=True)
        for place, (coefficient, *pair) in enumerate(kept, start=1):
            if sums and coefficient:
                torch._foreach_add_(sums, pair, alpha=coefficient)
            elif coefficient or (not sums and place == count):
                sums = torch._foreach_add((anchor, other_anchor), pair, alpha=coefficient)
        return sums[0], sums[1]

    def prefetch(self, count: int) -> None:
        """Begin to bring the newest ``count`` snapshots back from pinned memory, for the ``predict`` to come."""
        if self._transfer is not None and count > 0:
            self._transfer.start(self._tensors[-count:])

    def gram(self) -> list[list[float]]:
        """The inner products of the snapshots, summed in float64: row i, column j is <s_i, s_j>.

        What was computed is kept. The rows of snapshots that are new since then cost one host read.
        """
        known, count = len(self._products), len(self.times)
        if known < count:
            scales = [scale for scale in self._scales if scale is not None] or None
            self._products += _lower_rows(self._fetched(self._tensors), scales, range(known, count))
        return [[self._products[max(i, j)][min(i, j)] for j in range(count)] for i in range(count)]

    def keep_newest(self) -> None:
        """Forget all snapshots but the newest."""
        del self.times[:-1], self._tensors[:-1], self._scales[:-1]
        self._products.clear()

    def clear(self) -> None:
        """Forget everything, and free it."""
        self.times.clear()
        self._tensors.clear()
        self._scales.clear()
        self._products.clear()
        self.kind = self._place = self._transfer = None

    @property
    def nbytes(self) -> int:
        """Bytes held, as they are kept."""
        return sum(self.bytes_by_device.values())

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """Bytes held on each device, e.g. ``{"cuda:0": 8, "cpu": 655360}``."""
        held: dict[str, int] = {}
        for tensor in (*self._tensors, *self._scales):
            if tensor is not None:
                held[str(tensor.device)] = held.get(str(tensor.device), 0) + tensor.nbytes
        return held

    def __len__(self) -> int:
        return len(self.times)

    def _begin(self, snapshot: torch.Tensor) -> None:
        self.clear()
        self.kind = (snapshot.shape, snapshot.dtype, snapshot.device)
        self._place = _place(snapshot.device, self.device)
        self._converts = (self._place, self.dtype or snapshot.dtype) != (snapshot.device, snapshot.dtype)
        self._transfer = _transfer(snapshot.device, self._place)
        wide = snapshot.dtype is wide_dtype(snapshot.dtype)
        self.plain = snapshot.device.type == "cpu" and wide and not self._converts

    def _forget_products(self, place: int) -> None:
        """Forget the inner products with one snapshot."""
        del self._products[place : place + 1]
        for row in self._products[place:]:
            del row[place]

    def _converted(
        self, snapshot: torch.Tensor, spare: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A snapshot as it is kept, and its scale: written into ``spare``, which was the oldest, or into new memory."""
        device, dtype = self._place, self.dtype or snapshot.dtype
        scale = None
        if dtype != snapshot.dtype:
            scale = _scale(snapshot, dtype) if _needs_scale(dtype) else None
            snapshot = snapshot if scale is None else snapshot.to(scale.dtype) / scale
        if spare is None:
            with torch.inference_mode(False):  # a buffer made inside could not be written to outside
                if self._transfer is None:
                    spare = torch.empty_like(snapshot, dtype=dtype, device=device)
                else:
                    spare = self._transfer.buffer(snapshot, dtype)
        if self._transfer is None:
            spare.copy_(snapshot)
        else:
            self._transfer.send(snapshot.to(dtype), spare)
        return spare, scale

    def _fetched(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Kept tensors, in the dtype they are kept as, on the device that they came from."""
        if self._transfer is not None:
            return self._transfer.fetch(tensors)
        if self.kind is None or self._place == self.kind[2]:
            return list(tensors)
        return [tensor.to(self.kind[2]) for tensor in tensors]


def alike(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether two tensors (or two Nones) agree in shape, dtype and device."""
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and first.dtype == second.dtype and first.device == second.device


def _place(home: torch.device, wanted: torch.device | None) -> torch.device:
    """Where to keep snapshots from ``home``: "cuda" is any GPU, so that those of "cuda:1" stay."""
    return home if wanted is None or (wanted.index is None and wanted.type == home.type) else wanted


def _transfer(home: torch.device, place: torch.device) -> PinnedTransfer | None:
    """What carries CUDA snapshots to the host's memory and back; None: they stay, or travel as torch sees fit."""
    return PinnedTransfer(home) if (home.type, place.type) == ("cuda", "cpu") else None


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise bad_value("device", device, "a device, e.g. 'cpu' or 'cuda:1'") from error


def _floating(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    raise bad_value("dtype", dtype, "a floating dtype or its name, e.g. 'bfloat16' or 'float8_e4m3fn'")


def _needs_scale(dtype: torch.dtype) -> bool:
    """Whether a format's range is so small that values may lie outside."""
    return torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max


def _scale(snapshot: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    wide = wide_dtype(snapshot.dtype)
    if snapshot.numel() == 0:
        return torch.ones((), dtype=wide, device=snapshot.device)
    largest: torch.Tensor = torch.linalg.vector_norm(snapshot, torch.inf, dtype=wide)
    return (largest / torch.finfo(dtype).max).clamp_min(torch.finfo(wide).tiny)


def _lower_rows(parts: Sequence[torch.Tensor], scales: Sequence[torch.Tensor] | None, rows: range) -> list[list[float]]:
    """Rows of the lower triangle of the parts' Gram matrix, by one host read."""
    wide = torch.float32 if parts[0].device.type == "mps" else torch.float64  # there is no other there
    found = [torch.zeros(row + 1, dtype=wide, device=parts[0].device) for row in rows]
    for piece in pieces(parts):
        matrix = torch.stack([part.flatten().to(wide) for part in piece])
        for row, products in zip(rows, found, strict=True):
            products += matrix[: row + 1] @ matrix[row]
    if scales is not None:
        factors = torch.stack(list(scales)).to(wide)
        found = [products * factors[: row + 1] * factors[row] for row, products in zip(rows, found, strict=True)]
    numbers = iter(read_back(torch.cat(found)))
    return [[next(numbers) for _ in range(row + 1)] for row in rows]
