"""A pipeline call is a request; and what people do with pipelines still works when they are cached."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)

import cache_dit
from tests.interplay.test_copies import is_plain
from tests.kit.equality import close, same
from tests.kit.threads import in_threads
from tests.kit.tiny_flux import (
    STEPS,
    counted,
    denoise,
    embeddings,
    expected_calls,
    generate,
    generate_qwen,
    generate_sd3,
    generate_video,
    static_config,
    tiny_pipeline,
    tiny_qwen_pipeline,
    tiny_sd3_pipeline,
    tiny_transformer,
    tiny_wan_pipeline,
)

#: Importing diffusers' automatic pipelines imports all pipelines, some of which script a function.
SCRIPTS = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

#: Decides by measuring, with a threshold that lets some steps through, and predicts with a history.
DYNAMIC = {
    "cache_config": cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=1
    ),
    "calibrator_config": cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1),
}
STATIC = {"cache_config": static_config()}
OPTIONS = pytest.mark.parametrize("options", [STATIC, DYNAMIC], ids=["static", "dynamic"])


def cached_pipeline(options: dict[str, Any] | None = None, **components: Any) -> FluxPipeline:
    return cache_dit.enable_cache(tiny_pipeline(**components), **(options or STATIC))


def first_result(options: dict[str, Any], **call: Any) -> torch.Tensor:
    """What the first call of a fresh cached pipeline gives."""
    return generate(cached_pipeline(options), **call)


def _auto_image_to_image(pipe: Any) -> Any:
    from diffusers import AutoPipelineForImage2Image

    return AutoPipelineForImage2Image.from_pipe(pipe)


def _auto_text_to_image(pipe: Any) -> Any:
    from diffusers import AutoPipelineForText2Image

    return AutoPipelineForText2Image.from_pipe(pipe)


def img2img(pipe: Any, **options: Any) -> torch.Tensor:
    return pipe(
        **{**embeddings(), "height": 8, "width": 8, "guidance_scale": 3.0, "strength": 1.0, **options},
        image=torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(5)),
        num_inference_steps=STEPS,
        output_type="latent",
        generator=torch.Generator().manual_seed(2),
    ).images


# -- a call is a request


@OPTIONS
def test_the_second_call_equals_the_first(options: dict[str, Any]) -> None:
    pipe = cached_pipeline(options)
    first = generate(pipe)
    assert cache_dit.summary(pipe, logging=False)[0].cached_steps
    assert not same(first, generate(tiny_pipeline()))
    assert same(generate(pipe), first)
    assert same(generate(pipe), first)


def test_the_blocks_that_run_are_those_that_the_mask_says() -> None:
    pipe = cached_pipeline()
    with counted(pipe.transformer) as calls:
        generate(pipe)
    assert calls == expected_calls()
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert stats.steps_line == {"cond": "FFCFCC"}
    assert (stats.executed_blocks, stats.possible_blocks) == (sum(calls.values()), 6 * STEPS)


class Abort(Exception):
    pass


def _abort_at(step: int) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == step:
            raise Abort
        return tensors

    return callback


def _interrupt_at(step: int) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index >= step
        return tensors

    return callback


@OPTIONS
@pytest.mark.parametrize("step", range(STEPS))
def test_a_call_after_one_that_a_callback_aborted_equals_a_first(options: dict[str, Any], step: int) -> None:
    pipe = cached_pipeline(options)
    with pytest.raises(Abort):
        generate(pipe, callback_on_step_end=_abort_at(step))
    assert same(generate(pipe), first_result(options))


@OPTIONS
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_call_after_an_interrupted_one_equals_a_first(options: dict[str, Any], step: int) -> None:
    pipe = cached_pipeline(options)
    generate(pipe, callback_on_step_end=_interrupt_at(step))
    assert same(generate(pipe), first_result(options))


@OPTIONS
@pytest.mark.parametrize("block", [0, 2, 5])
def test_a_call_after_one_that_failed_inside_a_block_equals_a_first(options: dict[str, Any], block: int) -> None:
    pipe = cached_pipeline(options)
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    calls = 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Abort

    handle = blocks[block].register_forward_pre_hook(fail)
    with pytest.raises(Abort):
        generate(pipe)
    handle.remove()
    assert same(generate(pipe), first_result(options))


@OPTIONS
@pytest.mark.parametrize("other", [{"steps": 4}, {"steps": 9}, {"size": 16}, {"batch": 2}, {"true_cfg": True}])
def test_a_call_after_one_of_another_kind_equals_a_first(options: dict[str, Any], other: dict[str, Any]) -> None:
    call = dict(other)
    if call.pop("true_cfg", False):
        call = true_cfg()
    pipe = cached_pipeline(options)
    generate(pipe, **call)
    assert same(generate(pipe), first_result(options))
    assert same(generate(pipe, **call), first_result(options, **call))


def test_nothing_is_kept_when_a_call_is_over() -> None:
    pipe = cached_pipeline(DYNAMIC)
    generate(pipe)
    assert not vars(pipe.transformer)["_cache_dit"].sessions
    assert vars(pipe.transformer)["_cache_dit"].latest.nbytes == 0
    assert cache_dit.summary(pipe, logging=False)[0].peak_bytes > 0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_call_shorter_than_warmup_and_two_more_runs_without_and_says_so_once(
    steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = cached_pipeline(DYNAMIC)
    with caplog.at_level(logging.WARNING, "cache_dit"):
        assert same(generate(pipe, steps=steps), generate(tiny_pipeline(), steps=steps))
    assert len(caplog.records) == 1
    assert "shorter than its warm-up of 2 steps plus 2" in caplog.text
    caplog.clear()
    assert same(generate(pipe), first_result(DYNAMIC))
    assert not caplog.records


def test_the_number_of_steps_is_that_of_the_given_sigmas() -> None:
    """Three sigmas are three steps, whatever num_inference_steps says by default: too few for the warm-up."""
    sigmas = [1.0, 0.6, 0.3]
    pipe = cached_pipeline(DYNAMIC)
    assert same(generate(pipe, steps=28, sigmas=sigmas), generate(tiny_pipeline(), steps=28, sigmas=sigmas))


# -- guidance


def true_cfg() -> dict[str, Any]:
    negative = embeddings(seed=9)
    return {
        "true_cfg_scale": 2.0,
        "negative_prompt_embeds": negative["prompt_embeds"],
        "negative_pooled_prompt_embeds": negative["pooled_prompt_embeds"],
    }


@OPTIONS
def test_both_branches_of_guidance_are_cached_and_reported_by_name(options: dict[str, Any]) -> None:
    pipe = cached_pipeline(options)
    with counted(pipe.transformer) as calls:
        first = generate(pipe, **true_cfg())
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert list(stats.steps_line) == ["cond", "uncond"]
    assert [len(line) for line in stats.steps_line.values()] == [STEPS, STEPS]
    assert stats.cached_steps and stats.cfg_cached_steps
    assert stats.executed_blocks == sum(calls.values())
    assert same(generate(pipe, **true_cfg()), first)


def test_the_branches_do_not_mix() -> None:
    """The same embeddings in both branches: with true guidance, the picture is that of one branch alone."""
    pipe = cached_pipeline()
    same_again = {f"negative_{name}": value for name, value in embeddings().items()}
    both = generate(pipe, true_cfg_scale=2.0, **same_again)
    assert close(both, generate(pipe))


def test_both_transformers_of_wan_are_cached() -> None:
    pipe = tiny_wan_pipeline(two=True)
    plain = generate_video(pipe)
    cache_dit.enable_cache(pipe, static_config())
    first = generate_video(pipe)
    assert not same(first, plain)
    stats = cache_dit.summary(pipe, logging=False)
    assert [list(entry.steps_line) for entry in stats] == [["cond", "uncond"]] * 4
    lines = [entry.steps_line["cond"] for entry in stats[:2]]
    assert sum(map(len, lines)) == STEPS and all("C" in line for line in lines)
    assert same(generate_video(pipe), first)
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(pipe.transformer) and is_plain(pipe.transformer_2)
    assert same(generate_video(pipe), plain)


def test_a_transformer_put_in_the_place_of_the_second_gets_the_options_of_the_second() -> None:
    pipe = tiny_wan_pipeline(two=True)
    masks = [[1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0]]
    modifiers = [cache_dit.ParamsModifier(cache_config=static_config(mask=mask)) for mask in masks]
    cache_dit.enable_cache(pipe, static_config(), params_modifiers=modifiers)
    pipe.transformer_2 = tiny_wan_pipeline(two=True).transformer_2
    generate_video(pipe)
    options = cache_dit.summary(pipe, logging=False)[1].cache_options
    assert options["cache_config"].steps_computation_mask == masks[1]


def test_a_guidance_of_one_leaves_the_unconditional_branch_out() -> None:
    pipe = cache_dit.enable_cache(tiny_wan_pipeline(), static_config())
    first = generate_video(pipe)
    generate_video(pipe, guidance_scale=1.0)
    assert list(cache_dit.summary(pipe, logging=False)[0].steps_line) == ["cond"]
    assert same(generate_video(pipe), first)


def test_guidance_by_skipped_layers_is_a_branch_of_its_own_and_no_step() -> None:
    """Stable Diffusion 3 calls its transformer once more in a step, for one of two branches, without some blocks."""
    skipping = {"skip_guidance_layers": [2], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    plain = generate_sd3(tiny_sd3_pipeline(), **skipping)
    assert not same(plain, generate_sd3(tiny_sd3_pipeline()))
    computing = cache_dit.enable_cache(tiny_sd3_pipeline(), static_config(mask=[1] * STEPS))
    assert same(generate_sd3(computing, **skipping), plain)
    pipe = cache_dit.enable_cache(tiny_sd3_pipeline(), static_config())
    first = generate_sd3(pipe, **skipping)
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert stats.steps_line == {"default": "FFCFCC", "default [2]": "-FCFCC"}
    assert (stats.cached_steps, stats.cfg_cached_steps) == ([2, 4, 5], [])
    assert same(generate_sd3(pipe, **skipping), first)
    cache_dit.disable_cache(pipe)
    assert same(generate_sd3(pipe, **skipping), plain)


def test_branches_with_prompts_of_different_lengths_are_both_cached() -> None:
    pipe = tiny_qwen_pipeline()
    plain = generate_qwen(pipe)
    cache_dit.enable_cache(pipe, static_config())
    first = generate_qwen(pipe)
    assert cache_dit.summary(pipe, logging=False)[0].steps_line == {"cond": "FFCFCC", "uncond": "FFCFCC"}
    assert same(generate_qwen(pipe), first)
    cache_dit.disable_cache(pipe)
    assert same(generate_qwen(pipe), plain)


def kontext(pipe: Any) -> torch.Tensor:
    return generate(pipe, **true_cfg(), max_area=64, _auto_resize=False)


@OPTIONS
def test_guidance_whose_calls_have_no_names_is_two_branches(options: dict[str, Any]) -> None:
    """Of FLUX's pipelines, only some name their calls; all call the transformer twice at the first timestep."""

    def made(**more: Any) -> FluxKontextPipeline:
        pipe = FluxKontextPipeline(**tiny_pipeline().components)
        pipe.set_progress_bar_config(disable=True)
        config = copy.deepcopy(options["cache_config"]).update(**more)
        return cache_dit.enable_cache(pipe, config, options.get("calibrator_config"))

    pipe, said = made(), made(enable_separate_cfg=True)
    expected = kontext(said)
    for _ in range(2):
        assert same(kontext(pipe), expected)
        stats = cache_dit.summary(pipe, logging=False)[0]
        assert list(stats.steps_line) == ["cond", "uncond"]
        assert [len(line) for line in stats.steps_line.values()] == [STEPS, STEPS]
        assert stats.cached_steps and stats.cfg_cached_steps
        assert stats.steps_line == cache_dit.summary(said, logging=False)[0].steps_line


