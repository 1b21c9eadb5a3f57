"""Presets: options that suit a model, ready for `enable_cache`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import cache_dit
from cache_dit import BlockAdapter, ConfigError, ForwardPattern, TaylorSeerCalibratorConfig, UnsupportedModelError
from cache_dit.caching.block_adapters import flux2_adapter, wan_adapter
from cache_dit.engine.subclass import state_of
from cache_dit.models import Preset
from cache_dit.models.record import records
from tests.kit.claims import blocks_of, call, run
from tests.kit.tiny_flux import generate, tiny_pipeline
from tests.kit.tiny_models import TINY, inputs, tiny
from tests.kit.toys import counted, lines

ALL = [(record, name) for record in records() for name in record.all_presets()]


def tags(transformer: nn.Module) -> list[str]:
    """The options of each of a cached transformer's chains, without what depends on the model."""
    return [options.cache.strify().partition("_CFG")[0] for options in state_of(transformer).options]


@pytest.mark.parametrize("name", TINY)
def test_the_default_of_every_model_is_what_enable_cache_does_where_nothing_is_named(name: str) -> None:
    model = tiny(name)
    cache_dit.enable_cache(model, **cache_dit.preset(model))
    named = state_of(model).options
    cache_dit.enable_cache(model)
    assert state_of(model).options == named
    assert set(tags(model)) == {"DBCache_easycache_F0B0_W6I1M0MC3_R0.05"}


# Whose latent is made of the numbers of tokens, or whose loop steps through time and space at one timestep.
WITHOUT_A_MOVING_LATENT = ("UVit2DModel", "Transformer2DModel")


@pytest.mark.parametrize("name", [name for name in TINY if name not in WITHOUT_A_MOVING_LATENT])
def test_the_default_measures_every_family_caches_what_barely_changes_and_computes_the_last_step(name: str) -> None:
    model = cache_dit.enable_cache(tiny(name))
    latent = state_of(model).reader._latent
    with torch.no_grad(), cache_dit.session("a", num_inference_steps=10):
        for step in range(10):
            given = inputs(name, timestep=0.9 - 1e-5 * step)
            value, scale = given[latent], 1 - 1e-4 * step
            given[latent] = value * scale if isinstance(value, torch.Tensor) else [one * scale for one in value]
            call(model, given)
    for line in lines(model).values():
        assert line[:6] == "FFFFFF" and "C" in line and line[-1] == "F"


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_default_leaves_runs_of_few_steps_alone(steps: int) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline())
    generate(pipe, steps=steps)
    stats = cache_dit.summary(pipe, logging=False)[0]
    assert stats.cached_steps == []
    assert stats.reason is not None and "shorter than its warm-up of 6 steps" in stats.reason


@pytest.mark.parametrize("name", TINY)
def test_every_model_has_the_numbers_of_the_references_server_too(name: str) -> None:
    model = tiny(name)
    cache_dit.enable_cache(model, **cache_dit.preset(model, "serving"))
    assert set(tags(model)) <= {"DBCache_F1B0_W8I1M0MC3_R0.24"}


def test_the_two_transformers_of_wan_2_2_have_options_of_their_own() -> None:
    noisy, clean = tiny("WanTransformer3DModel"), tiny("WanTransformer3DModel")
    pipe = type("WanPipeline", (), {"transformer": noisy, "transformer_2": clean})()
    adapter = wan_adapter(pipe)
    cache_dit.enable_cache(adapter, **cache_dit.preset(adapter, "serving"))
    assert tags(noisy) == ["DBCache_F1B0_W4I1M8MC3_R0.24"]
    assert tags(clean) == ["DBCache_F1B0_W2I1M20MC3_R0.24"]


def test_the_second_chain_of_flux_2_has_three_times_the_threshold_where_there_is_one() -> None:
    model = tiny("Flux2Transformer2DModel")
    split = flux2_adapter(model, merge=False)
    cache_dit.enable_cache(split, **cache_dit.preset(split, "serving"))
    assert tags(model) == ["DBCache_F1B0_W8I1M0MC3_R0.24", "DBCache_F1B0_W8I1M0MC3_R0.72"]


@pytest.mark.parametrize(("name", "line"), [("lightning_4", "FFCF"), ("lightning_8", "FFFFCFCF")])
def test_the_few_steps_of_qwen_image_lightning_compute_32_blocks_in_each(name: str, line: str) -> None:
    model = tiny("QwenImageTransformer2DModel", num_layers=34)
    cache_dit.enable_cache(model, **cache_dit.preset(model, name))
    with counted(blocks_of(model)) as fired:
        run(model, [0.6] * len(line))
    assert lines(model) == {"default": line}
    assert list(fired.values()) == [len(line)] * 16 + [line.count("F")] * 2 + [len(line)] * 16


def test_z_image_turbo_has_a_plan_of_nine_steps_of_which_the_last_is_computed() -> None:
    model = tiny("ZImageTransformer2DModel")
    cache_dit.enable_cache(model, **cache_dit.preset(model, "turbo"))
    run(model, [0.6] * 9)
    assert lines(model) == {"default": "FFFFFCFCF"}


@pytest.mark.parametrize(("record", "name"), ALL, ids=[f"{record.name}-{name}" for record, name in ALL])
def test_every_preset_says_what_it_is_for_and_where_its_numbers_come_from(record: Any, name: str) -> None:
    preset = record.all_presets()[name]
    assert preset.purpose
    assert preset.source


def test_what_a_preset_gives_may_be_changed() -> None:
    model = tiny("WanTransformer3DModel")
    cache_dit.preset(model)["cache_config"].update(max_warmup_steps=1)
    assert cache_dit.preset(model)["cache_config"].max_warmup_steps == 6


def test_a_presets_calibrator_predicts() -> None:
    preset = Preset("a test", "nowhere", calibrator=TaylorSeerCalibratorConfig(taylorseer_order=2))
    given = preset.arguments(1)["calibrator_config"]
    assert given == preset.calibrator
    assert given is not preset.calibrator


def test_a_model_that_a_user_describes_has_the_default() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    adapter = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=ForwardPattern.Pattern_3)
    assert cache_dit.preset(adapter)["cache_config"].residual_diff_threshold == 0.05
    assert cache_dit.preset(adapter, "serving")["cache_config"].residual_diff_threshold == 0.24


def test_an_unknown_name_gets_those_that_the_model_has() -> None:
    with pytest.raises(
        ConfigError, match=r"a preset of QwenImage.*: 'default' or 'serving' or 'lightning_4' or 'lightning_8'"
    ):
        cache_dit.preset(tiny("QwenImageTransformer2DModel"), "turbo")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(1, 1), "no record of Linear"),
        ("flux", "no record of str"),
        (type("UNet2DModel", (nn.Module,), {})(), "UNet2DModel cannot be cached"),
    ],
)
def test_a_model_without_a_record_has_no_preset(model: Any, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        cache_dit.preset(model)


def test_a_preset_with_an_option_that_does_not_exist_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="max_warmup_step"):
        Preset("a test", "nowhere", chains=({"max_warmup_step": 4},))
    with pytest.raises(ConfigError, match="Fn_compute_blocks"):
        Preset("a test", "nowhere", options={"Fn_compute_blocks": -1})
