"""What a run's features say about every linear predictor: their inner products, (branches · steps)² numbers.

A feature is what the whole stack of blocks adds to its input at one step of one branch. The error of any predictor that
is a weighted sum of earlier features is a quadratic form in these inner products (docs/plan.md), so the features
themselves go as soon as a run is over.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cache_dit.config.base import check_integer

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
Features = npt.NDArray[Any]

MEMORY_LIMIT = 4 * 2**30
"""Bytes of features of one run that are kept in memory; beyond, they lie in a temporary file."""

_TILE = 1 << 18
"""Elements of each feature that are multiplied at a time, in float64."""


class GramStream:
    """Takes the features of one run as they come, and gives their inner products.

    Features are kept in float32 (float64 where they come so), one row each, on the CPU: ``branches · steps · elements``
    numbers while the run lasts. Beyond ``memory_limit`` further rows go to a temporary file that is deleted with them.

    Args:
        steps: the steps of the run.
        memory_limit: bytes that may be kept in memory.
        folder: where the temporary file goes; None: the system's place.

    Raises:
        ConfigError: ``steps`` is no number of steps.
    """

    def __init__(self, steps: int, *, memory_limit: int = MEMORY_LIMIT, folder: str | Path | None = None) -> None:
        check_integer("steps", steps, minimum=1)
        check_integer("memory_limit", memory_limit, minimum=0)
        self.steps = steps
        self.memory_limit = memory_limit
        self.branches: list[str] = []
        self.elements: dict[int, int] = {}  # of each chain's feature
        self.bytes_in_memory = 0
        self.bytes_on_disk = 0
        #: The most that features and tiles ever took in memory.
        self.peak_bytes = 0
        self._rows: dict[tuple[int, str, int], Features] = {}  # by chain, branch, step
        self._folder = folder
        self._file: Any = None

    def add(self, branch: str, step: int, feature: torch.Tensor | Features, *, chain: int = 0) -> None:
        """Keep a feature.

        Args:
            branch: the guidance branch.
            step: the step, from 0; one past the run's end, or that came before, is left out.
            feature: any shape; that of a chain is the same at every step.
            chain: which chain of blocks it is of: the inner products of chains add up.
        """
        if branch not in self.branches:
            self.branches.append(branch)
        if step >= self.steps or (chain, branch, step) in self._rows:
            return
        row = _row(feature)
        if self.elements.setdefault(chain, row.size) != row.size:
            return  # another shape in one run: that step's error is not known, and counts as its whole feature
        self._rows[chain, branch, step] = self._kept(row)

    def gram(self, branches: Sequence[str] | None = None) -> Array:
        """The inner products, shape (branches · steps)²: rows of one branch together; zeros where a step was left out.

        Args:
            branches: their order; None: as they came.
        """
        names = self.branches if branches is None else list(branches)
        total = np.zeros((len(names) * self.steps,) * 2)
        for chain, size in self.elements.items():
            known = [
                (index * self.steps + step, self._rows[chain, name, step])
                for index, name in enumerate(names)
                for step in range(self.steps)
                if (chain, name, step) in self._rows
            ]
            places = [place for place, _ in known]
            part = np.zeros((len(known),) * 2)
            for start in range(0, size, _TILE):
                tile = np.stack([row[start : start + _TILE].astype(np.float64) for _, row in known])
                self._note_peak(tile.nbytes)
                part += tile @ tile.T
            total[np.ix_(places, places)] += part
        return total

    def close(self) -> None:
        """Free the features, and delete the file."""
        self._rows.clear()
        self.bytes_in_memory = self.bytes_on_disk = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _kept(self, row: Features) -> Features:
        if self.bytes_in_memory + row.nbytes <= self.memory_limit:
            self.bytes_in_memory += row.nbytes
            self._note_peak()
            return row
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as its rows
        self._file.seek(self.bytes_on_disk)
        self._file.write(row.tobytes())
        self._file.flush()
        mapped = np.memmap(self._file, dtype=row.dtype, mode="r", offset=self.bytes_on_disk, shape=row.shape)
        self.bytes_on_disk += row.nbytes
        return mapped

    def _note_peak(self, beside: int = 0) -> None:
        self.peak_bytes = max(self.peak_bytes, self.bytes_in_memory + beside)


def _row(feature: Any) -> Features:
    """A feature as one row on the CPU: float64 as it is, all else in float32."""
    if not isinstance(feature, np.ndarray):
        import torch

        kept = torch.float64 if feature.dtype == torch.float64 else torch.float32
        feature = feature.detach().to(device="cpu", dtype=kept, copy=True).numpy()
    kind = np.float64 if feature.dtype == np.float64 else np.float32
    row: Features = np.ascontiguousarray(feature, dtype=kind).reshape(-1)
    return row


def combined(gram: Array, weights: Sequence[float]) -> Array:
    """The inner products of the branches' weighted sum: Σ_bb' ρ_b ρ_b' G_bb', shape steps².

    Args:
        gram: as of `GramStream.gram`.
        weights: ρ, one for each branch.
    """
    rho = np.asarray(weights, dtype=np.float64)
    steps = len(gram) // len(rho)
    blocks = gram.reshape(len(rho), steps, len(rho), steps)
    summed: Array = np.einsum("a,asbt,b->st", rho, blocks, rho)
    return summed
