"""Putting a cache on, taking it off, renewing it: in any order, and with nothing changed where anything is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import (
    BasicCacheConfig,
    BlockAdapter,
    CacheDitError,
    CacheType,
    CalibratorConfig,
    ConfigError,
    DBCacheConfig,
    ForwardPattern,
    ParamsModifier,
    PatternMismatchError,
    TaylorSeerCalibratorConfig,
    UnsupportedModelError,
)
from cache_dit.api import parse_extra_modules
from cache_dit.engine.subclass import state_of
from tests.kit.equality import same
from tests.kit.tiny_flux import tiny_pipeline
from tests.kit.tiny_models import tiny
from tests.kit.toys import Toy, denoise, dynamic, frozen_run, line, lines, loop, static, stream_inputs


def classes(model: nn.Module) -> list[type]:
    """The class of every module in a model."""
    return [type(module) for module in model.modules()]


def identical(first: list[type], second: list[type]) -> bool:
    """Whether two lists hold the very same classes (a cached one equals its plain one)."""
    return len(first) == len(second) and all(map(lambda a, b: a is b, first, second))


def options_of(model: nn.Module, chain: int = 0) -> Any:
    """The options that a chain runs with."""
    return state_of(model).chains[chain][1]


# -- on and off


def test_enable_cache_returns_what_it_was_given() -> None:
    adapter = Toy("0").adapter()
    assert cache_dit.enable_cache(adapter, static("FC")) is adapter
    model = tiny("PixArtTransformer2DModel")
    assert cache_dit.enable_cache(model, static("FC")) is model
    assert cache_dit.enable_cache(model, DBCacheConfig(cache_type=CacheType.NONE)) is model


@pytest.mark.parametrize("option", [{"attention_backend": "native"}, {"quantize_config": {}}])
def test_an_option_of_what_is_not_in_this_version_may_be_none_alone(option: dict[str, Any]) -> None:
    model = Toy("0")
    with pytest.raises(ConfigError, match=f"{next(iter(option))}.*not in this version"):
        cache_dit.enable_cache(model.adapter(), static("FC"), **option)
    assert state_of(model) is None
    cache_dit.enable_cache(model.adapter(), static("FC"), **dict.fromkeys(option))
    assert state_of(model) is not None


def test_there_are_no_extra_modules_to_spread() -> None:
    assert parse_extra_modules(Toy("0")) == []
    with pytest.raises(ConfigError, match=r"extra_parallel_modules.*not in this version"):
        parse_extra_modules(Toy("0"), ["text_encoder"])


def test_on_and_off_any_number_of_times() -> None:
    model = Toy("0")
    plain, keys, expected = classes(model), list(model.state_dict()), denoise(model, loop(4))
    entries = [set(vars(module)) for module in model.modules()]
    first = None
    for _ in range(3):
        cache_dit.enable_cache(model.adapter(), static("FCFC"))
        assert list(model.state_dict()) == keys
        assert repr(model) == repr(Toy("0"))
        outputs = denoise(model, loop(4))
        assert first is None or same(outputs, first)
        first = outputs
        cache_dit.disable_cache(model)
        assert identical(classes(model), plain)
        assert [set(vars(module)) for module in model.modules()] == entries
        assert list(model.state_dict()) == keys
        assert same(denoise(model, loop(4)), expected)


def test_off_where_nothing_is_on_changes_nothing() -> None:
    model = Toy("0")
    plain = classes(model)
    for holder in (model, model.adapter(), nn.Linear(1, 1), cache_dit.caching.FakeDiffusionPipeline(model)):
        cache_dit.disable_cache(holder)
    assert identical(classes(model), plain)


@pytest.mark.parametrize("by", ["model", "adapter", "another adapter"])
def test_off_by_whatever_it_was_put_on_with(by: str) -> None:
    model = Toy("0")
    plain, adapter = classes(model), model.adapter()
    cache_dit.enable_cache(adapter, static("FC"))
    cache_dit.disable_cache({"model": model, "adapter": adapter, "another adapter": model.adapter()}[by])
    assert identical(classes(model), plain)
    cache_dit.enable_cache(adapter, static("FC"))
    frozen_run(model, stream_inputs(), 2)
    assert line(model) == "FC"


def test_enabling_again_replaces_the_configuration() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FFFF"), TaylorSeerCalibratorConfig())
    denoise(model, loop(4)[:2])
    cache_dit.enable_cache(model.adapter(), static("FCCC", Fn_compute_blocks=2, Bn_compute_blocks=1))
    denoise(model, loop(4))
    assert line(model) == "FCCC"
    assert cache_dit.summary(model, logging=False)[0].executed_blocks == 5 + 3 * 3
    assert options_of(model).calibrator is None


def test_enabling_again_with_fewer_blocks_leaves_none_of_the_old_ones_on() -> None:
    model = Toy("0", (3, 3))
    cache_dit.enable_cache(model.adapter(), static("FC"))
    cache_dit.enable_cache(model.adapter(blocks=model.blocks), static("FC"))
    assert all(state_of(block) is not None for block in model.blocks)
    assert all(state_of(block) is None and type(block) is type(Toy("0").blocks[0]) for block in model.blocks_1)


def test_several_transformers_of_one_class_know_nothing_of_each_other() -> None:
    models = [Toy("0") for _ in range(3)]
    expected = denoise(models[2], loop(4))
    cache_dit.enable_cache(models[0].adapter(), static("FCFC"))
    cache_dit.enable_cache(models[1].adapter(), static("FFFC", Fn_compute_blocks=2))
    for model in models:
        denoise(model, loop(4))
    assert (line(models[0]), line(models[1])) == ("FCFC", "FFFC")
    assert same(denoise(models[2], loop(4)), expected)
    cache_dit.disable_cache(models[0])
    denoise(models[1], loop(4))
    assert line(models[1]) == "FFFC"
    assert same(denoise(models[0], loop(4)), expected)
    cache_dit.disable_cache(models[1])
    assert {type(model) for model in models} == {Toy}


def test_one_class_is_made_per_class() -> None:
    first, second = Toy("0"), Toy("0")
    for model in (first, second):
        cache_dit.enable_cache(model.adapter(), static("FC"))
    cached_class = type(first.blocks[0])
    assert all(type(block) is cached_class for block in (*first.blocks, *second.blocks))
    cache_dit.disable_cache(first)
    cache_dit.enable_cache(first.adapter(), static("FC"))
    assert type(first.blocks[0]) is cached_class


def test_who_names_nothing_gets_the_default_preset() -> None:
    model = Toy("0", (1,))
    cache_dit.enable_cache(model.adapter())
    assert options_of(model).cache.policy == "easycache"
    named = cache_dit.preset(model.adapter())
    assert options_of(model).cache == named["cache_config"]
    assert options_of(model).calibrator == named["calibrator_config"] == TaylorSeerCalibratorConfig(damping=0.5)


@pytest.mark.parametrize(
    "named",
    [
        {"cache_config": DBCacheConfig()},
        {"calibrator_config": TaylorSeerCalibratorConfig()},
        {"params_modifiers": [ParamsModifier(cache_config=DBCacheConfig().reset(max_warmup_steps=8))]},
        {"adapter": {"params_modifiers": [ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig())]}},
    ],
    ids=lambda named: next(iter(named)),
)
def test_who_names_anything_gets_the_numbers_of_dbcache(named: dict[str, Any]) -> None:
    model = Toy("0", (12,))
    cache_dit.enable_cache(model.adapter(**named.pop("adapter", {})), **named)
    assert options_of(model).cache == DBCacheConfig()
    assert (options_of(model).calibrator is None) == ("cache_config" in named or "params_modifiers" in named)


@pytest.mark.parametrize(
    "flat", [{"residual_diff_threshold": 0.1}, {"enable_taylorseer": True}], ids=lambda flat: next(iter(flat))
)
def test_who_names_a_flat_option_gets_the_numbers_of_dbcache(flat: dict[str, Any]) -> None:
    model = Toy("0", (12,))
    with pytest.deprecated_call():
        cache_dit.enable_cache(model.adapter(), **flat)
    assert options_of(model).cache == DBCacheConfig(residual_diff_threshold=flat.get("residual_diff_threshold", 0.08))


def test_the_given_configuration_stays_the_users_own() -> None:
    model, config = Toy("0"), static("FC")
    cache_dit.enable_cache(model.adapter(), config)
    config.update(Fn_compute_blocks=3)
    assert options_of(model).cache.Fn_compute_blocks == 1


def test_cache_type_none_takes_the_cache_off() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FC"))
    cache_dit.enable_cache(model.adapter(), DBCacheConfig(cache_type=CacheType.NONE))
    assert type(model) is Toy
    assert cache_dit.strify(model) == "NONE"


def test_a_sparse_configuration_is_completed_by_the_defaults() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), DBCacheConfig().reset(Fn_compute_blocks=1))
    assert options_of(model).cache == DBCacheConfig(Fn_compute_blocks=1)
    denoise(model, loop(4))
    assert line(model) == "FFFF"


def test_flat_options_still_work_with_a_warning() -> None:
    model = Toy("0")
    with pytest.warns(DeprecationWarning, match="Fn_compute_blocks"):
        cache_dit.enable_cache(model.adapter(), Fn_compute_blocks=2, enable_taylorseer=True, taylorseer_order=2)
    assert options_of(model).cache.Fn_compute_blocks == 2
    assert options_of(model).calibrator == TaylorSeerCalibratorConfig(taylorseer_order=2)


# -- modifiers


def sparse(**options: Any) -> ParamsModifier:
    """A modifier of a few cache options."""
    return ParamsModifier(cache_config=DBCacheConfig().reset(**options))


@pytest.mark.parametrize("nested", [False, True])
def test_modifiers_go_to_the_chains_in_order(nested: bool) -> None:
    model = Toy("0", (4, 4))
    modifiers: Any = [sparse(Bn_compute_blocks=1), sparse(Bn_compute_blocks=2)]
    cache_dit.enable_cache(model.adapter(), static("FCFC"), params_modifiers=[modifiers] if nested else modifiers)
    denoise(model, loop(4))
    assert [options_of(model, chain).cache.Bn_compute_blocks for chain in (0, 1)] == [1, 2]
    assert [stats.executed_blocks for stats in cache_dit.summary(model, logging=False)[:2]] == [12, 14]


def test_chains_without_a_modifier_keep_the_shared_options() -> None:
    model = Toy("0", (4, 4))
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2)
    cache_dit.enable_cache(
        model.adapter(), static("FCFC"), params_modifiers=ParamsModifier(calibrator_config=calibrator)
    )
    assert options_of(model, 0).calibrator == calibrator
    assert options_of(model, 0).cache == options_of(model, 1).cache == static("FCFC")
    assert options_of(model, 1).calibrator is None


def test_an_adapters_own_modifiers_come_first() -> None:
    model = Toy("0")
    adapter = model.adapter(params_modifiers=sparse(Bn_compute_blocks=1))
    cache_dit.enable_cache(adapter, static("FC"), params_modifiers=sparse(Bn_compute_blocks=2))
    assert options_of(model).cache.Bn_compute_blocks == 1


def test_modifiers_given_to_enable_cache_do_not_stay_in_the_adapter() -> None:
    model = Toy("0")
    adapter = model.adapter()
    for back in (1, 2):
        cache_dit.enable_cache(adapter, static("FC"), params_modifiers=sparse(Bn_compute_blocks=back))
        assert options_of(model).cache.Bn_compute_blocks == back
    cache_dit.enable_cache(adapter, static("FC"))
    assert options_of(model).cache.Bn_compute_blocks == 0


def test_modifiers_per_transformer() -> None:
    first, second = Toy("0"), Toy("0")
    adapter = BlockAdapter(
        transformer=[first, second],
        blocks=[first.blocks, second.blocks],
        forward_pattern=ForwardPattern.Pattern_0,
        params_modifiers=[[sparse(Bn_compute_blocks=1)], [sparse(Bn_compute_blocks=2)]],
    )
    cache_dit.enable_cache(adapter, static("FC"))
    assert [options_of(model).cache.Bn_compute_blocks for model in (first, second)] == [1, 2]


# -- errors


class Final(nn.Module):
    """Cannot be subclassed."""

    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("final")

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Any:
        return hidden_states, encoder_hidden_states


def _unlike(model: Toy) -> BlockAdapter:
    model.blocks.append(Final())
    return model.adapter()


class FinalPipe:
    """A pipeline whose class cannot be subclassed."""

    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("final")

    def __call__(self) -> None: ...


WRONG: dict[str, tuple[Callable[[Toy], Any], type[Exception], str]] = {
    "a string": (lambda m: cache_dit.enable_cache("flux"), UnsupportedModelError, "cannot cache a builtins.str"),
    "None": (lambda m: cache_dit.enable_cache(None), UnsupportedModelError, "pass a DiffusionPipeline"),
    "an unknown model": (cache_dit.enable_cache, UnsupportedModelError, "no record of Toy.*BlockAdapter"),
    "a dict as cache_config": (
        lambda m: cache_dit.enable_cache(m.adapter(), {"Fn_compute_blocks": 1}),
        ConfigError,
        "cache_config is a dict: pass a DBCacheConfig",
    ),
    "a calibrator as cache_config": (
        lambda m: cache_dit.enable_cache(m.adapter(), TaylorSeerCalibratorConfig()),
        ConfigError,
        "TaylorSeerCalibratorConfig",
    ),
    "a cache config as calibrator_config": (
        lambda m: cache_dit.enable_cache(m.adapter(), static("FC"), DBCacheConfig()),
        ConfigError,
        "calibrator_config is a DBCacheConfig",
    ),
    "an unknown option": (
        lambda m: cache_dit.enable_cache(m.adapter(), Fn_compute_block=1),
        ConfigError,
        "unknown key 'Fn_compute_block'; did you mean 'Fn_compute_blocks'",
    ),
    "an unknown predictor": (
        lambda m: cache_dit.enable_cache(
            m.adapter(), static("FC"), CalibratorConfig(enable_calibrator=True, calibrator_type="taylor")
        ),
        ConfigError,
        "did you mean 'taylorseer'",
    ),
    "Fn too large": (
        lambda m: cache_dit.enable_cache(m.adapter(), static("FC", Fn_compute_blocks=6)),
        ConfigError,
        "Fn_compute_blocks=6.*the 5 blocks of blocks in Toy",
    ),
    "Fn and Bn too large": (
        lambda m: cache_dit.enable_cache(m.adapter(), static("FC", Fn_compute_blocks=3, Bn_compute_blocks=3)),
        ConfigError,
        "Bn_compute_blocks=3",
    ),
    "more modifiers than chains": (
        lambda m: cache_dit.enable_cache(m.adapter(), static("FC"), params_modifiers=[ParamsModifier()] * 2),
        ConfigError,
        "2 params_modifiers for 1 block lists",
    ),
    "something else as modifier": (
        lambda m: cache_dit.enable_cache(m.adapter(), static("FC"), params_modifiers=[DBCacheConfig()]),
        ConfigError,
        "DBCacheConfig.*ParamsModifier",
    ),
    "a parallelism config": (
        lambda m: cache_dit.enable_cache(m.adapter(), static("FC"), parallelism_config=object()),
        ConfigError,
        "parallelism_config",
    ),
    "another kind of cache": (
        lambda m: cache_dit.enable_cache(m.adapter(), BasicCacheConfig(cache_type=CacheType.DBPrune)),
        ConfigError,
        "DBPrune",
    ),
    "a block that does not fit the pattern": (
        lambda m: cache_dit.enable_cache(
            m.adapter(forward_pattern=ForwardPattern.Pattern_0, check_forward_pattern=True, stream_names=("x", "y")),
            static("FC"),
        ),
        PatternMismatchError,
        "PairBlock.forward.*no argument 'x'",
    ),
    "a block that cannot be intercepted": (
        lambda m: cache_dit.enable_cache(_unlike(m), static("FC")),
        UnsupportedModelError,
        "Final cannot be intercepted",
    ),
    "a pipeline that cannot be intercepted": (
        lambda m: cache_dit.enable_cache(m.adapter(pipe=FinalPipe()), static("FC")),
        UnsupportedModelError,
        "FinalPipe cannot be intercepted",
    ),
    "a second transformer that cannot be intercepted": (
        lambda m: cache_dit.enable_cache(_with_an_unlike_one(m), static("FC")),
        UnsupportedModelError,
        "Final cannot be intercepted",
    ),
    "a second transformer that has another cache on": (
        lambda m: cache_dit.enable_cache(_with_another_cache(m), static("FC")),
        ConfigError,
        "two would skip twice",
    ),
}


def _with_an_unlike_one(model: Toy) -> BlockAdapter:
    other = Toy("0")
    other.blocks.append(Final())
    return _pair(model, other)


def _with_another_cache(model: Toy) -> BlockAdapter:
    other = Toy("0")
    other.is_cache_enabled = True
    return _pair(model, other)


def _pair(first: Toy, second: Toy) -> BlockAdapter:
    return BlockAdapter(
        transformer=[first, second], blocks=[first.blocks, second.blocks], forward_pattern=ForwardPattern.Pattern_0
    )


@pytest.mark.parametrize("before", ["plain", "cached"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.filterwarnings("ignore:.*flat options.*:DeprecationWarning")
def test_what_is_wrong_is_a_typed_error_and_changes_nothing(wrong: str, before: str) -> None:
    act, error, message = WRONG[wrong]
    model = Toy("0")
    if before == "cached":
        cache_dit.enable_cache(model.adapter(), static("FCFC", Bn_compute_blocks=1))
        expected, plain = denoise(model, loop(4)), classes(model)
        denoise(model, loop(4)[:2])
    else:
        expected, plain = denoise(model, loop(4)), classes(model)
    with pytest.raises(error, match=message) as caught:
        act(model)
    assert isinstance(caught.value, CacheDitError)
    assert isinstance(caught.value, ValueError)
    model.blocks = model.blocks[:5]
    assert identical(classes(model), plain)
    assert same(denoise(model, loop(4)), expected)
    assert (lines(model) == {"default": "FCFC"}) if before == "cached" else (cache_dit.strify(model) == "NONE")


class Pipe:
    """A pipeline of one transformer."""

    def __init__(self) -> None:
        self.transformer = Toy("0")

    def __call__(self, num_inference_steps: int = 4) -> list[Tensor]:
        return denoise(self.transformer, loop(num_inference_steps))


@pytest.mark.parametrize("before", ["plain", "cached"])
def test_a_pipeline_is_as_before_where_its_transformer_cannot_be_intercepted(before: str) -> None:
    pipe = Pipe()
    if before == "cached":
        cache_dit.enable_cache(pipe.transformer.adapter(pipe=pipe), static("FCFC"))
    expected, state = pipe(), state_of(pipe)
    kept = type(pipe), *classes(pipe.transformer)
    wrong = _unlike(pipe.transformer)
    wrong.pipe = pipe
    with pytest.raises(UnsupportedModelError, match="Final cannot be intercepted"):
        cache_dit.enable_cache(wrong, static("FFFC"))
    pipe.transformer.blocks = pipe.transformer.blocks[:5]
    assert identical([type(pipe), *classes(pipe.transformer)], list(kept))
    assert state_of(pipe) is state
    assert same(pipe(), expected)
    cache_dit.disable_cache(pipe)
    assert type(pipe) is Pipe
    assert type(pipe.transformer) is Toy


# -- refresh_context


def refreshed(**options: Any) -> Toy:
    """A cached toy in mid-run, then refreshed."""
    model = Toy("0", (5,))
    cache_dit.enable_cache(model.adapter(), static("FCFCFC", Bn_compute_blocks=1), TaylorSeerCalibratorConfig())
    denoise(model, loop(6)[:3], seed=1)
    cache_dit.refresh_context(model, **options)
    return model


def test_refreshing_begins_a_request() -> None:
    model = refreshed()
    low = loop(6, high=0.1)  # lower than where the last one was left: nothing but the refresh tells
    outputs = denoise(model, low)
    assert line(model) == "FCFCFC"
    fresh = Toy("0")
    cache_dit.enable_cache(fresh.adapter(), static("FCFCFC", Bn_compute_blocks=1), TaylorSeerCalibratorConfig())
    assert same(outputs, denoise(fresh, low))
    assert options_of(model) == options_of(fresh)


def test_refreshing_frees_what_was_kept() -> None:
    model = refreshed()
    assert not state_of(model).sessions


@pytest.mark.parametrize(
    "options",
    [
        {"num_inference_steps": 3},
        {"cache_config": DBCacheConfig().reset(num_inference_steps=3)},
    ],
)
def test_a_sparse_refresh_changes_what_it_names(options: dict[str, Any]) -> None:
    model = refreshed(**options)
    expected = static("FCFCFC", Bn_compute_blocks=1).update(num_inference_steps=3)  # in one go it would be refused
    assert options_of(model).cache == expected
    assert options_of(model).calibrator == TaylorSeerCalibratorConfig()
    frozen_run(model, stream_inputs(), 4)
    assert line(model) == "F"


def test_a_full_refresh_changes_everything() -> None:
    model = refreshed(cache_config=DBCacheConfig(Fn_compute_blocks=2, max_warmup_steps=1), steps_computation_mask=None)
    assert options_of(model).cache.Fn_compute_blocks == 2
    assert options_of(model).cache.Bn_compute_blocks == 0


def test_a_refresh_may_change_the_calibrator_alone() -> None:
    model = refreshed(calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=3))
    assert options_of(model).calibrator.taylorseer_order == 3
    assert options_of(model).cache == static("FCFCFC", Bn_compute_blocks=1)


def test_a_refresh_keeps_what_differs_between_chains() -> None:
    model = Toy("0", (4, 4))
    modifiers = [sparse(Bn_compute_blocks=1), ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig())]
    cache_dit.enable_cache(model.adapter(), static("FCFC"), params_modifiers=modifiers)
    cache_dit.refresh_context(model, num_inference_steps=4)
    assert [options_of(model, chain).cache.Bn_compute_blocks for chain in (0, 1)] == [1, 0]
    assert [options_of(model, chain).cache.num_inference_steps for chain in (0, 1)] == [4, 4]
    assert [options_of(model, chain).calibrator for chain in (0, 1)] == [None, TaylorSeerCalibratorConfig()]


def test_a_refresh_gives_no_chain_the_options_of_another() -> None:
    model = Toy("0", (4, 4))
    own = ParamsModifier(
        cache_config=DBCacheConfig().reset(
            steps_computation_mask=[1, 0, 0], max_accumulated_residual_diff_threshold=9.0
        ),
        calibrator_config=TaylorSeerCalibratorConfig(),
    )
    cache_dit.enable_cache(model.adapter(), dynamic(), params_modifiers=own)
    before = options_of(model, 1)
    cache_dit.refresh_context(model, num_inference_steps=4)
    assert options_of(model, 0).cache.steps_computation_mask == [1, 0, 0]
    assert options_of(model, 1).calibrator is None
    assert options_of(model, 1).cache == before.cache.update(num_inference_steps=4)


def test_a_refresh_keeps_how_branches_are_told_apart() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(has_separate_cfg=True), static("FC"))
    cache_dit.refresh_context(model, num_inference_steps=2)
    frozen_run(model, stream_inputs(), 4)
    assert lines(model) == {"cond": "FC", "uncond": "FC"}
    cache_dit.refresh_context(model, enable_separate_cfg=False, num_inference_steps=4)
    frozen_run(model, stream_inputs(), 4)
    assert lines(model) == {"default": "FCFF"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_step": 3}, "did you mean 'num_inference_steps'"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"Fn_compute_blocks": 9}, "Fn_compute_blocks=9"),
        ({"cache_config": {"num_inference_step": 3}}, "did you mean 'num_inference_steps'"),
        ({"cache_config": 3}, "cache_config is a int: pass a DBCacheConfig"),
        ({"cache_config": TaylorSeerCalibratorConfig()}, "cache_config is a TaylorSeerCalibratorConfig"),
        ({"calibrator_config": DBCacheConfig()}, "calibrator_config is a DBCacheConfig"),
    ],
)
def test_a_wrong_refresh_is_a_typed_error_and_changes_nothing(options: dict[str, Any], message: str) -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FCFC"))
    denoise(model, loop(4)[:2])
    with pytest.raises(ConfigError, match=message):
        cache_dit.refresh_context(model, **options)
    denoise(model, loop(4)[2:])
    assert line(model) == "FCFC"


def test_refreshing_what_is_not_cached_does_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    cache_dit.refresh_context(Toy("0"), num_inference_steps=4)
    assert "no cache is on this Toy" in caplog.text


def test_a_verbose_refresh_tells_the_options(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        refreshed(num_inference_steps=7, verbose=True)
    assert "num_inference_steps=7" in caplog.text


# -- what is supported


def test_get_adapter_describes_what_has_a_record() -> None:
    model = tiny("PixArtTransformer2DModel")
    adapter = cache_dit.get_adapter(model)
    assert adapter.transformer == [model]
    assert cache_dit.get_adapter(Toy("0")) is None
    assert cache_dit.get_adapter(nn.Linear(1, 1)) is None


def test_supported_pipelines_counts_the_families() -> None:
    count, names = cache_dit.supported_pipelines()
    assert count == len(names) == len(set(names))
    assert {"Flux", "Flux2", "QwenImage", "Wan", "StableDiffusion3", "PixArt"} <= set(names)


def test_dynamic_configurations_of_these_tests_measure() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), dynamic())
    denoise(model, loop(4))
    assert cache_dit.summary(model, logging=False)[0].residual_diffs


def test_a_tensor_threshold_works_as_a_number() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), dynamic(residual_diff_threshold=torch.tensor(0.5)))
    denoise(model, loop(4))
    assert "C" in line(model)


def test_no_cache_at_all_is_refused_by_a_refresh_and_for_a_single_chain() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), dynamic())
    with pytest.raises(ConfigError, match="call disable_cache on the model"):
        cache_dit.refresh_context(model, cache_type="NONE")
    assert options_of(model).cache.cache_type is cache_dit.DBCache
    none = ParamsModifier(cache_config=DBCacheConfig().reset(cache_type=cache_dit.NONE))
    with pytest.raises(ConfigError, match="pass residual_diff_threshold=0 for it"):
        cache_dit.enable_cache(model.adapter(), dynamic(), params_modifiers=none)


@pytest.mark.parametrize("call", [cache_dit.disable_cache, cache_dit.summary, cache_dit.strify])
def test_what_holds_no_model_is_refused(call: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match="pass a pipeline, a transformer or a BlockAdapter"):
        call("transformer")


def test_a_list_of_transformers_is_not_taken_off_in_silence() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), dynamic())
    with pytest.raises(ConfigError, match="a list was passed"):
        cache_dit.disable_cache([model])


def test_a_refresh_of_a_pipeline_says_what_to_pass(caplog: pytest.LogCaptureFixture) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), DBCacheConfig(Fn_compute_blocks=1))
    with caplog.at_level(logging.WARNING):
        cache_dit.refresh_context(pipe, num_inference_steps=4)
    assert caplog.messages == [
        "cache_dit: no cache is on this FluxPipeline: nothing to refresh; pass the transformer in it"
    ]
