"""Real runs and what is remembered of them; how the branches mix; what trials say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.errors import ConfigError
from cache_dit.planning.candidates import interval, quality
from cache_dit.planning.checkpoint import Store
from cache_dit.planning.features import MixtureWatch
from cache_dit.planning.results import PERFECT, as_array, is_picture, levels, psnr
from cache_dit.planning.search import Objective, Schedule, best_fit, fitted
from cache_dit.planning.trials import key_of, work_of


def test_what_a_run_gives_becomes_numbers() -> None:
    picture = np.random.default_rng(0).random((4, 4, 3))
    np.testing.assert_array_equal(as_array(SimpleNamespace(images=[picture])), picture)
    np.testing.assert_array_equal(as_array(SimpleNamespace(frames=picture[None])), picture[None])
    assert as_array(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == np.float32
    assert as_array([torch.ones(2), torch.zeros(2)]).shape == (2, 2)
    assert as_array(Image.new("RGB", (5, 4))).dtype == np.uint8
    for nothing in (None, [], "text"):
        with pytest.raises(ConfigError, match="a picture, an array or a tensor"):
            as_array(nothing)


def test_a_pipelines_batch_of_one_is_a_picture_and_latents_are_none() -> None:
    picture = np.full((1, 4, 5, 3), 0.5, dtype=np.float32)
    assert is_picture(as_array(SimpleNamespace(images=picture))) and is_picture(picture[0])
    assert levels(picture).shape == (4, 5, 3) and levels(picture).max() == 128
    for other in (picture.repeat(2, axis=0), picture - 1, picture[..., :2], picture[0, 0]):
        assert not is_picture(other)


def test_psnr_is_on_the_scale_of_what_is_compared() -> None:
    picture = np.zeros((4, 4, 3))
    picture[0] = 1.0
    assert psnr(picture, picture + 0.1) == pytest.approx(20)
    levels = (picture * 255).astype(np.uint8)
    assert psnr(levels, np.where(levels == 0, 255, levels)) < 5
    latent = 4 * picture - 2
    assert psnr(latent, latent + 0.4) == pytest.approx(20)
    assert psnr(latent, latent) == PERFECT
    assert psnr(latent, latent * np.nan) == 0


def test_the_work_of_a_schedule_grows_with_its_full_steps() -> None:
    half, whole = BranchSchedule((1, 0, 1, 0)), BranchSchedule((1, 1, 1, 1))
    assert work_of({"*": whole}, 4) == pytest.approx(1)
    assert work_of({"*": half}, 4) < work_of({"cond": half, "uncond": whole}, 4) < 1
    assert key_of({"*": half}) != key_of({"*": BranchSchedule((1, 0, 1, 0), (GapRule(1),))})


def test_a_store_remembers_across_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.ckpt"
    first = Store(path, {"seed": 1})
    assert first.data("a", lambda: [1.5, "x"]) == [1.5, "x"]
    np.testing.assert_array_equal(first.array("b", lambda: np.eye(2)), np.eye(2))
    first.close()
    again = Store(path, {"seed": 1})
    assert again.data("a", lambda: pytest.fail("made again")) == [1.5, "x"]
    np.testing.assert_array_equal(again.array("b", lambda: pytest.fail("made again")), np.eye(2))
    assert again.recalled == 2
    again.close()
    with pytest.raises(ConfigError, match="other seed"):
        Store(path, {"seed": 2})
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        Store(tmp_path / "text")


@pytest.mark.parametrize("rho", [(4.5, -3.5), (0.7, 0.3)])
def test_the_mixture_of_the_branches_is_read_off_a_run(rho: tuple[float, float]) -> None:
    torch.manual_seed(0)
    watch = MixtureWatch()
    latent = torch.randn(1, 16, 4)
    for step in range(6):
        outputs = [torch.randn_like(latent) for _ in rho]
        for branch, output in zip(("cond", "uncond"), outputs, strict=True):
            watch.see(step, branch, latent, output)
        mixed = sum(share * output for share, output in zip(rho, outputs, strict=True))
        latent = 0.98 * latent - 0.1 * mixed
    expected = np.array(rho) / np.abs(rho).sum()
    # read off float32 latents by least squares
    assert watch.shares(["cond", "uncond"]) == pytest.approx(expected, rel=1e-4)
    assert watch.shares(["uncond", "cond"]) == pytest.approx(expected[::-1], rel=1e-4)


def test_a_mixture_that_is_not_linear_is_not_told() -> None:
    torch.manual_seed(0)
    watch = MixtureWatch()
    latent = torch.randn(1, 16, 4)
    for step in range(6):
        outputs = [torch.randn_like(latent) for _ in range(2)]
        for branch, output in zip(("cond", "uncond"), outputs, strict=True):
            watch.see(step, branch, latent, output)
        latent = latent - 0.1 * torch.maximum(*outputs)
    assert watch.shares(["cond", "uncond"]) is None


def test_a_forecast_finds_offset_and_slope() -> None:
    gram = np.diag(np.arange(1.0, 7.0))
    one = Objective(gram, np.ones(6), 0.0, (GapRule(),))
    schedules = [Schedule(mask, (GapRule(),) * sum(mask)) for mask in ((1, 1, 1, 1, 0, 1), (1, 0, 0, 0, 0, 1))]
    truth = [60 - 10 * np.log10(one.cost(schedule)) for schedule in schedules]
    forecast = fitted(one, schedules, truth)
    assert (forecast.offset, forecast.slope) == pytest.approx((60, 1))
    assert forecast.psnr(schedules[0])[0] == pytest.approx(truth[0])
    assert forecast.psnr(schedules[0], [gram, 10 * gram]) == pytest.approx([truth[0], truth[0] - 10])
    other = Objective(gram, np.arange(6.0) ** 3, 0.0, (GapRule(),), "other")
    assert best_fit([other, one], schedules, truth).objective is one


def test_quality_counts_and_bounds_its_pictures() -> None:
    values = np.arange(20.0, 40.0)
    found = quality(values, held_out=True)
    assert (found.mean, found.minimum, found.pictures, found.held_out) == (29.5, 20.0, 20, True)
    assert found.minimum < found.p5 < found.low < found.mean < found.high
    assert interval(values, 3) == interval(values, 3)