# -- several pipelines, any order


def test_pipelines_of_one_class_have_their_own_configuration() -> None:
    configs = {
        0: static_config(),
        1: static_config(2, 1),
        2: static_config(0, 0, [1, 0, 0, 1, 0, 1]),
    }
    alone = {seed: generate(cache_dit.enable_cache(tiny_pipeline(seed), config)) for seed, config in configs.items()}
    plain = {seed: generate(tiny_pipeline(seed)) for seed in configs}
    pipes = {seed: tiny_pipeline(seed) for seed in configs}
    for seed in (1, 0, 2):
        cache_dit.enable_cache(pipes[seed], configs[seed])
    for seed in (0, 1, 2, 1):
        assert same(generate(pipes[seed]), alone[seed])
    cache_dit.disable_cache(pipes[0])
    assert same(generate(pipes[0]), plain[0])
    assert same(generate(pipes[1]), alone[1])
    cache_dit.enable_cache(pipes[0], configs[0])
    cache_dit.disable_cache(pipes[2])
    cache_dit.disable_cache(pipes[1])
    assert same(generate(pipes[0]), alone[0])
    assert same(generate(pipes[1]), plain[1])
    assert same(generate(pipes[2]), plain[2])


def test_enabling_again_replaces_the_configuration() -> None:
    pipe = cached_pipeline()
    generate(pipe)
    cache_dit.enable_cache(pipe, **DYNAMIC)
    assert same(generate(pipe), first_result(DYNAMIC))
    cache_dit.disable_cache(pipe)
    cache_dit.disable_cache(pipe)
    assert type(pipe) is FluxPipeline and is_plain(pipe.transformer)
    assert same(generate(pipe), generate(tiny_pipeline()))


