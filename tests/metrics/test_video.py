"""Videos: frame by frame, without keeping them."""

from __future__ import annotations

import math
import weakref
from pathlib import Path

import numpy as np
import pytest

import cache_dit
from cache_dit import metrics
from cache_dit.metrics import averages, video
from cache_dit.metrics.averages import mean_over_frames
from cache_dit.metrics.pictures import Pixels
from tests.metrics.media import picture, save_video, shifted

pytest.importorskip("av", reason="the extra `metrics` brings PyAV")


def test_frames_come_in_order_as_they_were_written(tmp_path: Path) -> None:
    written = [picture(seed) for seed in range(5)]
    path = save_video(tmp_path / "a.mp4", written)
    read = list(video.frames(path))
    assert [frame.dtype for frame in read] == [np.uint8] * 5
    assert all(np.array_equal(one, other) for one, other in zip(written, read, strict=True))
    assert video.frame_count(path) == 5


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi"])
def test_the_mean_is_over_frames(tmp_path: Path, suffix: str) -> None:
    frames = [picture(seed) for seed in range(3)]
    true = save_video(tmp_path / f"true{suffix}", frames)
    test = save_video(tmp_path / f"test{suffix}", [shifted(frame, n) for n, frame in enumerate(frames, 1)])
    assert metrics.compute_video_mse(true, test) == (pytest.approx(14 / 3), 3)
    expected = np.mean([20 * math.log10(255 / n) for n in (1, 2, 3)])
    assert metrics.compute_video_psnr(str(true), str(test)) == (pytest.approx(expected), 3)
    pairs = [metrics.compute_ssim(frame, shifted(frame, n))[0] for n, frame in enumerate(frames, 1)]
    assert metrics.compute_video_ssim(true, test) == (pytest.approx(np.mean(pairs)), 3)


def test_a_compressed_video_gives_all_its_frames(tmp_path: Path) -> None:
    smooth = [np.full((32, 32, 3), 10 * number, dtype=np.uint8) for number in range(20)]
    path = save_video(tmp_path / "a.mp4", smooth, codec="mpeg4", pixel_format="yuv420p")
    read = [float(frame.mean()) for frame in video.frames(path)]
    assert read == pytest.approx([10 * number for number in range(20)], abs=4)


def test_folders_of_videos_are_paired_by_name_and_all_their_frames_count(tmp_path: Path) -> None:
    for name, seconds in (("one", 2), ("two", 4)):
        frames = [picture(seed) for seed in range(seconds)]
        save_video(tmp_path / "true" / f"{name}.mp4", frames)
        save_video(tmp_path / "test" / f"{name}.mp4", [shifted(frame, seconds) for frame in frames])
    save_video(tmp_path / "test" / "third.mp4", [picture()])
    measured = metrics.compute_video_mse(tmp_path / "true", tmp_path / "test")
    assert measured == (pytest.approx((2 * 4 + 4 * 16) / 6), 6)
    assert measured.left_out == 1


def test_identical_frames_count_and_are_left_out_of_the_mean(tmp_path: Path) -> None:
    frames = [picture(seed) for seed in range(3)]
    true = save_video(tmp_path / "true.mp4", frames)
    test = save_video(tmp_path / "test.mp4", [frames[0], shifted(frames[1], 5), frames[2]])
    measured = metrics.compute_video_psnr(true, test)
    assert measured == (pytest.approx(20 * math.log10(255 / 5)), 3)
    assert measured.infinite == 2
    assert metrics.compute_video_psnr(true, true) == (None, None)


@pytest.mark.parametrize("bar", [False, True])
def test_no_more_than_a_few_frames_are_in_memory(bar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1" if bar else "")
    path = save_video(tmp_path / "long.mp4", (picture(seed) for seed in range(60)))
    seen: list[weakref.ref[Pixels]] = []
    decode = video.frames

    def watched(source: Path):  # type: ignore[no-untyped-def]
        for frame in decode(source):
            seen.append(weakref.ref(frame))
            yield frame

    alive = []

    def metric(one: Pixels, other: Pixels) -> float:
        alive.append(sum(frame() is not None for frame in seen))
        return 0.0

    monkeypatch.setattr(averages, "frames", watched)
    assert mean_over_frames(metric, path, path, name="count") == (0, 60)
    assert len(seen) == 120
    assert max(alive) <= 4  # two of each video


@pytest.mark.parametrize(("first", "second"), [(3, 5), (5, 3), (1, 2)])
def test_videos_of_different_length_are_refused_with_both_lengths(first: int, second: int, tmp_path: Path) -> None:
    one = save_video(tmp_path / "one.mp4", (picture(seed) for seed in range(first)))
    other = save_video(tmp_path / "two.mp4", (picture(seed) for seed in range(second)))
    with pytest.raises(cache_dit.ConfigError, match=rf"one\.mp4 has {first} frames and .*two\.mp4 has {second}:"):
        metrics.compute_video_mse(one, other)


def test_videos_of_different_size_are_refused(tmp_path: Path) -> None:
    one = save_video(tmp_path / "one.mp4", [picture()])
    other = save_video(tmp_path / "two.mp4", [picture(0, 24, 40)])
    with pytest.raises(cache_dit.ConfigError, match=r"one\.mp4 and .*two\.mp4: 32x24 and 40x24"):
        metrics.compute_video_psnr(one, other)


def test_what_is_no_video_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(cache_dit.ConfigError, match=r"text\.mp4 cannot be read as a video"):
        next(video.frames(tmp_path / "text.mp4"))
    with pytest.raises(cache_dit.ConfigError, match=r"text\.mp4 cannot be read as a video"):
        video.frame_count(tmp_path / "text.mp4")
    with pytest.raises(cache_dit.ConfigError, match=r"none\.mp4 does not exist"):
        next(video.frames(tmp_path / "none.mp4"))
    with pytest.raises(cache_dit.ConfigError, match="is a folder"):
        video.frame_count(tmp_path)
