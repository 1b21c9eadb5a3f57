"""Every family with a record, on a tiny random transformer: a new family is one row in `tests/kit/families`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor, nn

import cache_dit
from cache_dit import BlockAdapter, ConfigError, DBPruneConfig, ForwardPattern, TaylorSeerCalibratorConfig
from cache_dit.models import record_of
from cache_dit.models.record import _records
from tests.kit.claims import LINE, ONE_BRANCH, blocks_of, call, frozen, run
from tests.kit.equality import close, same
from tests.kit.tiny_models import TINY, inputs, tiny
from tests.kit.toys import counted, dynamic, lines, loop, static

FAMILIES = list(TINY)


class Family(NamedTuple):
    """A family's model, made once for all tests, and what it gives without a cache."""

    name: str
    model: nn.Module
    frozen: Tensor
    moving: list[Tensor]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest) -> Family:
    model = tiny(request.param)
    return Family(request.param, model, run(model, [0.6])[0], run(model, loop(4)))


@pytest.fixture
def family(made: Family) -> Iterator[Family]:
    """A family whose model is without a cache before and after a test."""
    yield made
    cache_dit.disable_cache(made.model)


def test_every_recorded_class_has_a_row() -> None:
    assert {name for name, record in _records.items() if record.package == "diffusers"} == set(TINY)


@pytest.mark.parametrize(("front", "back"), [(1, 0), (1, 1), (2, 0), (2, 1), (0, 0)])
def test_frozen_inputs_give_the_true_output_and_skipped_blocks_are_not_called(
    family: Family, front: int, back: int
) -> None:
    model = family.model
    cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back, **ONE_BRANCH))
    blocks = blocks_of(model)
    with counted(blocks) as fired:
        outputs = frozen(model)
    assert close(outputs, family.frozen)
    assert lines(model) == {"default": LINE}
    turns = len(record_of(model).blocks) if record_of(model).interleave else 1
    middle = range(turns * (front + 1) - 1, len(blocks) - turns * back)
    assert fired == {place: LINE.count("F") if place in middle else len(LINE) for place in range(len(blocks))}


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
def test_frozen_inputs_by_taylor(family: Family, kept: str) -> None:
    calibrator = TaylorSeerCalibratorConfig(calibrator_cache_type=kept)
    cache_dit.enable_cache(family.model, static(LINE, Bn_compute_blocks=1, **ONE_BRANCH), calibrator)
    assert close(frozen(family.model), family.frozen)
    assert lines(family.model) == {"default": LINE}


def test_frozen_inputs_with_a_measured_diff(family: Family) -> None:
    cache_dit.enable_cache(family.model, dynamic(**ONE_BRANCH))
    assert close(frozen(family.model), family.frozen)
    assert lines(family.model) == {"default": "FCCCCC"}


def test_with_every_step_computed_the_output_is_the_plain_one_bit_for_bit(family: Family) -> None:
    for config in (dynamic(residual_diff_threshold=0.0), static("FFFF", Bn_compute_blocks=1)):
        cache_dit.enable_cache(family.model, config)
        assert same(run(family.model, loop(4)), family.moving)


def test_with_the_cache_off_again_everything_is_as_before(family: Family) -> None:
    model = family.model
    classes, keys = [type(module) for module in model.modules()], list(model.state_dict())
    for _ in range(2):
        cache_dit.enable_cache(model, static("FCFC"))
        assert list(model.state_dict()) == keys
        assert isinstance(model, classes[0])
        run(model, loop(4)[:2])
        cache_dit.disable_cache(model)
        assert all(type(module) is cls for module, cls in zip(model.modules(), classes, strict=True))
        assert list(model.state_dict()) == keys
        assert same(run(model, loop(4)[:2]), family.moving[:2])


def test_a_second_run_equals_the_first(family: Family) -> None:
    model = family.model
    cache_dit.enable_cache(model, dynamic(residual_diff_threshold=1.0), TaylorSeerCalibratorConfig())
    first = run(model, loop(4))
    run(model, loop(2), batch=2, side=3)
    assert same(run(model, loop(4)), first)
    assert not same(first, family.moving)
    assert all(output.isfinite().all() for output in first)


