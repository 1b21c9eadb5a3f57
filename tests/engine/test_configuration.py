"""From what a user writes to what runs: files, modifiers, deprecated keywords, several transformers, refreshing."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import (
    BlockAdapter,
    ConfigError,
    DBCacheConfig,
    DBPruneConfig,
    ForwardPattern,
    ParallelismConfig,
    ParamsModifier,
    PolicyCalibration,
    TaylorSeerCalibratorConfig,
    load_configs,
    steps_mask,
)
from cache_dit.engine.subclass import state_of
from tests.kit.equality import same
from tests.kit.tiny_flux import STEPS, generate, generate_video, tiny_pipeline, tiny_transformer, tiny_wan_pipeline
from tests.kit.tiny_flux import denoise as denoise_flux
from tests.kit.toys import Toy, denoise, line, lines, loop, static


def options_of(model: Any, chain: int = 0) -> Any:
    """The options that one of a cached model's chains runs with."""
    return state_of(model).options[chain]


def written(path: Path, text: str) -> Path:
    """A YAML file with a text."""
    file = path / "cache.yaml"
    file.write_text(text, encoding="utf-8")
    return file


# -- files


@pytest.mark.parametrize(
    ("text", "plan", "predictor"),
    [
        ("cache_config: {}", None, "reuse"),
        ("cache_config: {enable_taylorseer: true, taylorseer_order: 2}", None, "taylor2"),
        ("cache_config: {enable_newton: true, newton_order: 3}", None, "taylor3"),
        ("cache_config: {enable_hermite: true, hermite_scale: 0.3}", None, "hermite2"),
        ("cache_config: {enable_foca: true, enable_encoder_foca: false}", None, "foca"),
        ("cache_config: {enable_dmd: true, dmd_history: 5, dmd_ridge: 1e-6}", None, "dmd5"),
        ("cache_config: {steps_computation_mask: ultra}", "preset", "reuse"),
        ("Fn_compute_blocks: 1\nmax_warmup_steps: 2\nresidual_diff_threshold: 0.9", "dynamic", "reuse"),
    ],
)
def test_a_file_runs(tmp_path: Path, text: str, plan: str | None, predictor: str) -> None:
    steps = 12
    common = (
        f"num_inference_steps: {steps}, Fn_compute_blocks: 1, max_warmup_steps: 4, steps_computation_policy: static"
    )
    if plan is None:
        common += ", steps_computation_mask: [1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0]"
    if text.startswith("cache_config"):
        text = text.replace("{", f"{{{common}, ").replace(", }", "}")
    model = tiny_transformer()
    cache_dit.enable_cache(model, **load_configs(written(tmp_path, text)))
    assert options_of(model).predictors()[0].name == predictor
    encoder = "reuse" if "enable_encoder_foca: false" in text else predictor
    assert options_of(model).predictors()[1].name == encoder
    denoise_flux(model, steps=steps)
    if plan == "preset":
        mask = steps_mask(total_steps=steps, mask_policy="ultra")
    elif plan == "dynamic":
        mask = [1, 1] + [0] * (steps - 2)
    else:
        mask = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0]
    assert line(model) == "".join("CF"[computed] for computed in mask)


def test_dbprune_runs_from_a_file(tmp_path: Path) -> None:
    text = (
        "cache_config: {cache_type: DBPrune, Fn_compute_blocks: 1, max_warmup_steps: 2, residual_diff_threshold: 0.9}"
    )
    model = tiny_transformer()
    cache_dit.enable_cache(model, **load_configs(written(tmp_path, text)))
    denoise_flux(model)
    assert isinstance(options_of(model).cache, DBPruneConfig)
    stats = cache_dit.summary(model, logging=False)[0]
    assert line(model).startswith("FF") and stats.pruned_ratio and stats.pruned_steps