def test_enabled_on_the_pipeline_disabled_by_its_transformer() -> None:
    pipe = cached_pipeline()
    generate(pipe)
    cache_dit.disable_cache(pipe.transformer)
    assert is_plain(pipe.transformer)
    assert same(generate(pipe), generate(tiny_pipeline()))
    pipe.transformer = tiny_transformer(4)
    assert same(generate(pipe), generate(tiny_pipeline(transformer=tiny_transformer(4))))
    cache_dit.enable_cache(pipe, **STATIC)
    assert same(generate(pipe), generate(cached_pipeline(transformer=tiny_transformer(4))))


def test_enabled_on_the_transformer_disabled_by_its_pipeline() -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe.transformer, static_config())
    assert same(generate(pipe), first_result(STATIC))
    assert same(generate(pipe), first_result(STATIC))
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(pipe.transformer)
    assert same(generate(pipe), generate(tiny_pipeline()))


def test_enabled_by_an_adapter_with_a_pipeline() -> None:
    pipe = tiny_pipeline()
    adapter = cache_dit.BlockAdapter(
        pipe=pipe,
        transformer=pipe.transformer,
        blocks=[pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks],
        forward_pattern=[cache_dit.Pattern_1, cache_dit.Pattern_1],
        merge=True,
    )
    assert cache_dit.enable_cache(adapter, static_config()) is adapter
    assert same(generate(pipe), first_result(STATIC))
    assert same(generate(pipe), first_result(STATIC))
    cache_dit.disable_cache(adapter)
    assert type(pipe) is FluxPipeline and is_plain(pipe.transformer)
    assert same(generate(pipe), generate(tiny_pipeline()))