def test_frozen_inputs_with_single_blocks_pruned(family: Family) -> None:
    config = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.5, **ONE_BRANCH)
    cache_dit.enable_cache(family.model, config)
    assert close(frozen(family.model), family.frozen)
    assert set(lines(family.model)["default"][2:]) == {"P"}


def test_two_branches_by_turns_have_steps_of_their_own(family: Family) -> None:
    timesteps = [timestep for timestep in loop(len(LINE)) for _ in ("cond", "uncond")]
    expected = run(family.model, timesteps[:4])
    cache_dit.enable_cache(family.model, static(LINE, enable_separate_cfg=True), TaylorSeerCalibratorConfig())
    both = run(family.model, timesteps)
    assert lines(family.model) == {"cond": LINE, "uncond": LINE}
    assert same(both[0::2], both[1::2])
    assert same(both[:4], expected)


def test_a_cache_of_diffusers_that_is_on_already_is_refused() -> None:
    model = tiny("FluxTransformer2DModel")
    (expected,) = run(model, [0.6])
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    with pytest.raises(ConfigError, match="two would skip twice"):
        cache_dit.enable_cache(model, static(LINE))
    model.disable_cache()
    cache_dit.enable_cache(model, static(LINE))
    assert close(frozen(model), expected)
    assert lines(model) == {"default": LINE}


# -- what is special in a family


def test_flux_is_one_chain_over_both_lists() -> None:
    model = tiny("FluxTransformer2DModel")
    cache_dit.enable_cache(model, static(LINE))
    frozen(model)
    (chain, _) = cache_dit.summary(model, logging=False)
    assert chain.name == "transformer_blocks+single_transformer_blocks"
    assert chain.executed_blocks == 3 * 6 + 3 * 1


