"""Metrics of single pictures, and means by a metric of one's own, under the names of the reference."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_dit import metrics
from cache_dit.metrics.metrics import (
    calculate_psnr,
    compute_dir_metric,
    compute_mse_file,
    compute_psnr_file,
    compute_ssim_file,
    compute_video_metric,
    get_args,
)

from .media import picture, save, save_folder, save_video


@pytest.mark.parametrize(
    ("single", "mean"),
    [
        (compute_psnr_file, metrics.compute_psnr),
        (compute_ssim_file, metrics.compute_ssim),
        (compute_mse_file, metrics.compute_mse),
    ],
)
def test_a_metric_of_two_pictures_is_one_number(single: Any, mean: Any, tmp_path: Path):
    files = [save(tmp_path / f"{seed}.png", picture(seed)) for seed in range(2)]
    assert single(*files) == single(picture(0), picture(1)) == mean(*files)[0]


def test_the_psnr_of_a_picture_and_itself_is_infinite():
    assert compute_psnr_file(picture(0), picture(0)) == math.inf
    assert calculate_psnr(picture(0), picture(0)) == math.inf


def difference(true: np.ndarray, test: np.ndarray) -> float:
    return float(np.abs(true.astype(float) - test).mean())


def test_a_metric_of_ones_own_is_averaged_over_two_folders(tmp_path: Path):
    sets = [[picture(seed) for seed in seeds] for seeds in (range(3), range(3, 6))]
    folders = [save_folder(tmp_path / name, one) for name, one in zip("ab", sets, strict=True)]
    expected = sum(map(difference, *sets)) / 3
    assert compute_dir_metric(*folders, difference) == (pytest.approx(expected), 3)


def test_a_metric_of_ones_own_is_averaged_over_the_frames_of_two_videos(tmp_path: Path):
    videos = [save_video(tmp_path / f"{first}.mp4", [picture(first + n, 32, 32) for n in range(2)]) for first in (0, 5)]
    assert compute_video_metric(videos[0], videos[0], difference) == (0, 2)
    assert compute_video_metric(*videos, difference)[0] > 0


def test_the_command_lines_arguments_can_be_had_alone(monkeypatch: pytest.MonkeyPatch):
    assert get_args(["psnr", "-i1", "a.png", "-i2", "b.png"]).metrics == ["psnr"]
    monkeypatch.setattr(sys, "argv", ["cache-dit-metrics-cli", "ssim"])
    assert get_args().metrics == ["ssim"]