SEVERAL = """
models:
  flux:
    cache_config: &shared
      Fn_compute_blocks: 1
      max_warmup_steps: 1
      num_inference_steps: 6
      steps_computation_mask: [1, 1, 0, 1, 0, 0]
      steps_computation_policy: static
  wan:
    cache_config:
      <<: *shared
      enable_taylorseer: true
    params_modifiers:
      - num_inference_steps: 3
        steps_computation_mask: [1, 1, 0]
      - steps_computation_mask: [1, 0, 0]
        enable_foca: true
"""


def test_one_file_serves_several_models_and_both_transformers_of_one(tmp_path: Path) -> None:
    file = written(tmp_path, SEVERAL)
    flux = cache_dit.enable_cache(tiny_pipeline(), **load_configs(file, model="flux"))
    generate(flux)
    assert line(flux) == "FFCFCC"
    wan = cache_dit.enable_cache(tiny_wan_pipeline(two=True), **load_configs(file, model="wan"))
    first, second = options_of(wan.transformer), options_of(wan.transformer_2)
    assert (first.predictors()[0].name, second.predictors()[0].name) == ("taylor1", "foca")
    assert (first.cache.num_inference_steps, second.cache.num_inference_steps) == (3, 6)
    generate_video(wan, guidance_scale=1.0, guidance_scale_2=1.0)
    done = [*lines(wan, 0).values(), *lines(wan, 1).values()]
    assert len("".join(done)) == STEPS  # each counts its own steps
    assert all(plan == mask[: len(plan)] for plan, mask in zip(done, ("FFC", "FCC"), strict=True))


def test_each_expert_has_its_own_number_of_steps() -> None:
    wan = tiny_wan_pipeline(two=True)
    few = DBCacheConfig().reset(num_inference_steps=3)
    cache_dit.enable_cache(
        wan,
        DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9),
        params_modifiers=[ParamsModifier(cache_config=few), ParamsModifier()],
    )
    generate_video(wan, guidance_scale=1.0, guidance_scale_2=1.0)
    assert [state_of(model).latest.num_inference_steps for model in (wan.transformer, wan.transformer_2)] == [3, None]
    (first,), (second,) = lines(wan, 0).values(), lines(wan, 1).values()
    assert set(first) == {"F"}  # 3 steps are fewer than its warm-up and 2
    assert second.startswith("FF")


# -- modifiers


def sparse(**options: Any) -> ParamsModifier:
    """A modifier of a few cache options."""
    return ParamsModifier(cache_config=DBCacheConfig().reset(**options))


def test_each_chain_runs_by_its_own_options_and_those_without_by_the_shared_ones() -> None:
    model = Toy("0", (4, 4, 4))
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2)
    modifiers = [
        sparse(steps_computation_mask=[1, 1, 1, 0]),
        ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig().reset(taylorseer_order=0)),
    ]
    cache_dit.enable_cache(model.adapter(), static("FFCC"), calibrator, params_modifiers=modifiers)
    denoise(model, loop(4))
    assert [line(model, chain) for chain in range(3)] == ["FFFC", "FFCC", "FFCC"]
    orders = [options_of(model, chain).predictors()[0].name for chain in range(3)]
    assert orders == ["taylor2", "taylor0", "taylor2"]


def test_a_full_configuration_in_a_modifier_lays_its_defaults_over_the_shared_ones() -> None:
    model = Toy("0", (12,))
    modifier = ParamsModifier(cache_config=DBCacheConfig(max_warmup_steps=1))
    cache_dit.enable_cache(model.adapter(), DBCacheConfig(Fn_compute_blocks=1), params_modifiers=modifier)
    assert options_of(model).cache.Fn_compute_blocks == DBCacheConfig().Fn_compute_blocks == 8


def test_modifiers_change_nothing_of_what_the_user_holds() -> None:
    config, calibrator, modifier = static("FFC"), TaylorSeerCalibratorConfig(), sparse(Bn_compute_blocks=1)
    before = [str(each) for each in (config, calibrator, modifier)]
    model = Toy("0", (4, 4))
    cache_dit.enable_cache(model.adapter(), config, calibrator, params_modifiers=[modifier, modifier])
    cache_dit.refresh_context(model, Bn_compute_blocks=2, taylorseer_order=3, enable_taylorseer=True)
    denoise(model, loop(3))
    assert [str(each) for each in (config, calibrator, modifier)] == before


