"""How far pictures and videos are from others, or from their prompts. A name is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cache_dit.lazy import lazy_names

if TYPE_CHECKING:
    from cache_dit.metrics.averages import Mean
    from cache_dit.metrics.clip_score import compute_clip_score
    from cache_dit.metrics.fid import FrechetInceptionDistance, compute_fd, compute_fid, compute_video_fid
    from cache_dit.metrics.image_reward import compute_image_reward
    from cache_dit.metrics.lpips import compute_lpips, compute_video_lpips
    from cache_dit.metrics.pixels import (
        compute_mse,
        compute_psnr,
        compute_ssim,
        compute_video_mse,
        compute_video_psnr,
        compute_video_ssim,
        get_psnr_type,
        set_psnr_type,
    )
    from cache_dit.metrics.verbosity import get_metrics_verbose, set_metrics_verbose

__all__ = [
    "FrechetInceptionDistance",
    "Mean",
    "compute_clip_score",
    "compute_fd",
    "compute_fid",
    "compute_image_reward",
    "compute_lpips",
    "compute_mse",
    "compute_psnr",
    "compute_ssim",
    "compute_video_fid",
    "compute_video_lpips",
    "compute_video_mse",
    "compute_video_psnr",
    "compute_video_ssim",
    "entrypoint",
    "get_metrics_verbose",
    "get_psnr_type",
    "main",
    "set_metrics_verbose",
    "set_psnr_type",
]

#: Where each name is; what it needs is imported with it, so that PSNR asks for nothing that LPIPS needs.
_PLACES = {
    "averages": ("Mean",),
    "clip_score": ("compute_clip_score",),
    "fid": ("FrechetInceptionDistance", "compute_fd", "compute_fid", "compute_video_fid"),
    "image_reward": ("compute_image_reward",),
    "lpips": ("compute_lpips", "compute_video_lpips"),
    "pixels": (
        *("compute_psnr", "compute_ssim", "compute_mse", "set_psnr_type", "get_psnr_type"),
        *("compute_video_psnr", "compute_video_ssim", "compute_video_mse"),
    ),
    "verbosity": ("get_metrics_verbose", "set_metrics_verbose"),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _PLACES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``cache-dit-metrics-cli`` from code that has its entry point here; see ``cache_dit.cli.metrics_main``."""
    status: int = importlib.import_module("cache_dit.cli").metrics_main(arguments)
    return status


entrypoint = main
