"""Runs under observation: what an observer is told, and that nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import DBCacheConfig
from cache_dit.engine.subclass import state_of
from cache_dit.errors import ConfigError
from cache_dit.planning.runs import Observer, observable, observe
from tests.kit.equality import same
from tests.kit.tiny_flux import generate, generate_video, tiny_pipeline, tiny_wan_pipeline
from tests.kit.toys import Toy, denoise, line, loop

STEPS = 6


class Steps(Observer):
    """Notes each step, its branch, and what the middle blocks added and the transformer gave."""

    def __init__(self, state: Any) -> None:
        super().__init__(state)
        self.seen: list[tuple[int, Any]] = []
        self.outputs: list[torch.Tensor | None] = []

    def see(self, made: Any, output: torch.Tensor | None) -> None:
        assert made.snapshot_hidden is not None
        self.seen.append((made.call.step, made.call.branch))
        self.outputs.append(output)


def test_every_step_is_computed_and_told_of_whatever_the_cache_would_skip() -> None:
    model = Toy("0")
    plain = denoise(model, loop(STEPS))
    cache_dit.enable_cache(
        model.adapter(), DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0)
    )
    cached = denoise(model, loop(STEPS))
    assert line(model) == "F" + (STEPS - 1) * "C"
    with observable(model, DBCacheConfig(), several="") as state:
        seen = Steps(state)
        made = observe(seen, lambda: denoise(model, loop(STEPS)))
    assert same(made, plain)
    assert [step for step, _ in seen.seen] == list(range(STEPS)) and seen.steps == STEPS
    assert same([output for output in seen.outputs if output is not None], plain)
    assert state_of(model).observer is None
    assert same(denoise(model, loop(STEPS)), cached)  # the cache that was on is on as before


def test_a_pipelines_branches_and_scheduler_are_known_and_its_cache_goes_with_the_run() -> None:
    pipe = tiny_wan_pipeline()
    expected = generate_video(pipe)
    with observable(pipe, DBCacheConfig(Fn_compute_blocks=1), several="") as state:
        seen = Steps(state)
        assert torch.equal(observe(seen, lambda: generate_video(pipe)), expected)
    assert seen.seen == [(step, branch) for step in range(STEPS) for branch in ("cond", "uncond")]
    assert seen.scheduler is pipe.scheduler
    assert cache_dit.api.cached_transformers(pipe) == []


@pytest.mark.parametrize("cached", [True, False])
def test_a_run_that_fails_leaves_the_cache_as_it_was(cached: bool) -> None:
    pipe = tiny_pipeline()
    if cached:
        cache_dit.enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=1))

    def fail() -> None:
        generate(pipe, steps=2)
        raise KeyError("prompt")

    with pytest.raises(KeyError), observable(pipe, DBCacheConfig(Fn_compute_blocks=1), several="") as state:
        observe(Steps(state), fail)
    assert len(cache_dit.api.cached_transformers(pipe)) == cached
    if cached:
        assert state_of(pipe.transformer).observer is None


def test_a_run_that_shows_nothing_and_several_transformers_are_refused() -> None:
    pipe = tiny_wan_pipeline(two=True)
    with (
        pytest.raises(ConfigError, match="there are 2 transformers: take one"),
        observable(pipe, DBCacheConfig(Fn_compute_blocks=1), several="take one"),
    ):
        pass
    assert cache_dit.api.cached_transformers(pipe) == []
    with (
        pytest.raises(ConfigError, match="never called the transformer"),
        observable(pipe.transformer, DBCacheConfig(Fn_compute_blocks=1), several="") as state,
    ):
        observe(Steps(state), lambda: None)
