"""The past of one stream: a few snapshots, and the one weighted sum that every predictor comes down to."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class History:
    """The last ``capacity`` snapshots of one stream (a residual or a state), with the steps they were taken at.

    Args:
        capacity: how many snapshots to keep, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.times: list[float] = []
        self.snapshots: list[torch.Tensor] = []

    def append(self, time: float, snapshot: torch.Tensor) -> None:
        """Keep ``snapshot`` (detached), dropping the oldest, or all where shape, dtype or device changed."""
        if self.snapshots and not alike(self.snapshots[-1], snapshot):
            self.clear()
        if len(self.snapshots) == self.capacity:
            del self.times[0], self.snapshots[0]
        self.times.append(time)
        self.snapshots.append(snapshot.detach())

    def weighted_sum(self, coefficients: Sequence[float]) -> torch.Tensor:
        """Σ c_j · snapshot_j over the newest ``len(coefficients)`` snapshots.

        Half-precision snapshots are summed in float32, since the coefficients of an extrapolation alternate in sign.
        One coefficient of exactly 1 gives the snapshot itself, not a copy.
        """
        chosen = self.snapshots[-len(coefficients) :]
        if len(chosen) == 1 and coefficients[0] == 1.0:
            return chosen[0]
        dtype = chosen[0].dtype
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        total = chosen[0].to(wide) * coefficients[0]
        for snapshot, coefficient in zip(chosen[1:], coefficients[1:], strict=True):
            total.add_(snapshot, alpha=coefficient)
        return total.to(dtype)

    def clear(self) -> None:
        """Forget everything."""
        self.times.clear()
        self.snapshots.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held by the snapshots."""
        return sum(snapshot.nbytes for snapshot in self.snapshots)

    def __len__(self) -> int:
        return len(self.snapshots)


def alike(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether two tensors (or two Nones) agree in shape, dtype and device."""
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