def test_an_adapter_takes_any_object_with_a_transformer_for_a_pipeline() -> None:
    class OwnPipeline:
        """Somebody's own loop, none of diffusers' pipelines."""

        def __init__(self, inner: FluxPipeline) -> None:
            self.inner = inner
            self.transformer = inner.transformer

        def __call__(self, num_inference_steps: int = STEPS) -> torch.Tensor:
            return generate(self.inner, steps=num_inference_steps)

    own = OwnPipeline(tiny_pipeline())
    adapter = cache_dit.BlockAdapter(
        pipe=own,
        blocks=[own.transformer.transformer_blocks, own.transformer.single_transformer_blocks],
        forward_pattern=[cache_dit.Pattern_1, cache_dit.Pattern_1],
        merge=True,
    )
    cache_dit.enable_cache(adapter, static_config())
    assert same(own(), first_result(STATIC))
    assert same(own(), first_result(STATIC))
    cache_dit.disable_cache(own)
    assert type(own) is OwnPipeline and is_plain(own.transformer)
    assert same(own(), generate(tiny_pipeline()))


# -- pipelines made of pipelines


@SCRIPTS
@pytest.mark.parametrize("made_by", [FluxImg2ImgPipeline.from_pipe, _auto_image_to_image])
def test_another_pipeline_made_from_a_cached_one_takes_its_transformer_over(made_by: Callable[[Any], Any]) -> None:
    pipe = tiny_pipeline(text=True)
    plain = FluxImg2ImgPipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)
    uncached = img2img(plain)
    cache_dit.enable_cache(pipe, **STATIC)
    other = made_by(pipe)
    other.set_progress_bar_config(disable=True)
    assert type(other) is FluxImg2ImgPipeline
    assert other.transformer is pipe.transformer
    with counted(other.transformer) as calls:
        first = img2img(other)
    assert calls == expected_calls()
    assert not same(first, uncached)
    assert same(img2img(other), first)
    assert same(generate(pipe), first_result(STATIC))
    assert same(img2img(other), first)
    cache_dit.disable_cache(pipe)
    assert same(img2img(other), uncached)


