"""Dynamic mode decomposition, from the inner products of the computed values alone.

Textbook form, with X = [F_1 … F_{n−1}] and X′ = [F_2 … F_n] (columns are snapshots, one step apart): X = U S Vᵀ to
rank r; Ã = Uᵀ X′ V (S + ridge)⁻¹ = W Λ W⁻¹; modes Φ = X′ V (S + ridge)⁻¹ W; b = argmin ‖Φ b − F_n‖; the forecast
h steps after F_n is Re Φ Λ^h b (Schmid 2010; Tu et al. 2014, arXiv 1312.0041, "exact" modes).

Φ is X′ times a small matrix, so the forecast is a weighted sum of F_2 … F_n, and the weights follow from the inner
products G_ij = F_i · F_j: XᵀX = V S² Vᵀ, and Uᵀ X′ = S⁻¹ Vᵀ (XᵀX′).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cache_dit.config.base import as_number, bad_value, check_choice, check_integer
from cache_dit.engine.predictors.base import Predictor, ahead_of, newest, weigh
from cache_dit.engine.predictors.polynomial import lagrange
from cache_dit.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

MIN_DMD_HISTORY = 4
"""The fewest evenly spaced values that a dynamic mode decomposition is made of."""

_RELATIVE_RANK = 1e-4  # modes below this share of the largest singular value are noise
_RELATIVE_FLOOR = 1e-6  # inner products hold squares: what lies below this share is lost in float64's rounding


def dmd(history: int = 6, rank: int = 0, ridge: float = 1e-8, svd_precision: str = "medium") -> Predictor:
    """Dynamic mode decomposition: the linear map that carries each value to the next is fitted, and carried on.

    It takes the longest run of evenly spaced values up to the newest; where that is shorter than 4, the straight line
    through the last two; `forecast` has the formulas. A fit that is degenerate or not finite gives way to reuse of the
    newest value.

    Args:
        history: how many values it wants, at least 4.
        rank: how many modes; 0: those whose singular value is above 1e-4 of the largest.
        ridge: added to every singular value where it divides, at least 0.
        svd_precision: `"low"`, `"medium"` or `"high"`. All three give the same: the fit is made in float64 from
            the inner products of the values, where none of them saves anything.

    Raises:
        ConfigError: a value cannot work.
    """
    check_integer("history", history, minimum=MIN_DMD_HISTORY)
    check_integer("rank", rank, minimum=0)
    check_choice("svd_precision", svd_precision, choices=("low", "medium", "high"))
    shift = as_number("ridge", ridge)
    if not 0 <= shift < math.inf:
        raise bad_value("ridge", ridge, "a finite number >= 0")
    fit = partial(forecast, rank=rank, ridge=shift)
    return Predictor(f"dmd{history}", history, partial(_weigh_by_gram, fit, history), needs_gram=True)


def _weigh_by_gram(
    fit: Callable[..., list[float]],
    history: int,
    times: Sequence[float],
    target: float,
    gram: Sequence[Sequence[float]],
) -> list[float]:
    if any(len(rows) != len(times) for rows in (gram, *gram)):
        raise ConfigError(f"gram is not valid: expected {len(times)} rows and columns, one for each of the times")
    return weigh(partial(_dmd, fit, gram), history, times, target)


def _dmd(
    fit: Callable[..., list[float]], gram: Sequence[Sequence[float]], times: Sequence[float], target: float
) -> list[float]:
    ahead = ahead_of(times, target)
    count = _evenly_spaced(times)
    older = [0.0] * (len(times) - count)
    if count < MIN_DMD_HISTORY:
        return weigh(lagrange, 2, times, target)
    products = [row[-count:] for row in gram[-count:]]
    if products[-1][-1] == 0:
        return newest(times, target)  # zero: every linear map carries it to zero, and there is nothing to warn of
    return older + fit(products, ahead / (times[-1] - times[-2]))


def _evenly_spaced(times: Sequence[float]) -> int:
    """How many of the newest times lie evenly apart."""
    count = min(len(times), 2)
    while count < len(times) and math.isclose(times[-count] - times[-count - 1], times[-1] - times[-2], rel_tol=1e-9):
        count += 1
    return count


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
    import numpy as np  # which no other predictor needs

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
    import numpy as np

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
