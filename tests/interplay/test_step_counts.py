"""The number of steps of a pipeline's call is that of its scheduler's timesteps, not the number that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    StableDiffusion3Img2ImgPipeline,
)

import cache_dit
from tests.kit.tiny_flux import (
    denoise,
    embeddings,
    generate,
    generate_video,
    tiny_pipeline,
    tiny_sd3_pipeline,
    tiny_wan_pipeline,
)

Logged = pytest.LogCaptureFixture

DYNAMIC = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=1.0)


def masked(mask: str, **options: Any) -> cache_dit.DBCacheConfig:
    """A static mask, written as its steps are: F computed, C cached."""
    return cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        steps_computation_mask=[int(step == "F") for step in mask],
        steps_computation_policy="static",
        **options,
    )


def line(pipe: Any) -> str:
    """The steps of the latest request's first branch."""
    return next(iter(cache_dit.summary(pipe, logging=False)[0].steps_line.values()))


def unfit(caplog: Logged) -> list[str]:
    return [message for message in caplog.messages if "steps_computation_mask has" in message]


def heun() -> Any:
    pipe = tiny_sd3_pipeline()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    return pipe


def sd3(pipe: Any, steps: int) -> None:
    """A call of a Stable Diffusion 3 pipeline with so many steps asked for."""
    pipe(
        **embeddings(),
        height=8,
        width=8,
        guidance_scale=1.0,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(2),
    )


def mask_of(preset: str, steps: int) -> str:
    """A preset's mask, as its steps are."""
    return "".join("CF"[bit] for bit in cache_dit.steps_mask(total_steps=steps, mask_policy=preset) or [])


@pytest.mark.parametrize(
    ("mask", "steps", "done"),
    [
        ("FFCCFC", 6, "FFCCFC"),  # of its own length, it stays as it is
        ("FCCCCC", 4, "FCCF"),
        ("FCCC", 6, "FCCCFF"),
    ],
)
def test_a_mask_of_another_length_is_said_once_and_the_last_step_computes(
    mask: str, steps: int, done: str, caplog: Logged
) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), masked(mask))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        for _ in range(2):
            generate(pipe, steps=steps)
            assert line(pipe) == done
    told = unfit(caplog)
    assert len(told) == (len(mask) != steps)
    assert all(f"has {len(mask)} entries" in one and f"run has {steps} steps" in one for one in told)


def test_each_other_number_of_steps_is_said(caplog: Logged) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), masked("FCCCCC", num_inference_steps=6))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        for steps in (4, 5, 4, 6, 5):
            generate(pipe, steps=steps)
    assert [one.split(" steps:")[0][-1] for one in unfit(caplog)] == ["4", "5"]


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_scheduler_of_second_order_makes_more_steps_than_were_asked_for(policy: str, caplog: Logged) -> None:
    pipe = heun()
    config = masked("FCCCCC")
    cache_dit.enable_cache(pipe, config.update(steps_computation_policy=policy, residual_diff_threshold=1.0))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        sd3(pipe, 6)
    assert line(pipe) == "FCCCCC" + "F" * 5
    assert "run has 11 steps" in unfit(caplog)[0]
    caplog.clear()
    cache_dit.enable_cache(pipe, masked("FCCCCFCCCCC"))
    sd3(pipe, 6)
    assert line(pipe) == "FCCCCFCCCCC" and not unfit(caplog)


def test_a_presets_mask_is_made_for_the_steps_of_the_run(caplog: Logged) -> None:
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        num_inference_steps=6,
        steps_computation_mask="ultra",
        residual_diff_threshold=1.0,
        max_warmup_steps=1,
    )
    pipe = heun()
    cache_dit.enable_cache(pipe, config)
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        for steps, calls in ((6, 11), (4, 7), (6, 11)):
            sd3(pipe, steps)
            assert line(pipe) == mask_of("ultra", calls)
    assert not caplog.messages
    plain = cache_dit.enable_cache(tiny_pipeline(), config)
    generate(plain, steps=9)
    assert line(plain) == mask_of("ultra", 9)