@pytest.mark.parametrize("how", ["environment", "adapter"])
@pytest.mark.parametrize(("front", "back"), [(1, 0), (1, 1), (0, 0), (0, 1)])
def test_flux_split_into_two_chains(monkeypatch: pytest.MonkeyPatch, how: str, front: int, back: int) -> None:
    model = tiny("FluxTransformer2DModel")
    (expected,) = run(model, [0.6])
    described: Any = model
    if how == "environment":
        monkeypatch.setenv("CACHE_DIT_FLUX_ENABLE_DUMMY_BLOCKS", "0")
    else:
        described = BlockAdapter(
            transformer=model,
            blocks=[model.transformer_blocks, model.single_transformer_blocks],
            forward_pattern=ForwardPattern.Pattern_1,
        )
    cache_dit.enable_cache(described, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
    assert close(frozen(model), expected)
    first, second, _ = cache_dit.summary(model, logging=False)
    assert (first.name, second.name) == ("transformer_blocks", "single_transformer_blocks")
    assert first.steps_line == second.steps_line == {"default": LINE}
    assert first.executed_blocks == second.executed_blocks == 3 * 3 + 3 * (front + back)


def test_flux_adds_controlnet_residuals_on_skipped_steps_too() -> None:
    model = tiny("FluxTransformer2DModel")
    given = inputs("FluxTransformer2DModel")
    given["controlnet_block_samples"] = [torch.randn(1, 16, 16) for _ in range(3)]
    given["controlnet_single_block_samples"] = [torch.randn(1, 16, 16) for _ in range(3)]
    with torch.no_grad():
        expected = call(model, given)
        for front, back in ((1, 0), (0, 0), (2, 2)):
            cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
            assert close([call(model, given) for _ in LINE], expected)


def test_stable_diffusion_3_obeys_its_controlnet_on_skipped_steps_and_when_it_changes() -> None:
    model = tiny("SD3Transformer2DModel")
    given = inputs("SD3Transformer2DModel")
    first, other = ([torch.full((1, 16, 16), value) for _ in range(3)] for value in (0.5, -2.0))
    with torch.no_grad():
        expected = [call(model, {**given, "block_controlnet_hidden_states": states}) for states in (first, other)]
        assert not torch.equal(*expected)
        cache_dit.enable_cache(model, static("FCCCCC"))
        outputs = [
            call(model, {**given, "block_controlnet_hidden_states": states}) for states in [first] * 3 + [other] * 3
        ]
    assert close(outputs[:3], expected[0])
    assert close(outputs[3:], expected[1])
    assert lines(model) == {"default": "FCCFCC"}


def test_flux2_computes_the_step_that_fills_its_key_value_cache() -> None:
    record = record_of(tiny("Flux2Transformer2DModel"))
    assert record.rules.computes({"kv_cache_mode": "extract"})
    assert not record.rules.computes({"kv_cache_mode": "cached"})
    assert not record.rules.computes({})


@pytest.mark.skipif(
    "kv_cache_mode" not in inspect.signature(diffusers.Flux2Transformer2DModel.forward).parameters,
    reason="this diffusers has no key-value cache for FLUX.2",
)
def test_flux2_obeys_its_key_value_cache_mode_in_mid_run() -> None:
    name = "Flux2Transformer2DModel"
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCCCCC"))
    with torch.no_grad():
        for step, timestep in enumerate(loop(6)):
            mode = {"kv_cache_mode": "extract"} if step == 3 else {}
            model(**inputs(name, timestep=timestep), **mode, return_dict=False)
    assert lines(model) == {"default": "FCCFCC"}


def test_qwen_image_tells_unnamed_calls_of_guidance_apart_by_turns() -> None:
    name = "QwenImageTransformer2DModel"
    model = tiny(name)
    cache_dit.enable_cache(model, static("FCFC"))
    for timestep in loop(4):
        run(model, [timestep, timestep])
    assert lines(model) == {"cond": "FCFC", "uncond": "FCFC"}


def test_sd3_skips_its_last_block_which_returns_no_text() -> None:
    model = tiny("SD3Transformer2DModel")
    assert model.transformer_blocks[-1].context_pre_only
    (expected,) = run(model, [0.6])
    cache_dit.enable_cache(model, static(LINE))
    with counted(model.transformer_blocks) as fired:
        assert close(frozen(model), expected)
    assert fired[4] == LINE.count("F")


@pytest.mark.parametrize("dropped", [[0], [1], [2], [4], [2, 3], [1, 2, 3, 4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize(("front", "back"), [(1, 0), (1, 1), (0, 0)])
def test_sd3_calls_that_skip_layers_are_a_branch_of_their_own(dropped: list[int], front: int, back: int) -> None:
    name = "SD3Transformer2DModel"
    model = tiny(name)
    given = inputs(name)
    with torch.no_grad():
        whole, reduced = call(model, given), call(model, {**given, "skip_layers": dropped})
        cache_dit.enable_cache(model, static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
        for step in range(len(LINE)):
            assert close([call(model, given)], whole)
            if step > 0:  # guidance by skipped layers begins later than the run
                assert close([call(model, {**given, "skip_layers": dropped})], reduced)
    assert lines(model)["default"] == LINE


def test_wan_has_two_transformers_each_with_steps_of_its_own() -> None:
    name = "WanTransformer3DModel"
    noisy, clean = tiny(name), tiny(name)
    record = record_of(noisy)
    cache_dit.enable_cache(record.adapter([noisy, clean]), static("FCFC", **ONE_BRANCH))
    first = run(noisy, loop(4)[:2]) + run(clean, loop(4)[2:])
    assert lines(noisy) == {"default": "FC"}
    assert lines(clean) == {"default": "FC"}
    assert same(run(noisy, loop(4)[:2]) + run(clean, loop(4)[2:]), first)
    cache_dit.disable_cache(clean)
    assert cache_dit.strify(clean) == "NONE"
    assert cache_dit.strify(noisy).endswith("_S1")


def test_classes_are_found_by_their_exact_name_or_that_of_a_base() -> None:
    base = type(tiny("WanTransformer3DModel"))
    derived = type("MyWan", (base,), {})
    stranger = type("WanTransformer3DModelControlNet", (nn.Module,), {})
    model = tiny("WanTransformer3DModel")
    model.__class__ = derived
    assert record_of(model) is record_of(tiny("WanTransformer3DModel"))
    assert record_of(stranger()) is None
    with pytest.raises(cache_dit.UnsupportedModelError, match="WanTransformer3DModelControlNet"):
        cache_dit.enable_cache(stranger())
