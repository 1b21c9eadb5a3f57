"""The page on other caches is right where it says *the same steps*: both run on one model."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch

import cache_dit
from tests.kit.tiny_flux import generate, tiny_pipeline

STEPS = 14


def computed(pipe: Any, config: Any = None) -> list[bool]:
    """Which steps of a request run the last block, under a configuration of diffusers or the cache that is on."""
    if config is not None:
        pipe.transformer.enable_cache(config)
    steps: list[bool] = []
    attention = pipe.transformer.single_transformer_blocks[-1].attn.to_q
    handles = [
        pipe.transformer.register_forward_pre_hook(lambda module, args: steps.append(False)),
        attention.register_forward_hook(lambda module, args, output: steps.__setitem__(-1, True)),
    ]
    generate(pipe, steps=STEPS)
    for handle in handles:
        handle.remove()
    if config is not None:
        pipe.transformer.disable_cache()
    return steps


def both(theirs: Any, ours: cache_dit.DBCacheConfig) -> tuple[list[bool], list[bool]]:
    """The computed steps under a configuration of diffusers, and under ours."""
    expected = computed(tiny_pipeline(), theirs)
    pipe = cache_dit.enable_cache(tiny_pipeline(), ours)
    return expected, computed(pipe)


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.4])
def test_first_block_cache_is_dbcache_with_one_block_and_no_warm_up(threshold: float) -> None:
    ours = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=threshold)
    expected, seen = both(diffusers.FirstBlockCacheConfig(threshold=threshold), ours)
    assert seen == expected
    if threshold > 0.3:
        assert not all(expected)


@pytest.mark.parametrize(("threshold", "most"), [(0.06, 3), (0.3, 3), (1.0, 2)])
def test_magcache_of_diffusers_is_the_policy_of_that_name(threshold: float, most: int) -> None:
    ratios = [1.0, *(1 + 0.05 * math.sin(3 * step) for step in range(1, STEPS))]
    known = cache_dit.PolicyCalibration(
        policy="magcache",
        model_class="FluxTransformer2DModel",
        num_inference_steps=STEPS,
        scheduler=None,
        branches={"default": ratios},
    )
    ours = cache_dit.DBCacheConfig(
        policy="magcache",
        policy_calibration=known,
        Fn_compute_blocks=0,
        max_warmup_steps=int(0.2 * STEPS + 0.5),
        residual_diff_threshold=threshold,
        max_continuous_cached_steps=most,
    )
    theirs = diffusers.MagCacheConfig(
        threshold=threshold,
        max_skip_steps=most,
        retention_ratio=0.2,
        num_inference_steps=STEPS,
        mag_ratios=torch.tensor(ratios, dtype=torch.float64),
    )
    expected, seen = both(theirs, ours)
    assert seen == expected
    assert not all(expected)


@pytest.mark.parametrize(("interval", "before"), [(5, 3), (3, 1), (2, 4)])
def test_taylorseer_of_diffusers_computes_the_steps_of_the_mask(interval: int, before: int) -> None:
    mask = [int(step < before or (step - before - 1) % interval == 0) for step in range(STEPS)]
    ours = cache_dit.DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static")
    theirs = diffusers.TaylorSeerCacheConfig(cache_interval=interval, disable_cache_before_step=before, max_order=1)
    expected, seen = both(theirs, ours)
    assert seen == expected
    assert not all(expected)
