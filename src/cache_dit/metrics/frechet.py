"""The Fréchet distance between two normal distributions, and their means and covariances gathered batch by batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from cache_dit.errors import ConfigError

Array = np.ndarray[Any, np.dtype[np.float64]]


class Moments:
    """Mean and covariance of feature vectors, in float64, without keeping the vectors.

    Batches are merged pairwise (Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979), so that a large mean costs the covariance no digits.

    Attributes:
        count: vectors seen.
        mean: (dims,), of the vectors seen.
    """

    def __init__(self, dims: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(dims)
        self._scatter: Array = np.zeros((dims, dims))  # sum of the outer products of what deviates from the mean

    def add(self, features: np.ndarray[Any, Any]) -> None:
        """Take in a batch (N, dims).

        Raises:
            ConfigError: the shape is another, or a value is not finite.
        """
        batch = np.asarray(features, dtype=np.float64)
        if batch.ndim != 2 or batch.shape[1] != len(self.mean):
            raise ConfigError(f"features have shape {batch.shape}: expected (N, {len(self.mean)})")
        if not np.isfinite(batch).all():
            raise ConfigError("features are NaN or infinite: check the pictures and the network's weights")
        if not len(batch):
            return
        mean, total = batch.mean(axis=0), self.count + len(batch)
        centred, shift = batch - mean, mean - self.mean
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Array:
        """(dims, dims), divided by ``count - 1`` as in ``numpy.cov``.

        Raises:
            ConfigError: fewer than two vectors were seen.
        """
        if self.count < 2:
            raise ConfigError(f"a covariance needs at least 2 pictures: there is {self.count}; pass more of them")
        covariance: Array = self._scatter / (self.count - 1)
        return covariance


def frechet_distance(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁) + tr(Σ₂) − 2 tr((Σ₁ Σ₂)^½), in float64.

    Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982, eq. 4; for features of
    pictures: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, eq. 6. The trace of the root is taken
    from the symmetric Σ₁^½ Σ₂ Σ₁^½, which has the same eigenvalues and needs nothing added when a covariance is
    singular, as it is with fewer pictures than features. (The usual code takes the root of Σ₁ Σ₂ itself, and adds 1e-6
    to both diagonals when that fails.)

    Args:
        mean, other_mean: (dims,).
        covariance, other_covariance: (dims, dims), symmetric.

    Raises:
        ConfigError: the shapes do not fit each other.
    """
    mean, other_mean = np.asarray(mean, np.float64), np.asarray(other_mean, np.float64)
    first, second = np.asarray(covariance, np.float64), np.asarray(other_covariance, np.float64)
    square = (len(mean), len(mean)) if mean.ndim == 1 else None
    if mean.shape != other_mean.shape or first.shape != square or second.shape != square:
        shapes = ", ".join(str(array.shape) for array in (mean, first, other_mean, second))
        raise ConfigError(f"means and covariances have shapes {shapes}: expected (d,), (d, d), (d,), (d, d)")
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    product = root @ second @ root
    trace_of_root = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    distance = float(np.sum((mean - other_mean) ** 2) + np.trace(first) + np.trace(second) - 2 * trace_of_root)
    return max(distance, 0.0)  # rounding may go below
