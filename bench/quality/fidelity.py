"""How close a picture is to the uncached one."""

from __future__ import annotations

import math
from functools import cache

from bench.quality.method import Pixels
from cache_dit.errors import CacheDitError
from cache_dit.metrics.pixels import psnr as _psnr
from cache_dit.metrics.pixels import ssim as _ssim

#: In dB: what a closer picture, or the very same one, counts as in a mean. Its raw sample is None where it is equal.
CEILING = 100.0


def psnr(reference: Pixels, pixels: Pixels) -> float | None:
    """In dB, in float64, of the pixels as the pipeline returns them; None for equal pictures."""
    found = _psnr(reference, pixels, peak=1.0)
    return None if math.isinf(found) else round(found, 4)


def ssim(reference: Pixels, pixels: Pixels) -> float:
    """Structural similarity, at most 1."""
    return round(_ssim(255 * reference, 255 * pixels), 6)


def lpips(reference: Pixels, pixels: Pixels) -> float | None:
    """LPIPS with AlexNet, at least 0; None where its weights are not found."""
    if lpips_missing():
        return None
    from cache_dit.metrics import compute_lpips

    return round(float(compute_lpips(reference, pixels)[0] or 0.0), 6)


@cache
def lpips_missing() -> str:
    """Why LPIPS cannot be computed here, or nothing."""
    import numpy as np

    from cache_dit.metrics import compute_lpips

    try:
        compute_lpips(np.zeros((64, 64, 3), np.float32), np.ones((64, 64, 3), np.float32))
    except (CacheDitError, ImportError) as error:
        return str(error).partition(":")[0]  # what follows names this machine's folders
    return ""
