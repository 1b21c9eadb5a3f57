"""`cache_dit.metrics` has every documented name, and imports it when it is asked for."""

from __future__ import annotations

import inspect

import pytest

from cache_dit import metrics

PICTURES = ("image_true", "image_test")
VIDEOS = ("video_true", "video_test")


@pytest.mark.parametrize("name", metrics.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(metrics, name)
    assert found.__doc__
    assert name in dir(metrics)


def test_names_and_places_agree() -> None:
    lazy = [name for names in metrics._PLACES.values() for name in names]
    assert sorted(metrics.__all__) == sorted([*lazy, "main", "entrypoint"])
    with pytest.raises(AttributeError, match="compute_sharpness"):
        _ = metrics.compute_sharpness


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("compute_psnr", "compute_ssim", "compute_mse", "compute_lpips", "compute_fid", "compute_fd"), PICTURES),
        (("compute_video_psnr", "compute_video_ssim", "compute_video_mse", "compute_video_lpips"), VIDEOS),
        (("compute_video_fid",), VIDEOS),
        (("compute_clip_score", "compute_image_reward"), ("prompts", "img_dir")),
    ],
)
def test_the_first_two_arguments_are_the_documented_ones(names: tuple[str, ...], first: tuple[str, str]) -> None:
    for name in names:
        assert tuple(inspect.signature(getattr(metrics, name)).parameters)[:2] == first