@SCRIPTS
@pytest.mark.parametrize("made_by", [FluxPipeline.from_pipe, _auto_text_to_image])
def test_a_pipeline_of_the_same_class_made_from_a_cached_one_runs_cached(made_by: Callable[[Any], Any]) -> None:
    pipe = cached_pipeline(text=True)
    other = made_by(pipe)
    other.set_progress_bar_config(disable=True)
    assert type(other) is FluxPipeline and other.transformer is pipe.transformer
    assert same(generate(other), first_result(STATIC))
    assert same(generate(pipe), first_result(STATIC))
    cache_dit.disable_cache(other)
    assert is_plain(pipe.transformer)
    assert same(generate(pipe), generate(tiny_pipeline()))


def test_a_pipeline_put_together_from_a_cached_one_s_components_runs_cached() -> None:
    pipe = cached_pipeline()
    other = FluxPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert same(generate(other), first_result(STATIC))
    assert set(pipe.components) == set(tiny_pipeline().components)


def test_an_aborted_call_of_an_uncached_pipeline_around_a_cached_transformer_leaves_no_trace() -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe.transformer, static_config())
    first = generate(pipe)
    with pytest.raises(Abort):
        generate(pipe, callback_on_step_end=_abort_at(2))
    assert same(generate(pipe), first)


# -- saving, looking, moving


def test_a_saved_cached_pipeline_names_the_real_classes_and_loads_plain(tmp_path: Path) -> None:
    pipe = cached_pipeline(text=True)
    generate(pipe)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "FluxPipeline"
    assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is FluxPipeline and is_plain(loaded) and is_plain(loaded.transformer)
    # copies, since weights mapped from a file lie elsewhere in memory and kernels round differently there
    loaded.transformer = copy.deepcopy(loaded.transformer)
    assert same(generate(loaded), generate(tiny_pipeline()))
    cache_dit.enable_cache(loaded, **STATIC)
    assert same(generate(loaded), first_result(STATIC))


def test_a_cached_pipeline_looks_like_a_plain_one() -> None:
    pipe, plain = cached_pipeline(), tiny_pipeline()
    assert isinstance(pipe, FluxPipeline) and type(pipe) == FluxPipeline  # noqa: E721
    assert inspect.signature(pipe.__call__) == inspect.signature(plain.__call__)
    assert pipe.__call__.__doc__ == plain.__call__.__doc__
    assert type(pipe).__name__ == "FluxPipeline" and type(pipe).__module__ == FluxPipeline.__module__
    assert dict(pipe.config) == dict(plain.config)
    assert list(pipe.components) == list(plain.components)
    assert repr(pipe) == repr(plain)


def test_a_cached_pipeline_can_be_moved_and_cast() -> None:
    pipe = cached_pipeline().to("cpu", torch.float64)
    assert pipe.dtype is torch.float64 and pipe.device.type == "cpu"
    inputs = {name: value.double() for name, value in embeddings().items()}
    expected = tiny_pipeline().to(torch.float64)
    cache_dit.enable_cache(expected, **STATIC)
    assert same(generate(pipe, **inputs), generate(expected, **inputs))


def test_prompts_of_text_go_through_a_cached_pipeline() -> None:
    def picture(pipe: Any) -> Any:
        return pipe("a cat", height=8, width=8, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(2))

    pipe = cached_pipeline(text=True)
    first = picture(pipe).images[0]
    assert first.tobytes() == picture(pipe).images[0].tobytes()
    cache_dit.disable_cache(pipe)
    assert picture(pipe).images[0].tobytes() == picture(tiny_pipeline(text=True)).images[0].tobytes()


