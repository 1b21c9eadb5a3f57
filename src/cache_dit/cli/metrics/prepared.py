"""Metrics that are ready for many comparisons: what has a network loads it once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cache_dit.metrics
from cache_dit.cli.metrics.arguments import Kind
from cache_dit.metrics.averages import Mean, mean_over_frames, mean_over_pairs

Compute = Callable[[Path, Path], Mean]
"""``(value, n)`` of two paths: what is compared with, and what is judged."""


def prepared(metric: str, kind: Kind, batch_size: int = 1) -> Compute:
    """What ``cache_dit.metrics.compute_…`` computes, for as many pairs of paths as wanted.

    Args:
        metric: its name on the command line.
        kind: what is compared.
        batch_size: of FID.

    Raises:
        MissingModelError: the network is nowhere.
        MissingDependencyError: a package is not installed.
    """
    if metric in _WITH_NETWORK:
        return _WITH_NETWORK[metric](kind, batch_size)
    name = f"compute_video_{metric}" if kind == "videos" else f"compute_{metric}"
    compute: Compute = getattr(cache_dit.metrics, name)
    return compute


def _lpips(kind: Kind, batch_size: int) -> Compute:
    from cache_dit.metrics.lpips import Lpips

    return partial(mean_over_frames if kind == "videos" else mean_over_pairs, Lpips(), name="LPIPS")


def _fid(kind: Kind, batch_size: int) -> Compute:
    made = cache_dit.metrics.FrechetInceptionDistance(batch_size=batch_size, disable_tqdm=False)
    return made.compute_video_fid if kind == "videos" else made.compute_fid


def _clip_score(kind: Kind, batch_size: int) -> Compute:
    from cache_dit.metrics.clip_score import ClipScore
    from cache_dit.metrics.prompts import mean_over_prompts

    return partial(mean_over_prompts, ClipScore(), name="CLIP_SCORE")


def _image_reward(kind: Kind, batch_size: int) -> Compute:
    from cache_dit.metrics.image_reward import ImageReward
    from cache_dit.metrics.prompts import mean_over_prompts

    return partial(mean_over_prompts, ImageReward(), name="IMAGE_REWARD")


_WITH_NETWORK: dict[str, Callable[[Kind, int], Compute]] = {
    "lpips": _lpips,
    "fid": _fid,
    "clip_score": _clip_score,
    "image_reward": _image_reward,
}