# -- refreshing


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ({"num_inference_steps": 5}, "FFCFC"),
        (
            {"cache_config": DBCacheConfig().reset(num_inference_steps=3)},
            "FFF",
        ),  # the mask is cut, the last step computes
        ({"cache_config": {"num_inference_steps": 4}}, "FFCF"),
        ({"num_inference_steps": 8, "steps_computation_mask": "ultra"}, None),
        ({"num_inference_steps": 8, "steps_computation_policy": "static", "steps_computation_mask": "fast"}, None),
        ({"cache_config": static("FCCF", num_inference_steps=4)}, "FCCF"),
    ],
)
def test_a_refresh_takes_steps_presets_and_sparse_or_full_configurations(given: dict[str, Any], plan: Any) -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FFCFC", num_inference_steps=5))
    denoise(model, loop(2))
    if plan is None:
        mask = steps_mask(total_steps=8, mask_policy=given["steps_computation_mask"])
        plan = "".join("CF"[computed] for computed in mask)
    cache_dit.refresh_context(model, **given)
    denoise(model, loop(len(plan)))
    assert line(model) == plan


def test_a_refresh_may_switch_guidance_by_turns_on() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FFC", enable_separate_cfg=False))
    cache_dit.refresh_context(model, enable_separate_cfg=True, num_inference_steps=3)
    denoise(model, [time for time in loop(3) for _ in range(2)])
    assert lines(model) == {"cond": "FFC", "uncond": "FFC"}


@pytest.mark.parametrize("preset", ["slow", "medium", "fast", "ultra"])
def test_a_preset_s_name_in_the_field_of_the_policy_is_taken_for_the_mask(preset: str) -> None:
    model = Toy("0")
    config = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=1, num_inference_steps=12, steps_computation_policy=preset
    )
    cache_dit.enable_cache(model.adapter(), config)
    assert options_of(model).cache.steps_computation_mask == steps_mask(total_steps=12, mask_policy=preset)


# -- deprecated keywords


@pytest.mark.parametrize("owner", ["enable_cache", "ParamsModifier"])
def test_flat_keywords_work_with_one_warning(owner: str) -> None:
    flat = {"Fn_compute_blocks": 2, "residual_diff_threshold": 0.3, "enable_taylorseer": True, "taylorseer_order": 2}
    model = Toy("0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if owner == "enable_cache":
            cache_dit.enable_cache(model.adapter(), **flat)
        else:
            cache_dit.enable_cache(model.adapter(), params_modifiers=ParamsModifier(**flat))
    assert [(each.category, Path(each.filename).name) for each in caught] == [(DeprecationWarning, Path(__file__).name)]
    assert all(name in str(caught[0].message) for name in flat)
    expected = DBCacheConfig(Fn_compute_blocks=2, residual_diff_threshold=0.3)
    assert options_of(model).cache == expected
    assert options_of(model).calibrator == TaylorSeerCalibratorConfig(taylorseer_order=2)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"residual_diff_treshold.*residual_diff_threshold"):
        cache_dit.enable_cache(Toy("0").adapter(), residual_diff_treshold=0.1)


# -- parallelism