# -- another transformer in a cached pipeline


def test_a_transformer_put_in_the_place_of_a_cached_one_is_cached_with_a_line_of_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = cached_pipeline()
    generate(pipe)
    old, new = pipe.transformer, tiny_transformer(4)
    pipe.transformer = new
    with caplog.at_level(logging.WARNING, "cache_dit"):
        first = generate(pipe)
    assert [record.getMessage() for record in caplog.records] == [
        "cache_dit: FluxPipeline.transformer is another module now: enabling the cache on it"
    ]
    assert same(first, generate(cached_pipeline(transformer=tiny_transformer(4))))
    caplog.clear()
    assert same(generate(pipe), first)
    assert not caplog.records
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(old) and is_plain(new)
    assert same(generate(pipe), generate(tiny_pipeline(transformer=tiny_transformer(4))))


def test_a_transformer_put_back_is_still_cached() -> None:
    pipe = cached_pipeline()
    old = pipe.transformer
    pipe.transformer = tiny_transformer(4)
    generate(pipe)
    pipe.transformer = old
    assert same(generate(pipe), first_result(STATIC))


def test_enabling_again_after_a_change_of_transformer_still_frees_both() -> None:
    pipe = cached_pipeline()
    old = pipe.transformer
    pipe.transformer = tiny_transformer(4)
    generate(pipe)
    cache_dit.enable_cache(pipe, **DYNAMIC)
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(old) and is_plain(pipe.transformer)


def test_a_transformer_taken_out_and_none_put_in_is_no_error() -> None:
    pipe = cached_pipeline()
    old = pipe.transformer
    pipe.transformer = None
    cache_dit.disable_cache(pipe)
    assert is_plain(old) and is_plain(pipe)


# -- threads


@pytest.mark.parametrize("both_enabled", [True, False])
@OPTIONS
def test_two_threads_with_a_pipeline_each_and_one_transformer_give_what_each_gives_alone(
    options: dict[str, Any], both_enabled: bool
) -> None:
    expected = [first_result(options, seed=seed, **true_cfg()) for seed in (2, 3)]
    transformer = tiny_transformer()
    pipes = [tiny_pipeline(transformer=transformer) for _ in range(2)]
    cache_dit.enable_cache(pipes[0], **options)
    if both_enabled:
        cache_dit.enable_cache(pipes[1], **options)
    results: list[list[torch.Tensor]] = [[], []]
    start = threading.Barrier(2)

    def work(index: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        for _ in range(3):
            results[index].append(generate(pipes[index], seed=2 + index, **true_cfg()))

    in_threads(work, 2)
    for index in range(2):
        assert len(results[index]) == 3
        assert all(same(result, expected[index]) for result in results[index])


# -- a transformer that is taken out is freed


def swapped(pipe: Any, attribute: str, other: Any) -> weakref.ref[Any]:
    """What looks at the transformer that another one takes the place of."""
    known = weakref.ref(getattr(pipe, attribute))
    setattr(pipe, attribute, other)
    return known


def described(pipe: Any) -> Any:
    """A description of a FLUX pipeline by hand; nothing keeps it."""
    transformer = pipe.transformer
    return cache_dit.BlockAdapter(
        pipe=pipe,
        transformer=transformer,
        blocks=[transformer.transformer_blocks, transformer.single_transformer_blocks],
        forward_pattern=[cache_dit.Pattern_1, cache_dit.Pattern_1],
        params_modifiers=cache_dit.ParamsModifier(cache_config=cache_dit.DBCacheConfig().reset(Bn_compute_blocks=1)),
        merge=True,
    )


@pytest.mark.parametrize("by", ["pipeline", "adapter"])
@pytest.mark.parametrize("ran", [False, True])
@OPTIONS
def test_a_transformer_that_is_taken_out_is_freed(options: dict[str, Any], ran: bool, by: str) -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe if by == "pipeline" else described(pipe), **options)
    if ran:
        generate(pipe)
        cache_dit.summary(pipe, logging=False)
    blocks = weakref.ref(pipe.transformer.transformer_blocks[1])
    old = swapped(pipe, "transformer", None)
    gc.collect()
    assert old() is None and blocks() is None
    pipe.transformer = tiny_transformer(4)
    fresh = tiny_pipeline(transformer=tiny_transformer(4))
    cache_dit.enable_cache(fresh if by == "pipeline" else described(fresh), **options)
    assert same(generate(pipe), generate(fresh))
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(pipe.transformer)


