"""Dynamic mode decomposition from inner products alone: the fit behind the predictor of that name.

Textbook form, with X = [F_1 … F_{n−1}] and X′ = [F_2 … F_n] (columns are snapshots, one step apart): X = U S Vᵀ to
rank r; Ã = Uᵀ X′ V (S + ridge)⁻¹ = W Λ W⁻¹; modes Φ = X′ V (S + ridge)⁻¹ W; b = argmin ‖Φ b − F_n‖; the forecast
h steps after F_n is Re Φ Λ^h b (Schmid 2010; Tu et al. 2014, arXiv 1312.0041, "exact" modes).

Φ is X′ times a small matrix, so the forecast is a weighted sum of F_2 … F_n, and the weights follow from the inner
products G_ij = F_i · F_j: XᵀX = V S² Vᵀ, and Uᵀ X′ = S⁻¹ Vᵀ (XᵀX′).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_RELATIVE_RANK = 1e-4  # modes below this share of the largest singular value are noise
_RELATIVE_FLOOR = 1e-6  # inner products hold squares: what lies below this share is lost in float64's rounding


def forecast(gram: Sequence[Sequence[float]], horizon: float, *, rank: int, ridge: float) -> list[float]:
    """The weights of n evenly spaced snapshots in the forecast after the newest of them.

    Args:
        gram: their n×n inner products, oldest first. Sums over many elements should be accumulated in float64: a
            relative error e here is an error of √e in the small singular values.
        horizon: how far after the newest snapshot, in units of their spacing; may be a fraction.
        rank: how many modes; 0: those whose singular value is above 1e-4 of the largest. Those below 1e-6 are never
            taken.
        ridge: added to every singular value where it divides.

    Returns:
        One weight for each snapshot; all NaN where the fit is degenerate.
    """
    products = np.asarray(gram, dtype=np.float64)
    degenerate = [float("nan")] * len(products)
    if not np.isfinite(products).all():
        return degenerate
    with np.errstate(all="ignore"):  # what overflows shows in the weights
        try:
            weights = _forecast(products, horizon, rank, ridge)
        except np.linalg.LinAlgError:
            return degenerate
    return degenerate if weights is None else [0.0, *map(float, weights)]


def _forecast(products: Array, horizon: float, rank: int, ridge: float) -> Array | None:
    squares, vectors = np.linalg.eigh(products[:-1, :-1])
    singular = np.sqrt(squares.clip(min=0))[::-1]
    floor = _RELATIVE_FLOOR if rank else _RELATIVE_RANK
    count = int(np.count_nonzero(singular > floor * singular[0]))
    count = min(rank, count) if rank else count
    if count == 0:
        return None
    singular, vectors = singular[:count], vectors[:, ::-1][:, :count]
    advanced = vectors / (singular + ridge)
    reduced = (vectors / singular).T @ products[:-1, 1:] @ advanced
    values, modes = np.linalg.eig(reduced)
    modes = advanced @ modes
    # ‖X′(modes·b − e_newest)‖ is ‖R(modes·b − e_newest)‖ for any R with RᵀR = X′ᵀX′; R keeps the condition of X′.
    squares, vectors = np.linalg.eigh(products[1:, 1:])
    root = np.sqrt(squares.clip(min=0))[:, None] * vectors.T
    amplitudes = np.linalg.lstsq(root @ modes, root[:, -1].astype(modes.dtype), rcond=None)[0]
    powers = values.astype(np.complex128) ** horizon
    weights: Array = np.real(modes @ (powers * amplitudes))
    return weights
