"""PSNR and the picture of a difference."""

import math

import numpy as np
import pytest

from cache_dit.demo.fidelity import AMPLIFICATION, difference, psnr

GREY = np.full((4, 4, 3), 0.5, dtype=np.float32)


@pytest.mark.parametrize(("offset", "decibels"), [(0.1, 20.0), (0.01, 40.0), (0.001, 60.0)])
def test_psnr_is_ten_times_the_logarithm_of_the_squared_error(offset: float, decibels: float):
    assert psnr(GREY, GREY.astype(np.float64) + offset) == pytest.approx(decibels, abs=1e-6)


def test_psnr_is_computed_in_float64():
    # In float32 the square of so small a difference is lost beside 1.
    assert psnr(GREY.astype(np.float64), GREY.astype(np.float64) + 1e-12) == pytest.approx(240.0, abs=1e-3)


def test_equal_pictures_have_infinite_psnr():
    assert psnr(GREY, GREY.copy()) == math.inf


def test_the_difference_is_amplified_and_clipped():
    other = GREY.copy()
    other[0, 0] = (0.4, 0.6, 1.0)
    shown = difference(GREY, other)
    assert shown[0, 0] == pytest.approx([0.1 * AMPLIFICATION, 0.1 * AMPLIFICATION, 1.0], abs=1e-6)
    assert not shown[1:].any()
