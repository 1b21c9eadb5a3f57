"""Metrics of two pictures as one number, and means by a metric of one's own: what scripts for cache-dit 1.2.0 call."""

from __future__ import annotations

from cache_dit.metrics.averages import Mean, Metric, mean_over_frames, mean_over_pairs
from cache_dit.metrics.pairs import PathLike
from cache_dit.metrics.pictures import Source
from cache_dit.metrics.pixels import compute_mse, compute_psnr, compute_ssim


def compute_psnr_file(image_true: Source, image_test: Source) -> float | None:
    """The PSNR of two pictures in dB; infinite where they are equal. Errors as those of `compute_psnr`."""
    return compute_psnr(image_true, image_test).value


def compute_ssim_file(image_true: Source, image_test: Source) -> float | None:
    """The structural similarity of two pictures. Errors as those of `compute_ssim`."""
    return compute_ssim(image_true, image_test).value


def compute_mse_file(image_true: Source, image_test: Source) -> float | None:
    """The mean squared error of two pictures. Errors as those of `compute_mse`."""
    return compute_mse(image_true, image_test).value


def compute_dir_metric(image_true_dir: PathLike, image_test_dir: PathLike, compute_file_func: Metric) -> Mean:
    """The mean of a metric of your own over the pictures of two folders, paired by name.

    Args:
        image_true_dir, image_test_dir: the folders.
        compute_file_func: the number for two pictures, which it is given as arrays (H, W, 3) of uint8.

    Returns:
        ``(value, n)``, n pairs.

    Raises:
        ConfigError: something cannot be read or has no partner, or two pictures differ in size.
    """
    return mean_over_pairs(compute_file_func, image_true_dir, image_test_dir, name=_name(compute_file_func))


def compute_video_metric(video_true: PathLike, video_test: PathLike, compute_frame_func: Metric) -> Mean:
    """As `compute_dir_metric`, over the frames of two videos or of two folders' videos; n counts frames."""
    return mean_over_frames(compute_frame_func, video_true, video_test, name=_name(compute_frame_func))


def _name(metric: Metric) -> str:
    return getattr(metric, "__name__", type(metric).__name__)