@pytest.mark.parametrize("by", ["pipeline", "adapter"])
@OPTIONS
def test_a_transformer_that_another_took_the_place_of_is_freed(options: dict[str, Any], by: str) -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe if by == "pipeline" else described(pipe), **options)
    generate(pipe)
    for seed in (4, 5):  # the second one was cached by the pipeline itself
        old = swapped(pipe, "transformer", tiny_transformer(seed))
        generate(pipe)
        gc.collect()
        assert old() is None
    assert "C" in cache_dit.summary(pipe, logging=False)[0].steps_line["cond"]


@pytest.mark.parametrize("attribute", ["transformer", "transformer_2"])
def test_either_of_two_transformers_is_freed(attribute: str) -> None:
    pipe = cache_dit.enable_cache(tiny_wan_pipeline(two=True), static_config())
    generate_video(pipe)
    old = swapped(pipe, attribute, getattr(tiny_wan_pipeline(two=True), attribute))
    expected = generate_video(cache_dit.enable_cache(tiny_wan_pipeline(two=True), static_config()))
    assert same(generate_video(pipe), expected)
    gc.collect()
    assert old() is None
    old = swapped(pipe, attribute, None)
    gc.collect()
    assert old() is None
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe)


def test_a_transformer_that_two_pipelines_gave_up_is_freed() -> None:
    pipe = cached_pipeline()
    other = cache_dit.enable_cache(FluxPipeline(**pipe.components), **DYNAMIC)
    generate(pipe)
    old = swapped(pipe, "transformer", None)
    gc.collect()
    assert old() is other.transformer
    other.transformer = None
    gc.collect()
    assert old() is None


def test_a_pipeline_that_goes_is_freed_with_its_transformer() -> None:
    pipe = cached_pipeline()
    generate(pipe)
    gone = weakref.ref(pipe), weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_replacement_of_a_transformer_whose_cache_was_taken_off_gets_none() -> None:
    pipe = cached_pipeline()
    cache_dit.disable_cache(pipe.transformer)
    old = swapped(pipe, "transformer", tiny_transformer(4))
    gc.collect()
    assert old() is None
    assert same(generate(pipe), generate(tiny_pipeline(transformer=tiny_transformer(4))))


# -- pipelines that say otherwise what they hold


class Unnamed(DiffusionPipeline):  # type: ignore[misc]
    """Its ``__init__`` does not name what it registers, so that diffusers' ``components`` raises."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.register_modules(**parts)

    def __call__(self, num_inference_steps: int = STEPS) -> list[torch.Tensor]:
        return denoise(self.transformer, steps=num_inference_steps)


class Silent(Unnamed):
    """Says nothing of what it holds."""

    @property
    def components(self) -> dict[str, Any]:
        raise NotImplementedError


@pytest.mark.parametrize(("kind", "error"), [(Unnamed, ValueError), (Silent, NotImplementedError)])
def test_a_pipeline_whose_components_raise_is_cached_by_what_it_holds(kind: Any, error: type[Exception]) -> None:
    pipe = kind(transformer=tiny_transformer())
    with pytest.raises(error):
        _ = pipe.components
    plain = pipe()
    cache_dit.disable_cache(pipe)
    assert cache_dit.summary(pipe, logging=False)[0].name == ""
    cache_dit.enable_cache(pipe, **STATIC)
    cached = pipe()
    assert same(cached, denoise(cache_dit.enable_cache(tiny_transformer(), **STATIC)))
    assert list(cache_dit.summary(pipe, logging=False)[0].steps_line.values()) == ["FFCFCC"]
    pipe.transformer = tiny_transformer()  # the place of the old one is known
    assert same(pipe(), cached)
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(pipe.transformer) and same(pipe(), plain)
