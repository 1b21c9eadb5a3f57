"""Options belong to the object they were given to: two pipelines over one transformer each have their own."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxPipeline

import cache_dit
from cache_dit import (
    BlockAdapter,
    ConfigError,
    DBCacheConfig,
    DBPruneConfig,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
    UnsupportedModelError,
)
from cache_dit.caching import CachedContextManager
from tests.engine.plans.test_plan_runtime import DAMPED, plan_of
from tests.interplay.test_copies import is_plain
from tests.kit.equality import same
from tests.kit.threads import in_threads
from tests.kit.tiny_flux import (
    STEPS,
    counted,
    denoise,
    embeddings,
    expected_calls,
    generate,
    generate_video,
    static_config,
    tiny_pipeline,
    tiny_transformer,
    tiny_wan,
    tiny_wan_pipeline,
)

A, B, C = [1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 1, 1, 0, 1]
NEGATIVE = {f"negative_{name}": value for name, value in embeddings(seed=9).items()}


def shared(pipe: Any, kind: type = FluxPipeline, **components: Any) -> Any:
    """Another pipeline of the same components, but those given."""
    other = kind(**{**pipe.components, **components})
    other.set_progress_bar_config(disable=True)
    return other


def pair() -> tuple[Any, Any]:
    """Two pipelines over one transformer, without a cache, each with a scheduler of its own."""
    pipe = tiny_pipeline()
    return pipe, shared(pipe, scheduler=FlowMatchEulerDiscreteScheduler())


def enabled(pipe: Any, mask: list[int], **options: Any) -> Any:
    return cache_dit.enable_cache(pipe, static_config(mask=mask, **options))


def alone(mask: list[int], **call: Any) -> torch.Tensor:
    """What a pipeline gives that has its transformer for itself."""
    return generate(enabled(tiny_pipeline(), mask), **call)


def line(holder: Any, entry: int = 0) -> str:
    lines: list[str] = list(cache_dit.summary(holder, logging=False)[entry].steps_line.values())
    return lines[0]


def letters(mask: list[int]) -> str:
    return "".join("CF"[computed] for computed in mask)


#: Ways of making one pipeline of another.
MADE_BY: dict[str, Callable[[Any], Any]] = {"components": shared, "from_pipe": FluxPipeline.from_pipe}


@pytest.mark.parametrize("made_by", MADE_BY)
@pytest.mark.parametrize("first_enabled", [0, 1])
@pytest.mark.parametrize("first_run", [0, 1])
def test_each_of_two_pipelines_runs_with_its_own_options(made_by: str, first_enabled: int, first_run: int) -> None:
    pipe = tiny_pipeline(text=made_by == "from_pipe")
    pipes, masks = (pipe, MADE_BY[made_by](pipe)), (A, B)
    pipes[1].set_progress_bar_config(disable=True)
    for index in (first_enabled, 1 - first_enabled):
        enabled(pipes[index], masks[index])
    for index in (first_run, 1 - first_run, first_run):
        with counted(pipe.transformer) as calls:
            assert same(generate(pipes[index]), alone(masks[index]))
        assert calls == expected_calls(mask=masks[index])
        assert line(pipes[index]) == letters(masks[index])


def test_a_pipeline_made_of_a_cached_one_may_have_options_of_its_own() -> None:
    pipe = enabled(tiny_pipeline(), A)
    other = shared(pipe)
    assert same(generate(other), alone(A)), "until it is given some, it has the last that were given"
    enabled(other, B)
    assert same(generate(other), alone(B))
    assert same(generate(pipe), alone(A))


def test_calls_outside_of_both_have_the_options_that_were_given_last() -> None:
    p, q = pair()
    third = shared(p)
    for pipe, mask in ((p, A), (q, B), (p, C)):
        enabled(pipe, mask)
        expected = denoise(enabled(tiny_transformer(), mask))
        assert same(denoise(p.transformer), expected)
        assert line(p.transformer) == letters(mask)
        assert same(generate(third), alone(mask))
    assert same(generate(q), alone(B)) and same(generate(p), alone(C))


def test_the_transformer_itself_can_have_options_beside_those_of_its_pipeline() -> None:
    pipe = enabled(tiny_pipeline(), A)
    enabled(pipe.transformer, B)
    assert same(generate(pipe), alone(A))
    assert same(denoise(pipe.transformer), denoise(enabled(tiny_transformer(), B)))
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and same(generate(pipe), alone(B))
    cache_dit.disable_cache(pipe.transformer)
    assert is_plain(pipe.transformer)


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("first_enabled", [0, 1])
def test_taking_it_off_one_leaves_the_other_as_it_was(gone: int, first_enabled: int) -> None:
    pipes, masks = pair(), (A, B)
    for index in (first_enabled, 1 - first_enabled):
        enabled(pipes[index], masks[index])
    generate(pipes[0])
    generate(pipes[1])
    cache_dit.disable_cache(pipes[gone])
    cache_dit.disable_cache(pipes[gone])  # once more changes nothing
    left = 1 - gone
    assert is_plain(pipes[gone])
    with counted(pipes[0].transformer) as calls:
        assert same(generate(pipes[left]), alone(masks[left]))
    assert calls == expected_calls(mask=masks[left])
    assert line(pipes[left]) == letters(masks[left])
    assert same(denoise(pipes[0].transformer), denoise(enabled(tiny_transformer(), masks[left])))
    cache_dit.disable_cache(pipes[left])
    assert is_plain(pipes[left]) and is_plain(pipes[0].transformer)
    assert same(generate(pipes[left]), generate(tiny_pipeline()))


def test_the_transformer_is_plain_when_it_is_itself_named() -> None:
    p, q = pair()
    transformer = enabled(enabled(p, A), B).transformer
    enabled(q, B)
    cache_dit.disable_cache(transformer)
    assert is_plain(transformer)
    assert same(generate(p), generate(q)) and same(generate(p), generate(tiny_pipeline()))
    enabled(p, C)
    assert same(generate(p), alone(C))
    assert same(generate(q), alone(C)), "what was given to it is gone"


def test_a_pipeline_without_options_of_its_own_takes_off_what_it_runs_with_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = enabled(tiny_pipeline(), A)
    with caplog.at_level(logging.WARNING, "cache_dit"):
        cache_dit.disable_cache(shared(pipe))
    assert is_plain(pipe.transformer)
    assert "this FluxPipeline has no options of its own: the cache is taken off FluxTransformer2DModel" in caplog.text


def test_enabling_again_on_one_replaces_its_own_and_no_other() -> None:
    p, q = pair()
    enabled(p, A)
    enabled(q, B)
    generate(p)
    enabled(p, C)
    assert same(generate(p), alone(C)) and same(generate(q), alone(B))
    cache_dit.enable_cache(q, DBCacheConfig(cache_type=cache_dit.CacheType.NONE))
    assert is_plain(q) and same(generate(p), alone(C))


OPTIONS: dict[str, dict[str, Any]] = {
    "mask": {"cache_config": static_config(mask=A)},
    "no F block": {"cache_config": static_config(0, 0, B)},
    "F and B": {"cache_config": static_config(2, 1, C), "calibrator_config": TaylorSeerCalibratorConfig()},
    "threshold": {
        "cache_config": DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9),
        "calibrator_config": TaylorSeerCalibratorConfig(taylorseer_order=1),
    },
    "prune": {"cache_config": DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9)},
    "by sample": {
        "cache_config": DBCacheConfig(
            Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5, decision="sample"
        )
    },
    "latent": {
        "cache_config": DBCacheConfig(
            policy="easycache", Fn_compute_blocks=0, max_warmup_steps=2, residual_diff_threshold=0.9
        )
    },
    "modifier": {
        "cache_config": static_config(mask=A),
        "params_modifiers": ParamsModifier(cache_config=DBCacheConfig().reset(Bn_compute_blocks=2)),
    },
    "plan": {"cache_config": DBCacheConfig(plan=plan_of("reuse", DAMPED, mask="110010"))},
    "nothing": {"cache_config": DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.0, max_warmup_steps=0)},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("first", OPTIONS)
def test_options_of_any_kinds_stand_beside_each_other(first: str) -> None:
    def run(pipe: Any) -> torch.Tensor:
        return generate(pipe, true_cfg_scale=2.0, **NEGATIVE)

    kinds = list(OPTIONS)
    second = kinds[(kinds.index(first) + 3) % len(kinds)]
    p, q = pair()
    cache_dit.enable_cache(p, **OPTIONS[first])
    cache_dit.enable_cache(q, **OPTIONS[second])
    expected = {name: run(cache_dit.enable_cache(tiny_pipeline(), **OPTIONS[name])) for name in (first, second)}
    for pipe, name in ((p, first), (q, second), (p, first)):
        assert same(run(pipe), expected[name])
        entry = cache_dit.summary(pipe, logging=False)[0]
        assert entry.cache_options["cache_config"] == OPTIONS[name]["cache_config"] or name == "modifier"
    cache_dit.disable_cache(p)
    assert same(run(q), expected[second])


def test_a_policy_that_looks_inside_the_first_block_stays_when_the_other_goes() -> None:
    calibration = cache_dit.calibrate(p := tiny_pipeline(), lambda: generate(p), policy="teacache")
    config = DBCacheConfig(
        policy="teacache",
        policy_calibration=calibration,
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        residual_diff_threshold=0.3,
    )
    expected = generate(cache_dit.enable_cache(tiny_pipeline(), config))
    q = shared(cache_dit.enable_cache(p, config))
    enabled(q, B)
    assert same(generate(q), alone(B)) and same(generate(p), expected)
    assert cache_dit.summary(p, logging=False)[0].residual_diffs, "the policy saw what it goes by"
    cache_dit.disable_cache(q)
    assert same(generate(p), expected)
    enabled(q, B)
    cache_dit.disable_cache(p)
    assert same(generate(q), alone(B))


def test_how_unnamed_calls_are_told_apart_belongs_to_the_pipeline() -> None:
    from diffusers import FluxKontextPipeline

    def run(pipe: Any) -> torch.Tensor:
        return generate(pipe, true_cfg_scale=2.0, max_area=64, _auto_resize=False, **NEGATIVE)

    p = shared(tiny_pipeline(), FluxKontextPipeline)
    q = shared(p, FluxKontextPipeline)
    enabled(p, A, enable_separate_cfg=True)
    enabled(q, A, enable_separate_cfg=True, cfg_compute_first=True, cfg_diff_compute_separate=False)
    for pipe, first in ((p, "cond"), (q, "uncond"), (p, "cond")):
        run(pipe)
        assert next(iter(cache_dit.summary(pipe, logging=False)[0].steps_line)) == first


def test_a_refresh_of_the_transformer_changes_the_options_of_all() -> None:
    p, q = pair()
    enabled(p, A)
    enabled(q, B)
    cache_dit.refresh_context(p.transformer, steps_computation_mask=C)
    for pipe in (p, q):
        assert same(generate(pipe), alone(C))
    with pytest.raises(ConfigError, match="Fn_compute_blocks"):
        cache_dit.refresh_context(p.transformer, Fn_compute_blocks=100)
    assert same(generate(p), alone(C))


def test_a_session_around_a_pipeline_s_call_changes_that_pipeline_s_options() -> None:
    p, q = pair()
    enabled(p, A)
    cache_dit.enable_cache(q, static_config(2, 1, B))
    with cache_dit.session("careful") as handle:
        handle.update(steps_computation_mask=C)
        first, second = generate(p), generate(q)
    assert same(first, alone(C))
    assert same(second, generate(cache_dit.enable_cache(tiny_pipeline(), static_config(2, 1, C))))
    assert same(generate(p), alone(A))


def test_a_session_inside_a_pipeline_s_call_has_that_pipeline_s_options() -> None:
    class Windows(FluxPipeline):
        """Each of two windows is a request of its own."""

        def __call__(self) -> list[torch.Tensor]:  # type: ignore[override]
            made = []
            for name in ("left", "right"):
                with cache_dit.session(name, num_inference_steps=STEPS):
                    made += denoise(self.transformer)
            return made

    p = tiny_pipeline()
    q = shared(p, Windows)
    enabled(q, B)
    enabled(p, A)
    assert same(q(), 2 * denoise(enabled(tiny_transformer(), B)))


@pytest.mark.parametrize("outer", ["holds", "holds none"])
def test_a_preview_inside_a_callback_has_its_own_options_and_harms_none(outer: str) -> None:
    p, q = pair()
    if outer == "holds":
        enabled(p, A)
    enabled(q, B)
    seen = []

    def preview(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            seen.append(generate(q, seed=7))
        return tensors

    made = generate(p, callback_on_step_end=preview)
    assert same(seen, [alone(B, seed=7)])
    if outer == "holds":
        assert same(made, alone(A))


def test_enabling_one_in_the_middle_of_the_other_s_run_leaves_the_run_as_it_is() -> None:
    p, q = pair()
    enabled(p, A)

    def enable(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            enabled(q, B)
        if index == 3:
            cache_dit.disable_cache(q)
        return tensors

    assert same(generate(p, callback_on_step_end=enable), alone(A))
    assert line(p) == letters(A)


def test_two_threads_with_a_pipeline_each_give_what_each_gives_alone() -> None:
    p, q = pair()
    enabled(p, A)
    enabled(q, B)
    expected, results, start = (alone(A), alone(B)), ([], []), threading.Barrier(2)  # type: ignore[var-annotated]

    def work(index: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        for _ in range(3):
            results[index].append(generate((p, q)[index]))

    in_threads(work, 2)
    for index in range(2):
        assert len(results[index]) == 3
        assert all(same(result, expected[index]) for result in results[index])


def test_a_pipeline_of_another_class_has_its_own_options_too() -> None:
    def redrawn(pipe: Any) -> torch.Tensor:
        made: torch.Tensor = pipe(
            **embeddings(),
            image=torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(5)),
            height=8,
            width=8,
            guidance_scale=3.0,
            strength=1.0,
            num_inference_steps=STEPS,
            output_type="latent",
            generator=torch.Generator().manual_seed(2),
        ).images
        return made

    expected = redrawn(enabled(shared(tiny_pipeline(), FluxImg2ImgPipeline), B))
    p = enabled(tiny_pipeline(), A)
    q = enabled(shared(p, FluxImg2ImgPipeline), B)
    assert same(redrawn(q), expected) and same(generate(p), alone(A)) and same(redrawn(q), expected)


# -- wrong options, and pipelines that go


@pytest.mark.parametrize("holds", [False, True])
def test_wrong_options_for_one_change_nothing_for_any(holds: bool) -> None:
    p, q = pair()
    enabled(p, A)
    if holds:
        enabled(q, B)
    with pytest.raises(ConfigError, match="Fn_compute_blocks=100"):
        cache_dit.enable_cache(q, static_config(100))
    assert is_plain(q) is not holds
    assert same(generate(q), alone(B if holds else A))
    assert same(generate(p), alone(A))


class Final(FluxPipeline):
    """A pipeline whose class cannot be subclassed."""

    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("final")


def test_a_pipeline_that_cannot_be_intercepted_leaves_the_other_as_it_was() -> None:
    p = enabled(tiny_pipeline(), A)
    with pytest.raises(UnsupportedModelError, match="Final cannot be intercepted"):
        enabled(shared(p, Final), B)
    assert same(generate(p), alone(A)) and same(denoise(p.transformer), denoise(enabled(tiny_transformer(), A)))


class FinalAttention(torch.nn.Module):
    """Cannot be subclassed."""

    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("final")

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Any, **given: Any) -> Any:
        return self.inner(hidden_states=hidden_states, **given)


def test_a_policy_that_cannot_look_inside_leaves_the_other_pipeline_as_it_was() -> None:
    p, q = pair()
    calibration = cache_dit.calibrate(p, lambda: generate(p), policy="teacache")
    block = p.transformer.transformer_blocks[0]
    block.attn = FinalAttention(block.attn)
    enabled(p, A)
    config = DBCacheConfig(policy="teacache", policy_calibration=calibration, Fn_compute_blocks=1)
    with pytest.raises(UnsupportedModelError, match="FinalAttention cannot be intercepted"):
        cache_dit.enable_cache(q, config)
    assert is_plain(q) and same(generate(p), alone(A)) and same(generate(q), alone(A))
    enabled(q, B)
    assert same(generate(q), alone(B)) and same(generate(p), alone(A))


def test_other_blocks_for_the_second_are_refused_and_change_nothing() -> None:
    p, q = pair()
    enabled(p, A)
    adapter = BlockAdapter(pipe=q, blocks=q.transformer.single_transformer_blocks, forward_pattern=cache_dit.Pattern_1)
    with pytest.raises(ConfigError, match="FluxTransformer2DModel is cached for another pipeline by other blocks"):
        cache_dit.enable_cache(adapter, static_config(mask=B))
    assert is_plain(q) and same(generate(p), alone(A))
    cache_dit.disable_cache(p)
    cache_dit.enable_cache(adapter, static_config(mask=B))
    generate(q)
    assert line(q) == letters(B)


def test_a_transformer_that_is_compiled_for_one_alone_is_refused_and_changes_nothing() -> None:
    p, q = pair()
    enabled(p, A)
    q.transformer = torch.compile(p.transformer, backend="eager")
    with pytest.raises(
        ConfigError, match=r"FluxTransformer2DModel is cached for another pipeline.*or compiled for one"
    ):
        enabled(q, B)
    assert is_plain(q) and same(generate(p), alone(A))
    p.transformer = q.transformer
    enabled(p, A)
    enabled(q, B)
    cache_dit.disable_cache(q)
    assert not is_plain(p.transformer)
    cache_dit.disable_cache(p)
    assert is_plain(p.transformer)


def test_a_description_of_the_same_blocks_is_as_good_as_the_record() -> None:
    p, q = pair()
    enabled(p, A)
    adapter = BlockAdapter(
        pipe=q,
        blocks=[q.transformer.transformer_blocks, q.transformer.single_transformer_blocks],
        blocks_name=["double", "single"],
        forward_pattern=[cache_dit.Pattern_1, cache_dit.Pattern_1],
        merge=True,
    )
    cache_dit.enable_cache(adapter, static_config(mask=B))
    assert same(generate(p), alone(A)) and same(generate(q), alone(B))
    assert line(adapter) == letters(B)
    cache_dit.disable_cache(adapter)
    assert same(generate(p), alone(A))


def test_naming_the_transformer_with_other_blocks_takes_it_over_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    pipe = enabled(tiny_pipeline(), A)
    blocks = pipe.transformer.single_transformer_blocks
    adapter = BlockAdapter(transformer=pipe.transformer, blocks=blocks, forward_pattern=cache_dit.Pattern_1)
    with caplog.at_level(logging.WARNING, "cache_dit"):
        cache_dit.enable_cache(adapter, static_config(mask=B))
    assert "pipelines that were given options for it have these now" in caplog.text
    generate(pipe)
    assert line(pipe.transformer) == letters(B)
    cache_dit.disable_cache(pipe.transformer)
    assert is_plain(pipe.transformer)


@pytest.mark.parametrize("last", ["goes", "stays"])
def test_a_pipeline_that_is_forgotten_takes_its_options_along(last: str) -> None:
    p, q = pair()
    for pipe in (p, q) if last == "stays" else (q, p):
        enabled(pipe, A if pipe is p else B)
    generate(p)
    transformer, gone = q.transformer, weakref.ref(p)
    del p, pipe
    gc.collect()
    assert gone() is None
    assert same(generate(q), alone(B))
    expected = denoise(enabled(tiny_transformer(), A if last == "goes" else B))
    assert same(denoise(transformer), expected), "what was given last"
    cache_dit.disable_cache(q)
    assert is_plain(transformer)


def test_a_forgotten_pipeline_leaves_the_transformer_cached_until_somebody_else_is() -> None:
    p, q = pair()
    enabled(p, A)
    del p
    gc.collect()
    assert same(generate(q), alone(A))
    enabled(q, B)
    assert same(generate(q), alone(B))
    cache_dit.disable_cache(q)
    assert is_plain(q.transformer)


# -- two transformers


def video(first: Any, second: Any) -> Any:
    pipe = tiny_wan_pipeline(two=True)
    pipe.transformer, pipe.transformer_2 = first, second
    return pipe


def test_pipelines_of_two_transformers_may_share_one_of_them() -> None:
    def made() -> tuple[Any, Any]:
        first = tiny_wan(0)
        return video(first, tiny_wan(1)), video(first, tiny_wan(2))

    (p, _), (_, q) = made(), made()
    expected = generate_video(enabled(p, A)), generate_video(enabled(q, B))
    p, q = made()
    enabled(p, A)
    enabled(q, B)
    for _ in range(2):
        assert same(generate_video(p), expected[0]) and same(generate_video(q), expected[1])
    cache_dit.disable_cache(q)
    assert is_plain(q.transformer_2) and not is_plain(q.transformer)
    assert same(generate_video(p), expected[0])
    cache_dit.disable_cache(p)
    assert is_plain(p.transformer) and is_plain(p.transformer_2)


def test_one_that_takes_over_the_transformer_of_another_has_its_own_options_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    p, q = enabled(tiny_pipeline(), A), enabled(tiny_pipeline(4), B)
    generate(p)
    old, p.transformer = p.transformer, q.transformer
    with caplog.at_level(logging.WARNING, "cache_dit"):
        made = generate(p)
    assert [record.getMessage() for record in caplog.records] == [
        "cache_dit: FluxPipeline.transformer is another module now: enabling the cache on it"
    ]
    assert same(made, generate(enabled(tiny_pipeline(transformer=tiny_transformer(4)), A)))
    assert same(generate(q), generate(enabled(tiny_pipeline(4), B)))
    cache_dit.disable_cache(p)
    assert is_plain(old) and not is_plain(q.transformer)
    assert same(generate(q), generate(enabled(tiny_pipeline(4), B)))


# -- what servers look at, and runs that are watched


class Never(CachedContextManager):
    """Says of nothing that it has hardly changed."""

    def similarity(self, t1: Any, t2: Any, *, threshold: float, parallelized: bool = False, prefix: str = "Fn") -> bool:
        return False


def test_a_context_manager_of_one_decides_for_no_other() -> None:
    measured = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.9)
    p, q = pair()
    for pipe in (p, q):
        cache_dit.enable_cache(pipe, measured)
    p._context_manager = Never()
    generate(p)
    generate(q)
    assert "C" not in line(p) and "C" in line(q)
    assert isinstance(p._context_manager, Never) and not isinstance(q._context_manager, Never)
    assert q._context_manager.get_cached_steps() == cache_dit.summary(q, logging=False)[0].cached_steps


def test_a_run_is_watched_whoever_s_call_it_is() -> None:
    p, q = pair()
    expected = cache_dit.calibrate(p, lambda: generate(p))
    for pipe in (p, q):
        enabled(pipe, A)
    for watched in (p, p.transformer):
        assert cache_dit.calibrate(watched, lambda: generate(p)) == expected
    assert same(generate(p), alone(A))
