"""What "equal" means in the tests.

Results of the same kernels on the same shapes are equal bit for bit: :func:`same`. Others differ by rounding:
:func:`close`. A matrix product of another shape (a batch beside its samples, a compiled or fused block) is summed in
another order, and so is a skipped step, which adds a kept residual to its input; which order a kernel takes depends on
the machine. How far two such results may lie apart follows from the dtype, from how many operations lie in sequence,
and from how much an error is multiplied on the way. No test states it by itself; ``test_equality.py`` sees to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DEPTH = 80
"""Operations in sequence in a tiny model: six blocks of a dozen, with what comes before and after them."""

Tensors = Tensor | Sequence[Tensor]


class Agreement(NamedTuple):
    """How far two results lie apart. It is true where rounding explains the distance.

    Args:
        error: the largest difference.
        share: the largest share that an element's difference has in what rounding may make of it.
    """

    error: float
    share: float

    def __bool__(self) -> bool:
        return self.share <= 1


def same(found: Tensors, expected: Tensors) -> bool:
    """Whether two tensors, or two lists of them, are equal bit for bit."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return torch.equal(found, expected)
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def close(
    found: Tensors,
    expected: Tensors,
    *,
    depth: int = DEPTH,
    growth: float = 1,
    dtype: torch.dtype | None = None,
    equal_nan: bool = False,
) -> Agreement:
    """Whether two results are equal to rounding: eps of the dtype for each operation, of the size of what it adds up.

    An element's rounding errors follow its own size and that of its neighbours, which it was summed from: the root
    mean square of them all, and at least one, since inputs and weights of tiny models are of that size.

    Args:
        found, expected: tensors, or lists of them; one expected tensor stands for all.
        depth: how many operations in sequence rounded differently.
        growth: how much an error is multiplied: the sum of the weights' magnitudes for an extrapolation.
        dtype: the coarsest that was computed in; by default the results' own.
        equal_nan: whether NaN is what NaN is expected to be.
    """
    found = [found] if isinstance(found, Tensor) else list(found)
    expected = [expected] * len(found) if isinstance(expected, Tensor) else list(expected)
    assert found, "nothing was compared"
    pairs = zip(found, expected, strict=True)
    return max((_agreement(a, b, depth * growth, dtype, equal_nan) for a, b in pairs), key=lambda one: one.share)


def unlike(found: Tensors, expected: Tensors, *, by: float) -> bool:
    """Whether two results differ by more than ``by``, absolute and relative: far more than rounding makes of them."""
    found, expected = ([one] if isinstance(one, Tensor) else one for one in (found, expected))
    return not all(torch.allclose(a, b, atol=by, rtol=by) for a, b in zip(found, expected, strict=True))


def _agreement(found: Tensor, expected: Tensor, roundings: float, dtype: torch.dtype | None, nan: bool) -> Agreement:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), (
        f"{tuple(found.shape)} of {found.dtype} beside {tuple(expected.shape)} of {expected.dtype}"
    )
    a, b = found.detach().double(), expected.detach().double()
    finite = b[b.isfinite()]
    typical = max(1.0, float(finite.square().mean().sqrt())) if finite.numel() else 1.0
    allowed = roundings * torch.finfo(dtype or expected.dtype).eps * (typical + b.abs())
    equal = (a == b) | (a.isnan() & b.isnan() & nan)
    error = (a - b).abs().where(a.isfinite() & b.isfinite(), torch.inf).where(~equal, 0.0)
    share = (error / allowed).nan_to_num(nan=torch.inf, posinf=torch.inf).where(~equal, 0.0)
    return Agreement(float(error.max()), float(share.max())) if share.numel() else Agreement(0.0, 0.0)
