"""The demo model draws eight different prompts as one batch, by each decision."""

import math
import random
from typing import Any

import torch

import cache_dit
from bench.common import Times
from bench.findings import Finding
from bench.overhead.common import Size
from bench.overhead.groups.batches import DECISIONS, compare_decisions
from bench.peers.cost import CLOCKS
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.demo import load_pipeline
from cache_dit.demo.fidelity import psnr
from cache_dit.summary import CacheStats

PROMPTS = (
    "glossy 3d emoji of cuba flag",
    "flat emoji of woman running, dark skin tone",
    "noto emoji of owl",
    "glossy 3d emoji of rocket",
    "flat emoji of hot beverage",
    "noto emoji of red apple",
    "glossy 3d emoji of grinning face",
    "flat emoji of snowman",
)


def demo(size: Size) -> list[Finding]:
    """A threshold and Taylor 1 with another decision each; both branches of guidance decide for themselves."""
    prompts = list(PROMPTS[:2] if size.quick else PROMPTS)
    runs = min(4, size.runs)
    options: dict[str, Any] = {
        **{"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.2},
        **{"max_warmup_steps": max(1, round(size.steps / 7)), "max_continuous_cached_steps": 3},
    }
    pipe = load_pipeline(progress=False)
    names, now, order = ["bare", *DECISIONS], CLOCKS[size.clock], random.Random(0)
    times: Times = {name: [] for name in names}
    pictures: dict[str, Any] = {}
    stats: dict[str, CacheStats] = {}
    for run in range(runs + 1):
        order.shuffle(names)
        for name in names:
            cache_dit.disable_cache(pipe)
            if name != "bare":
                config = DBCacheConfig(**options, decision=name)
                cache_dit.enable_cache(pipe, config, TaylorSeerCalibratorConfig(taylorseer_order=1))
            generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
            start = now()
            drawn = pipe(prompts, num_inference_steps=size.steps, generator=generators, output_type="np")
            if run:  # the first one warms up
                times[name].append([now() - start])
            pictures[name] = drawn.images
            if name != "bare":
                stats[name] = cache_dit.summary(pipe, logging=False)[0]
    close = {name: psnr(pictures["bare"], pictures[name]) for name in DECISIONS}
    fidelity = {name: decibels if math.isfinite(decibels) else None for name, decibels in close.items()}
    details = {"steps": size.steps, "runs": runs, "psnr_db": fidelity}
    in_order = {name: stats[name] for name in DECISIONS}
    return compare_decisions(f"demo model, {len(prompts)} prompts", times, in_order, len(prompts), **details)
