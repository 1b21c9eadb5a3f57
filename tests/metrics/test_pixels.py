"""PSNR, SSIM and MSE: against scikit-image, against arithmetic, and over folders."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import cache_dit
from cache_dit import metrics
from cache_dit.metrics.averages import Mean
from cache_dit.metrics.pictures import Pixels
from cache_dit.metrics.pixels import mse, psnr, ssim
from tests.metrics.media import picture, save, save_folder, shifted

skimage = pytest.importorskip("skimage.metrics", reason="the extra `metrics` brings scikit-image")

SIZES = [(7, 7), (24, 32), (33, 17)]


@pytest.fixture(autouse=True)
def _psnr_type_of_before() -> Iterator[None]:
    yield
    metrics.set_psnr_type("custom")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_the_values_are_those_of_scikit_image(size: tuple[int, int], dtype: str) -> None:
    true, test = picture(1, *size), picture(2, *size)
    given = [true, test] if dtype == "uint8" else [(pixels / 255).astype(dtype) for pixels in (true, test)]
    expected = skimage.structural_similarity(true, test, channel_axis=2, data_range=255)
    assert metrics.compute_ssim(*given)[0] == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-12)
    expected = skimage.peak_signal_noise_ratio(true, test, data_range=255)
    assert metrics.compute_psnr(*given)[0] == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-12)
    expected = skimage.mean_squared_error(true, test)
    assert metrics.compute_mse(*given)[0] == pytest.approx(expected, rel=1e-6 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("kind", ["custom", "skimage"])
def test_psnr_is_the_definition_whoever_computes_it(kind: str) -> None:
    metrics.set_psnr_type(kind)
    assert metrics.get_psnr_type() == kind
    for offset in (1, 5, 20):
        expected = 20 * math.log10(255 / offset)
        assert metrics.compute_psnr(picture(), shifted(picture(), -offset)) == (pytest.approx(expected, abs=1e-9), 1)
    assert metrics.compute_psnr(picture(), picture()) == (math.inf, 1)


def test_another_psnr_type_is_refused() -> None:
    with pytest.raises(cache_dit.ConfigError, match="psnr_type='cv2' is not valid: expected 'custom' or 'skimage'"):
        metrics.set_psnr_type("cv2")


@settings(max_examples=100)
@given(st.integers(0, 255), st.integers(0, 255))
def test_bytes_do_not_wrap_around(one: int, other: int) -> None:
    true, test = (np.full((8, 8, 3), value, dtype=np.uint8) for value in (one, other))
    assert mse(true, test) == mse(test, true) == (one - other) ** 2


def test_psnr_and_mse_do_not_round_floating_pictures() -> None:
    grey = np.full((8, 8, 3), 0.5)
    assert metrics.compute_psnr(grey, grey + 1e-6)[0] == pytest.approx(120, abs=1e-6)
    assert metrics.compute_mse(grey, grey + 1e-6)[0] == pytest.approx((255e-6) ** 2, rel=1e-6)
    assert psnr(grey, grey + 0.1, peak=1) == pytest.approx(20, abs=1e-9)


def test_ssim_of_identical_pictures_is_one_and_falls_with_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (24, 32, 3))
    values = [
        ssim(picture(), np.clip(picture() + amount * noise, 0, 255).astype(np.uint8)) for amount in (0, 5, 20, 60)
    ]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


def test_ssim_of_a_picture_smaller_than_its_window_is_refused() -> None:
    with pytest.raises(cache_dit.ConfigError, match="SSIM needs at least 7x7 pixels, these pictures have 8x6"):
        metrics.compute_ssim(picture(0, 6, 8), picture(1, 6, 8))


@pytest.mark.parametrize("compute", [metrics.compute_psnr, metrics.compute_ssim, metrics.compute_mse])
def test_pictures_of_different_size_are_refused_by_name(
    compute: Callable[[object, object], Mean], tmp_path: Path
) -> None:
    one, other = save(tmp_path / "one.png", picture()), save(tmp_path / "two.png", picture(0, 24, 40))
    with pytest.raises(cache_dit.ConfigError, match=r"one\.png and .*two\.png: 32x24 and 40x24 pixels"):
        compute(one, other)
    with pytest.raises(cache_dit.ConfigError, match="32x24 and 40x24 pixels"):
        compute(picture(), picture(0, 24, 40))


def test_arrays_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(cache_dit.ConfigError, match="shapes"):
        psnr(picture(), picture()[:1])


def test_files_arrays_and_images_of_pillow_can_be_mixed(tmp_path: Path) -> None:
    file = save(tmp_path / "one.png", picture())
    assert metrics.compute_mse(file, shifted(picture(), 3)) == (9, 1)
    assert metrics.compute_mse(Image.fromarray(picture()), str(file)) == (0, 1)


def folders(tmp_path: Path, offsets: list[int]) -> tuple[Path, Path]:
    """Two folders whose pictures differ by these offsets."""
    true: list[Pixels] = [picture(seed) for seed in range(len(offsets))]
    changed = [shifted(pixels, offset) for pixels, offset in zip(true, offsets, strict=True)]
    return save_folder(tmp_path / "true", true), save_folder(tmp_path / "test", changed)


def test_the_mean_over_folders_is_that_of_the_pairs(tmp_path: Path) -> None:
    true, test = folders(tmp_path, [1, 2, 4])
    assert metrics.compute_mse(true, test) == (pytest.approx(21 / 3), 3)
    expected = np.mean([20 * math.log10(255 / offset) for offset in (1, 2, 4)])
    assert metrics.compute_psnr(str(true), str(test)) == (pytest.approx(expected), 3)


def test_identical_pictures_count_and_are_left_out_of_the_mean(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    true, test = folders(tmp_path, [2, 0, 0, 2])
    with caplog.at_level("INFO", "cache_dit.metrics"):
        measured = metrics.compute_psnr(true, test)
    assert measured == (pytest.approx(20 * math.log10(255 / 2)), 4)
    assert (measured.compared, measured.infinite, measured.left_out) == (4, 2, 0)
    assert "2 of 4 pairs of pictures are identical" in caplog.text
    assert metrics.compute_mse(true, test) == (2, 4)


def test_where_all_of_several_are_identical_there_is_no_mean(tmp_path: Path) -> None:
    measured = metrics.compute_psnr(*folders(tmp_path, [0, 0, 0]))
    assert measured == (None, None)
    assert (measured.value, measured.compared, measured.infinite) == (math.inf, 3, 3)


def test_files_without_a_partner_are_told_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    true, test = folders(tmp_path, [1, 2, 4])
    (test / "1.png").unlink()
    save(test / "extra.png", picture())
    measured = metrics.compute_mse(true, test)
    assert measured == (pytest.approx(17 / 2), 2)
    assert measured.left_out == 2
    assert "files of the first folder without a partner, left out: 1" in caplog.text
    assert "files of the second folder without a partner, left out: 1" in caplog.text
    assert "extra.png" in caplog.text


def test_an_unreadable_file_in_a_folder_is_an_error_not_a_gap(tmp_path: Path) -> None:
    true, test = folders(tmp_path, [1, 2])
    (test / "1.png").write_text("broken")
    with pytest.raises(cache_dit.ConfigError, match=r"1\.png cannot be read"):
        metrics.compute_psnr(true, test)


def test_a_result_is_a_pair_and_survives_copying() -> None:
    measured = metrics.compute_psnr(picture(), picture())
    value, count = measured
    assert (value, count) == tuple(measured) == (math.inf, 1)
    for copied in (copy.copy(measured), copy.deepcopy(measured), pickle.loads(pickle.dumps(measured))):
        assert copied == measured
        assert copied.infinite == 1


def test_verbose_logs_each_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    true, test = folders(tmp_path, [1, 2])
    with caplog.at_level("INFO", "cache_dit.metrics"):
        metrics.compute_mse(true, test)
        assert caplog.text == ""
        metrics.set_metrics_verbose(True)
        try:
            assert metrics.get_metrics_verbose()
            metrics.compute_mse(true, test)
        finally:
            metrics.set_metrics_verbose(False)
    assert "0.png, MSE: 1.00000" in caplog.text
    assert "1.png, MSE: 4.00000" in caplog.text
    with pytest.raises(cache_dit.ConfigError, match="verbose"):
        metrics.set_metrics_verbose("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", ["skimage", "av"])
def test_a_missing_package_is_named_with_its_extra(
    hidden: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, hidden, None)
    (tmp_path / "a.mp4").touch()
    calls = {
        "skimage": lambda: metrics.compute_ssim(picture(), picture()),
        "av": lambda: metrics.compute_video_psnr(tmp_path / "a.mp4", tmp_path / "a.mp4"),
    }
    with pytest.raises(cache_dit.MissingDependencyError, match=r"pip install 'cache-dit\[metrics\]'"):
        calls[hidden]()
    assert metrics.compute_psnr(picture(), picture())[0] == math.inf