def test_a_request_is_too_short_by_the_steps_that_it_has() -> None:
    pipe = heun()
    cache_dit.enable_cache(pipe, DYNAMIC)
    sd3(pipe, 4)  # seven calls: more than a warm-up of 4 and two more
    assert line(pipe) == "FFFFCCC"


def image_to_image(pipe: Any, strength: float, steps: int) -> None:
    pipe(
        **embeddings(),
        image=torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4)),
        height=8,
        width=8,
        strength=strength,
        guidance_scale=1.0,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(2),
    )


def flux_img2img() -> Any:
    return FluxImg2ImgPipeline(**tiny_pipeline().components)


def sd3_img2img() -> Any:
    return StableDiffusion3Img2ImgPipeline(**tiny_sd3_pipeline().components)


@pytest.mark.parametrize("make", [flux_img2img, sd3_img2img])
def test_image_to_image_begins_within_the_steps(make: Callable[[], Any], caplog: Logged) -> None:
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    cache_dit.enable_cache(pipe, masked("FCCCFCCCCC"))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        image_to_image(pipe, 0.5, 10)
    assert line(pipe) == "FCCCF"
    assert "has 10 entries and the run has 5 steps" in unfit(caplog)[0]
    cache_dit.enable_cache(pipe, DYNAMIC)
    image_to_image(pipe, 0.5, 10)
    assert "shorter than its warm-up" in (cache_dit.summary(pipe, logging=False)[0].reason or "")
    image_to_image(pipe, 0.7, 10)
    assert line(pipe) == "FFFFCCC"


def test_a_pipeline_that_leaves_out_the_last_timestep_or_begins_late_by_itself_is_believed() -> None:
    """Some slice the timesteps, and do not tell the scheduler where they begin; diffusers' pipelines say how many."""

    class Late(FluxPipeline):  # type: ignore[misc]
        def __call__(self, num_inference_steps: int) -> None:
            self.scheduler.set_timesteps(num_inference_steps)
            self._num_timesteps = num_inference_steps - 2
            denoise(self.transformer, steps=num_inference_steps, start=2)

    pipe = Late(**tiny_pipeline().components)
    cache_dit.enable_cache(pipe, masked("FCCCCC"))
    pipe(6)
    assert line(pipe) == "FCCF"


def test_a_mask_that_comes_in_the_middle_of_a_run_is_fitted_too(caplog: Logged) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), masked("FFFFFC"))
    handle = cache_dit.session("other")

    def change(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            handle.update(steps_computation_mask=[1, 0, 0, 0, 0, 0, 0, 0])
        return {}

    with handle, caplog.at_level(logging.WARNING, logger="cache_dit"):
        generate(pipe, steps=6, callback_on_step_end=change)
    assert line(pipe) == "FFCCCF" and "has 8 entries" in unfit(caplog)[0]


def test_pruning_goes_by_the_steps_of_the_run(caplog: Logged) -> None:
    config = cache_dit.DBPruneConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        residual_diff_threshold=1.0,
        steps_computation_mask=[1, 0, 0, 0, 0, 0],
    )
    pipe = cache_dit.enable_cache(tiny_pipeline(), config)
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        generate(pipe, steps=4)
    assert line(pipe) == "FPPF" and len(unfit(caplog)) == 1


def by_shares(known: cache_dit.PolicyCalibration) -> cache_dit.DBCacheConfig:
    """MagCache that caches whatever it may."""
    return cache_dit.DBCacheConfig(
        Fn_compute_blocks=0,
        max_warmup_steps=1,
        policy="magcache",
        policy_calibration=known,
        residual_diff_threshold=9.0,
    )


