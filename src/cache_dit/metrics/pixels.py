"""PSNR, SSIM and MSE: metrics of the pixels themselves, in float64, on a scale of 0 … 255."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from cache_dit.config.base import bad_value
from cache_dit.errors import ConfigError, MissingDependencyError
from cache_dit.metrics.averages import Mean, Metric, mean_over_frames, mean_over_pairs
from cache_dit.metrics.pairs import PathLike
from cache_dit.metrics.pictures import Pixels, Source, read_levels

PSNR_TYPES = ("custom", "skimage")

PEAK = 255.0
"""The largest value of a pixel."""

_WINDOW = 7  # of SSIM, in pixels each way


class _Chosen:
    psnr_type = "custom"


def set_psnr_type(psnr_type: str) -> None:
    """Choose who computes PSNR in this process. Both give the same numbers.

    Args:
        psnr_type: "custom" (the default), `psnr`, or "skimage", scikit-image's `peak_signal_noise_ratio`.

    Raises:
        ConfigError: it is neither.
    """
    if psnr_type not in PSNR_TYPES:
        raise bad_value("psnr_type", psnr_type, " or ".join(repr(name) for name in PSNR_TYPES))
    _Chosen.psnr_type = psnr_type


def get_psnr_type() -> str:
    """Who computes PSNR: "custom" or "skimage"."""
    return _Chosen.psnr_type


def mse(true: Pixels, test: Pixels) -> float:
    """The mean squared error of two arrays of equal shape, in float64, in squared units of theirs.

    Raises:
        ConfigError: their shapes differ.
    """
    if np.shape(true) != np.shape(test):
        raise ConfigError(f"arrays of shapes {np.shape(true)} and {np.shape(test)} cannot be compared: pass equal ones")
    difference = np.subtract(true, test, dtype=np.float64)
    return float(np.mean(difference * difference))


def psnr(true: Pixels, test: Pixels, *, peak: float = PEAK) -> float:
    """Peak signal-to-noise ratio in dB: 10 · log10(peak² / MSE), in float64. Infinite for equal arrays.

    Args:
        true, test: arrays of equal shape.
        peak: the largest value that a pixel can have: 255, or 1 for arrays within 0 … 1.
    """
    error = mse(true, test)
    return math.inf if error == 0 else 10 * math.log10(peak * peak / error)


def ssim(true: Pixels, test: Pixels) -> float:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4), eq. 13): scikit-image's, with its window of 7 × 7.

    Args:
        true, test: (H, W, 3) on a scale of 0 … 255; the mean over pixels and channels is taken.

    Raises:
        MissingDependencyError: scikit-image is not installed.
        ConfigError: a side is shorter than 7 pixels.
    """
    height, width = true.shape[:2]
    if min(height, width) < _WINDOW:
        raise ConfigError(f"SSIM needs at least {_WINDOW}x{_WINDOW} pixels, these pictures have {width}x{height}")
    measured = _skimage_metrics().structural_similarity(true, test, win_size=_WINDOW, channel_axis=2, data_range=PEAK)
    return float(measured)


def compute_psnr(image_true: Source, image_test: Source) -> Mean:
    """Peak signal-to-noise ratio in dB, see `psnr`: ``(value, n)``, the mean over ``n`` pairs of pictures.

    Args:
        image_true, image_test: two files, two folders (files are paired by name, see the guide), two arrays of shape
            (H, W, 3), uint8 or floating within 0 … 1, or two of Pillow's images.

    Returns:
        ``(value, n)``. Identical pictures have an infinite PSNR: they count in ``n`` and in the result's ``infinite``,
        and are left out of the mean. ``(None, None)`` where all of several pairs are identical; ``(inf, 1)`` for one.

    Raises:
        ConfigError: something cannot be read or has no partner, or two pictures differ in size.
    """
    return mean_over_pairs(_psnr_of(_Chosen.psnr_type), image_true, image_test, name="PSNR", read=read_levels)


def compute_ssim(image_true: Source, image_test: Source) -> Mean:
    """Structural similarity, at most 1, see `ssim`: ``(value, n)``; arguments and errors as those of `compute_psnr`.

    Raises:
        MissingDependencyError: scikit-image is not installed.
    """
    return mean_over_pairs(ssim, image_true, image_test, name="SSIM", read=read_levels)


def compute_mse(image_true: Source, image_test: Source) -> Mean:
    """Mean squared error on a scale of 0 … 255: ``(value, n)``; arguments and errors as those of `compute_psnr`."""
    return mean_over_pairs(mse, image_true, image_test, name="MSE", read=read_levels)


def compute_video_psnr(video_true: PathLike, video_test: PathLike) -> Mean:
    """Peak signal-to-noise ratio in dB of the frames of videos: ``(value, n)``, the mean over ``n`` pairs of frames.

    Args:
        video_true, video_test: two videos, or two folders of videos, which are paired by name.

    Returns:
        As `compute_psnr` does, of frames. A few frames are in memory at a time, however long the videos are.

    Raises:
        MissingDependencyError: PyAV is not installed.
        ConfigError: something cannot be read or has no partner, or two videos differ in size or length.
    """
    return mean_over_frames(_psnr_of(_Chosen.psnr_type), video_true, video_test, name="PSNR")


def compute_video_ssim(video_true: PathLike, video_test: PathLike) -> Mean:
    """Structural similarity of the frames of videos: ``(value, n)``; see `compute_video_psnr` and `ssim`."""
    return mean_over_frames(ssim, video_true, video_test, name="SSIM")


def compute_video_mse(video_true: PathLike, video_test: PathLike) -> Mean:
    """Mean squared error of the frames of videos: ``(value, n)``; see `compute_video_psnr` and `mse`."""
    return mean_over_frames(mse, video_true, video_test, name="MSE")


def _skimage_psnr(true: Pixels, test: Pixels) -> float:
    with np.errstate(divide="ignore"):  # identical pictures: infinite, which is meant
        return float(_skimage_metrics().peak_signal_noise_ratio(true, test, data_range=PEAK))


def _psnr_of(kind: str) -> Metric:
    return psnr if kind == "custom" else _skimage_psnr


def _skimage_metrics() -> ModuleType:
    try:
        from skimage import metrics
    except ImportError as error:
        raise MissingDependencyError(f"this needs scikit-image: pip install 'cache-dit[metrics]' ({error})") from error
    return metrics
