"""`explain` tells of the latest request what was asked, what happened and why, and what would make it faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cache_dit
from tests.kit.tiny_flux import (
    flux_inputs,
    generate,
    generate_video,
    static_config,
    tiny_pipeline,
    tiny_transformer,
    tiny_wan_pipeline,
)

DYNAMIC: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 1.0}


def dynamic(**options: Any) -> cache_dit.DBCacheConfig:
    return cache_dit.DBCacheConfig(**{**DYNAMIC, **options})


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_each_step_is_told_with_its_reason_and_the_text_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), dynamic(max_continuous_cached_steps=2))
    generate(pipe, steps=7)
    text = cache_dit.explain(pipe)
    assert capsys.readouterr().out == f"{text}\n"
    told = lines(text)
    assert told[0].startswith("FluxTransformer2DModel") and told[0].endswith("(6 blocks)")
    assert "Fn_compute_blocks=1" in told[1] and "max_continuous_cached_steps=2" in told[1]
    assert told[2:] == [
        "happened, cond: FFCCFCC (F computed, C cached)",
        "step 0 computed: nothing was computed before it",
        "step 1 computed: warm-up",
        "steps 2–3 cached: nothing is measured, and no limit is reached",
        "step 4 computed: max_continuous_cached_steps is reached",
        "steps 5–6 cached: nothing is measured, and no limit is reached",
        "in all: 22 of 42 blocks run, ideal speed-up 1.91",
        "faster: max_continuous_cached_steps=2 computed 1 of 7 steps: pass a larger one.",
        "max_warmup_steps=2 computed 2 of 7 steps: pass a smaller one.",
    ]
    assert cache_dit.explain(pipe, logging=False) == text and capsys.readouterr().out == ""


def test_pipeline_transformer_and_adapter_tell_the_same() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    generate(pipe)
    adapter = cache_dit.get_adapter(pipe)
    texts = {cache_dit.explain(one, logging=False) for one in (pipe, pipe.transformer, adapter)}
    assert len(texts) == 1 and "FFCFCC" in texts.pop()


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"residual_diff_threshold": 0.3}, "residual_diff_threshold=0.3 computed"),
        ({"residual_diff_threshold": 1e-4}, "is not above the smallest diff seen"),
        ({"max_warmup_steps": 4}, "max_warmup_steps=4 computed 4 of 9 steps"),
        ({"max_warmup_steps": 12}, "shorter than its warm-up of 12"),
        ({"max_cached_steps": 3}, "max_cached_steps=3 computed 4 of 9 steps"),
        ({"steps_computation_mask": [1, 1, 0, 1, 0, 1, 0, 1, 1]}, "pass one with more zeros"),
        ({"Fn_compute_blocks": 4}, "4 of 6 blocks run in cached steps too"),
        ({"policy": "easycache", "residual_diff_threshold": 0.5}, "of 9 steps: pass a larger one"),
    ],
)
def test_what_held_the_cache_back_is_told_with_what_to_pass(options: dict[str, Any], hint: str) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), dynamic(**options))
    generate(pipe, steps=9)
    told = cache_dit.explain(pipe, logging=False)
    assert hint in told[told.index("faster:") :]


def test_steps_that_no_option_made_compute_are_told_with_their_reason() -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), dynamic(max_warmup_steps=1, num_inference_steps=4))
    with torch.no_grad():
        for step, size in enumerate((4, 4, 2, 2)):
            transformer(**flux_inputs(size=size), timestep=torch.tensor([1 - step / 4]))
    told = cache_dit.explain(transformer, logging=False)
    assert "FCFC" in told
    assert "1 of 4 steps were computed: the shape, dtype or device of the hidden states changed." in told


def test_a_mask_that_does_not_fit_is_noted() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    generate(pipe, steps=5)
    assert "note: steps_computation_mask has 6 entries and the run has 5 steps" in cache_dit.explain(
        pipe, logging=False
    )


def test_where_nothing_ran_or_no_cache_is_on_that_is_told() -> None:
    pipe = tiny_pipeline()
    assert cache_dit.explain(pipe, logging=False).startswith("no cache is on this FluxPipeline: call")
    assert cache_dit.explain(pipe.transformer, logging=False).startswith("no cache is on this FluxTransformer2DModel")
    cache_dit.enable_cache(pipe, static_config())
    told = lines(cache_dit.explain(pipe, logging=False))
    assert told[1].startswith("asked: DBCache, static mask") and told[2].startswith("nothing ran yet")


def test_a_request_without_the_cache_is_told_as_such() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), static_config())
    plain = cache_dit.session("plain")
    plain.enabled = False
    with plain:
        generate(pipe)
    assert "switched off for this request" in cache_dit.explain(pipe, logging=False)


def test_blocks_are_told_as_pruned_and_each_transformer_for_itself() -> None:
    config = cache_dit.DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0)
    pipe = cache_dit.enable_cache(tiny_pipeline(), config)
    generate(pipe, steps=4)
    assert "steps 1–3 pruned" in cache_dit.explain(pipe, logging=False)
    video = cache_dit.enable_cache(tiny_wan_pipeline(two=True), dynamic())
    generate_video(video)
    told = cache_dit.explain(video, logging=False)
    assert told.count("WanTransformer3DModel") == 2 and "happened, uncond" in told


def test_a_policy_that_adds_up_is_not_told_as_one_that_compares_a_step() -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), dynamic(policy="easycache", residual_diff_threshold=0.5))
    generate(pipe, steps=9)
    told = cache_dit.explain(pipe, logging=False)
    assert "adds up to less than the threshold" in told and "would add up to the threshold" in told
    assert "the diff is" not in told and "their diffs begin" not in told
