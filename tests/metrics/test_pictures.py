"""What counts as a picture, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cache_dit
from cache_dit.metrics.pictures import read_levels, read_picture
from tests.metrics.media import picture, save

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_a_file_an_array_and_an_image_of_pillow_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = picture()
    sources = [pixels, Image.fromarray(pixels), save(tmp_path / "a.png", pixels), str(tmp_path / "a.png")]
    for read in map(read_picture, sources):
        assert read.dtype == np.uint8
        assert np.array_equal(read, pixels)


@pytest.mark.parametrize("array", [GREY, GREY[:, :, None]], ids=["2d", "one channel"])
def test_grey_becomes_three_equal_channels(array: Any, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.pgm")
    for read in (read_picture(array), read_picture(tmp_path / "grey.pgm")):
        assert np.array_equal(read, np.stack([GREY] * 3, axis=2))


def test_transparency_is_left_out(tmp_path: Path) -> None:
    pixels = np.concatenate([picture(), np.full((24, 32, 1), 7, dtype=np.uint8)], axis=2)
    assert np.array_equal(read_picture(pixels), picture())
    assert np.array_equal(read_picture(save(tmp_path / "a.png", pixels)), picture())


def test_16_bit_grey_is_scaled_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png")[:, :, 0], GREY)


def test_a_photograph_is_turned_as_its_exif_entry_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half
    Image.fromarray(picture()).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "turned.png"), picture()[::-1, ::-1])


def test_floating_arrays_are_rounded_for_networks_and_not_for_arithmetic() -> None:
    pixels = np.full((2, 2, 3), 0.1)
    assert read_picture(pixels).dtype == np.uint8
    assert (read_picture(pixels) == 26).all()  # 25.5, to even
    assert read_levels(pixels).dtype == np.float64
    assert (read_levels(pixels) == 25.5).all()
    assert np.array_equal(read_levels((picture() / 255).astype(np.float32)).round(), picture())


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4,), np.uint8), r"shape \(4,\)"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.full((8, 8, 3), 1.5), r"0 … 1, this one has 1.5 … 1.5"),
        (np.full((8, 8, 3), np.nan), "nan"),
        ([1, 2], "not list"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array: Any, said: str) -> None:
    with pytest.raises(cache_dit.ConfigError, match=said):
        read_picture(array)


def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not pixels")
    whole = save(tmp_path / "whole.png", picture()).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    for name, said in [
        ("text.png", r"text\.png cannot be read as a picture"),
        ("cut.png", r"cut\.png cannot be read as a picture"),
        ("float.tiff", r"float\.tiff: pictures of Pillow's mode 'F'"),
        ("none.png", r"none\.png does not exist"),
        (".", "is a folder"),
    ]:
        with pytest.raises(cache_dit.ConfigError, match=said):
            read_picture(tmp_path / name)