def test_a_calibration_is_for_the_steps_that_the_run_makes() -> None:
    pipe = heun()
    cache_dit.enable_cache(pipe, cache_dit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0))
    known = cache_dit.calibrate(pipe, lambda: sd3(pipe, 4), policy="magcache")
    assert (known.num_inference_steps, len(known.values())) == (4, 7)
    cache_dit.enable_cache(pipe, by_shares(known))
    sd3(pipe, 4)
    assert line(pipe) == "FCCCCCC"
    with pytest.raises(cache_dit.ConfigError, match="num_inference_steps"):
        sd3(pipe, 7)


def test_a_calibration_of_image_to_image_is_for_the_steps_that_are_left() -> None:
    pipe = flux_img2img()
    pipe.set_progress_bar_config(disable=True)
    cache_dit.enable_cache(pipe, cache_dit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0))
    known = cache_dit.calibrate(pipe, lambda: image_to_image(pipe, 0.5, 10), policy="magcache")
    assert (known.num_inference_steps, len(known.values())) == (5, 5)
    cache_dit.enable_cache(pipe, by_shares(known))
    image_to_image(pipe, 0.5, 10)
    assert line(pipe) == "FCCCC"
    with pytest.raises(cache_dit.ConfigError, match="num_inference_steps=5, not 10"):
        image_to_image(pipe, 1.0, 10)


def test_a_mask_that_begins_anew_in_the_run_has_a_length_of_its_own(caplog: Logged) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), masked("FCC", force_refresh_step_hint=3, num_inference_steps=6))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        generate(pipe, steps=6)
    assert line(pipe) == "FCCFCC" and not unfit(caplog)


def test_two_transformers_make_a_part_each_and_nothing_is_said_of_their_masks(caplog: Logged) -> None:
    pipe = tiny_wan_pipeline(two=True)
    cache_dit.enable_cache(pipe, masked("FCC"))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        generate_video(pipe, steps=6)
    first, second = (next(iter(one.steps_line.values())) for one in cache_dit.summary(pipe, logging=False)[:2])
    assert len(first) + len(second) == 6 and {first[:3], second[:3]} == {"FCC"}
    assert not unfit(caplog)


def test_one_cached_of_two_transformers_makes_a_part_too(caplog: Logged) -> None:
    pipe = tiny_wan_pipeline(two=True)
    blocks = pipe.transformer.blocks
    adapter = cache_dit.BlockAdapter(
        pipe=pipe, transformer=pipe.transformer, blocks=blocks, forward_pattern=cache_dit.Pattern_2
    )
    cache_dit.enable_cache(adapter, masked("FCC"))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        generate_video(pipe, steps=6)
    assert line(pipe).startswith("FCC") and len(line(pipe)) < 6
    assert not unfit(caplog)


def test_a_loop_of_ones_own_that_leaves_the_scheduler_alone_says_its_steps_by_its_argument(caplog: Logged) -> None:
    """The timesteps that a scheduler is made with, or has from another call, are not those of this one."""
    pipe = tiny_pipeline()

    class Own(FluxPipeline):  # type: ignore[misc]
        def __call__(self, num_inference_steps: int, sets: bool = False, **given: Any) -> Any:
            if given:
                return super().__call__(num_inference_steps=num_inference_steps, **given)
            if sets:
                self.scheduler.set_timesteps(num_inference_steps)
            return denoise(self.transformer, steps=num_inference_steps)

    own = Own(**pipe.components)
    cache_dit.enable_cache(own, masked("FCCC"))
    with caplog.at_level(logging.WARNING, logger="cache_dit"):
        own(4)
        assert line(own) == "FCCC"
        generate(pipe, steps=8)
        own(num_inference_steps=4)
        assert line(own) == "FCCC"
        generate(own, steps=3)
        assert line(own) == "FCF"
        own(4, sets=True)
    assert line(own) == "FCCC"
    assert ["run has 3 steps" in one for one in unfit(caplog)] == [True]