def test_a_parallelism_that_spreads_nothing_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    plain = tiny_transformer()
    expected = denoise_flux(plain)
    for none in (None, ParallelismConfig(), ParallelismConfig(ulysses_size=1)):
        model = tiny_transformer()
        assert cache_dit.enable_cache(model, static("FFCFCC"), parallelism_config=none) is model
        denoise_flux(model)
        assert line(model) == "FFCFCC"
    assert not caplog.messages
    model = tiny_transformer()
    with caplog.at_level(logging.WARNING):
        assert cache_dit.enable_cache(model, parallelism_config=ParallelismConfig()) is model
    assert len(caplog.messages) == 1 and "nothing is cached" in caplog.messages[0]
    assert same(denoise_flux(model), expected) and cache_dit.strify(model) == "NONE"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ParallelismConfig(ulysses_size=2), r"ulysses_size=2.*parallelism is not in this version"),
        (ParallelismConfig(tp_size=4), r"tp_size=4.*parallelism is not in this version"),
        ({"ulysses_size": 2}, "parallelism_config is a dict: pass a ParallelismConfig"),
    ],
)
def test_a_parallelism_that_spreads_something_is_refused(config: Any, message: str) -> None:
    model = tiny_transformer()
    with pytest.raises(ConfigError, match=message):
        cache_dit.enable_cache(model, static("FFC"), parallelism_config=config)
    assert state_of(model) is None


@torch.no_grad()
def test_one_modifier_for_two_transformers_is_that_of_the_first() -> None:
    first, second = Toy("0"), Toy("0")
    adapter = BlockAdapter(
        transformer=[first, second],
        blocks=[first.blocks, second.blocks],
        forward_pattern=first.form.pattern,
        params_modifiers=sparse(steps_computation_mask=[1, 1, 1]),
    )
    cache_dit.enable_cache(adapter, static("FFC"))
    for model in (first, second):
        denoise(model, loop(3))
    assert (line(first), line(second)) == ("FFF", "FFC")


def test_nested_modifiers_of_one_are_for_all_chains_of_their_transformer() -> None:
    models = [Toy("0", (3, 3)), Toy("0", (3, 3))]
    own = [ParamsModifier(cache_config=DBCacheConfig().reset(Fn_compute_blocks=count)) for count in (1, 2)]
    adapter = BlockAdapter(
        transformer=models,
        blocks=[[model.blocks, model.blocks_1] for model in models],
        forward_pattern=[[ForwardPattern.Pattern_0] * 2] * 2,
        params_modifiers=[[own[0]], [own[1]]],
    )
    cache_dit.enable_cache(adapter, DBCacheConfig(Fn_compute_blocks=3, max_warmup_steps=1))
    fronts = [options.cache.Fn_compute_blocks for model in models for options in state_of(model).options]
    assert fronts == [1, 1, 2, 2]


def test_what_concerns_the_whole_transformer_cannot_differ_for_a_second_chain() -> None:
    model = Toy("0", (3, 3))
    own = ParamsModifier(cache_config=DBCacheConfig().reset(force_refresh_step_hint=3))
    with pytest.raises(ConfigError, match="force_refresh_step_hint concerns the transformer as a whole"):
        cache_dit.enable_cache(model.adapter(), DBCacheConfig(Fn_compute_blocks=1), None, [ParamsModifier(), own])
    complete = ParamsModifier(cache_config=DBCacheConfig(Fn_compute_blocks=2))
    shared = DBCacheConfig(Fn_compute_blocks=1, force_refresh_step_hint=3)
    cache_dit.enable_cache(model.adapter(), shared, None, [ParamsModifier(), complete])
    assert [options.cache.Fn_compute_blocks for options in state_of(model).options] == [1, 2]


@pytest.mark.parametrize("decision", ["any", "all"])
def test_samples_are_not_joined_where_a_policy_adds_their_diffs_up(decision: str) -> None:
    with pytest.raises(ConfigError, match=f"decision='{decision}'.*adds up"):
        cache_dit.enable_cache(
            tiny_transformer(), DBCacheConfig(Fn_compute_blocks=1, policy="teacache", decision=decision)
        )


def test_a_calibration_that_nobody_reads_is_told(caplog: pytest.LogCaptureFixture) -> None:
    known = PolicyCalibration("magcache", "FluxTransformer2DModel", 4, None, {"default": [1.0] * 4})
    cache_dit.enable_cache(tiny_transformer(), DBCacheConfig(Fn_compute_blocks=1, policy_calibration=known))
    assert "policy_calibration has no effect" in caplog.text
