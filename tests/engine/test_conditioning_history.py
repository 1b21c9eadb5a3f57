"""After a change of what conditions a run, no step is predicted from anything that was kept before it.

Frozen inputs tell: every step has the same ones but for the timestep, which falls a little, and but for what changes
in the middle. Then each step, computed or cached, must give what the model alone gives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxControlNetPipeline
from torch import Tensor

import cache_dit
from cache_dit import (
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.engine.state.measure import HostCopy
from tests.kit.equality import unlike
from tests.kit.tiny_flux import DOUBLE, SINGLE, embeddings, flux_inputs, tiny_transformer, tiny_vae
from tests.kit.toys import line, lines, normal

CHANGE = 5
MASK = "11111000100"
STEPS = len(MASK)
#: How far a step may be from the model's own: what the timestep's fall makes of it, which an extrapolation multiplies.
BOUND = 1e-3

Given = dict[str, Any]
At = Callable[[int], Given]


# What changes at a step, and how


def residuals(scale: float = 1.0, *, seed: int = 0) -> Given:
    """A ControlNet's residuals for all blocks."""
    return {
        "controlnet_block_samples": [scale * normal(1, 16, 32, seed=20 + seed + place) for place in range(DOUBLE)],
        "controlnet_single_block_samples": [
            scale * normal(1, 16, 32, seed=40 + seed + place) for place in range(SINGLE)
        ],
    }


def stay(model: Any) -> At:
    inputs = flux_inputs()
    return lambda step: inputs


def other_control(model: Any) -> At:
    inputs, hints = flux_inputs(), [residuals(), residuals(seed=5)]
    return lambda step: {**inputs, **hints[step >= CHANGE]}


def control_ends(model: Any) -> At:
    inputs, hint = flux_inputs(), residuals()
    return lambda step: {**inputs, **(hint if step < CHANGE else dict.fromkeys(hint))}


def control_is_emptied(model: Any) -> At:
    inputs, hint = flux_inputs(), residuals()
    return lambda step: {**inputs, **(hint if step < CHANGE else {name: value[:1] for name, value in hint.items()})}


def control_begins(model: Any) -> At:
    inputs, hint = flux_inputs(), residuals()
    return lambda step: {**inputs, **(hint if step >= CHANGE else {})}


def control_made_anew(model: Any) -> At:
    inputs = flux_inputs()
    return lambda step: {**inputs, **residuals(1.0 if step < CHANGE else 0.0)}


def other_text(model: Any) -> At:
    texts = [flux_inputs(), {**flux_inputs(), **{name: flux_inputs(seed=9)[name] for name in TEXT}}]
    return lambda step: texts[step >= CHANGE]


def other_pooled(model: Any) -> At:
    inputs, pooled = flux_inputs(), flux_inputs(seed=9)["pooled_projections"]
    return lambda step: {**inputs, "pooled_projections": pooled} if step >= CHANGE else inputs


def written_text(model: Any) -> At:
    inputs = flux_inputs()

    def at(step: int) -> Given:
        if step == CHANGE:
            inputs["encoder_hidden_states"].mul_(-1.5)
        return inputs

    return at


def adapter_off(model: Any) -> At:
    inputs = flux_inputs()
    if not getattr(model, "_hf_peft_config_loaded", False):
        adapt(model)
    model.enable_adapters()

    def at(step: int) -> Given:
        if step == CHANGE:
            model.disable_adapters()
        return inputs

    return at


def adapter_weaker(model: Any) -> At:
    inputs = flux_inputs()
    if not getattr(model, "_hf_peft_config_loaded", False):
        adapt(model)
    model.set_adapters("one", 1.0)

    def at(step: int) -> Given:
        if step == CHANGE:
            model.set_adapters("one", -0.5)
        return inputs

    return at


def adapt(model: Any, name: str = "one") -> None:
    torch.manual_seed(len(name) + ord(name[-1]))
    targets = ["to_q", "to_k", "to_v", "proj_mlp", "proj_out"]
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False), name)


def adapter_weaker_by_call(model: Any) -> At:
    inputs = flux_inputs()
    if not getattr(model, "_hf_peft_config_loaded", False):
        adapt(model)
    return lambda step: {**inputs, "joint_attention_kwargs": {"scale": 1.0 if step < CHANGE else -0.5}}


TEXT = ("encoder_hidden_states", "pooled_projections")
CONTROLS = [other_control, control_ends, control_is_emptied, control_begins, control_made_anew]
OTHERS = [other_text, other_pooled, written_text, adapter_off, adapter_weaker, adapter_weaker_by_call]


# How steps are decided, and how they are predicted


def masked(front: int = 1) -> DBCacheConfig:
    return DBCacheConfig(
        Fn_compute_blocks=front,
        max_warmup_steps=1,
        steps_computation_mask=[int(digit) for digit in MASK],
        steps_computation_policy="static",
        num_inference_steps=STEPS,
    )


def measured(**options: Any) -> DBCacheConfig:
    mask = [1] * 5 + [0] * 3 + [1, 0, 0]
    return DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        residual_diff_threshold=0.9,
        steps_computation_mask=mask,
        steps_computation_policy="dynamic",
        num_inference_steps=STEPS,
        **options,
    )


def pruned(**options: Any) -> DBPruneConfig:
    mask = [1] * 5 + [0] * 3 + [1, 0, 0]
    return DBPruneConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        steps_computation_mask=mask,
        num_inference_steps=STEPS,
        **{"residual_diff_threshold": 0.9, **options},
    )


def planned() -> DBCacheConfig:
    rules = ("reuse", *[GapRule(1)] * 4, GapRule(2))
    point = PlanPoint(
        6, {"*": BranchSchedule(MASK, rules)}, measured=Quality(40.0, 36.0, 35.0, 39.0, 41.0, 8), ideal_speedup=2
    )
    return DBCacheConfig(plan=Plan(PlanScope(num_inference_steps=STEPS), (point,), chosen=6))


WAYS: dict[str, Callable[[], Any]] = {
    "mask": masked,
    "mask, no F": functools.partial(masked, 0),
    "threshold": measured,
    "threshold of 1": functools.partial(measured, max_accumulated_residual_diff_threshold=None),
    "by sample": functools.partial(measured, decision="sample"),
    "prune": pruned,
    "prune by the step before": functools.partial(pruned, prune_decision="previous"),
    "prune by mask": functools.partial(pruned, steps_computation_policy="static"),
}
PREDICTORS: dict[str, Any] = {
    "reuse": None,
    "taylor 1": TaylorSeerCalibratorConfig(taylorseer_order=1),
    "taylor 2": TaylorSeerCalibratorConfig(taylorseer_order=2),
    "newton": CalibratorConfig(enable_calibrator=True, enable_encoder_calibrator=True, calibrator_type="newton"),
    "states": TaylorSeerCalibratorConfig(taylorseer_order=1, calibrator_cache_type="hidden_states"),
    "foca": FoCaCalibratorConfig(),
    "dmd": DMDCalibratorConfig(),
    "hermite": HermiteCalibratorConfig(),
}


@torch.no_grad()
def run(model: Any, at: At, *, steps: int = STEPS) -> list[Tensor]:
    outputs = []
    for step in range(steps):
        given = at(step)
        timestep = torch.full((given["hidden_states"].shape[0],), 1 - step * 2e-7)
        outputs.append(model(**given, timestep=timestep, return_dict=False)[0])
    return outputs


def off(change: Callable[[Any], At], config: Any, calibrator: Any = None) -> tuple[list[int], str]:
    """The steps that are not what the model alone gives, and the line of what was done."""
    model = tiny_transformer()
    expected = run(model, change(model))
    assert change is stay or unlike(expected[CHANGE], expected[CHANGE - 1], by=0.05), "nothing changes"
    cache_dit.enable_cache(model, config, calibrator)
    outputs = run(model, change(model))
    wrong = [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)]
    return wrong, next(iter(lines(model).values()))


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("change", [other_control, control_made_anew, other_text], ids=lambda change: change.__name__)
def test_with_every_predictor(change: Any, predictor: str) -> None:
    for way in ("mask", "threshold"):
        wrong, done = off(change, WAYS[way](), PREDICTORS[predictor])
        assert (way, wrong, done) == (way, [], "FFFFFFCCFCC")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", [*CONTROLS, *OTHERS], ids=lambda change: change.__name__)
def test_with_every_way_to_decide(change: Any, way: str) -> None:
    wrong, done = off(change, WAYS[way](), PREDICTORS["taylor 2"])
    moved = way == "prune by the step before" and change in (other_control, control_begins)
    expected = "FFFFFFFCFCC" if moved else "FFFFFFCCFCC"  # the change has moved the blocks' inputs
    assert (wrong, done.replace("P", "C")) == ([], expected)


@pytest.mark.parametrize("change", [*CONTROLS, *OTHERS], ids=lambda change: change.__name__)
def test_with_a_plan(change: Any) -> None:
    assert off(change, planned()) == ([], "FFFFFFCCFCC")


@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_changes_nothing_more_is_computed(way: str) -> None:
    wrong, done = off(stay, WAYS[way](), PREDICTORS["taylor 2"])
    assert (wrong, done.replace("P", "C")) == ([], "FFFFFCCCFCC")


@pytest.mark.parametrize("way", ["mask", "threshold", "by sample", "prune"])
@pytest.mark.parametrize("change", [other_control, control_made_anew, other_text], ids=lambda change: change.__name__)
def test_with_a_chain_for_each_list_so_that_both_streams_are_predicted(change: Any, way: str) -> None:
    model = tiny_transformer()
    expected = run(model, change(model))
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=[model.transformer_blocks, model.single_transformer_blocks],
        forward_pattern=[cache_dit.ForwardPattern.Pattern_1] * 2,
    )
    cache_dit.enable_cache(adapter, WAYS[way](), PREDICTORS["taylor 2"])
    outputs = run(model, change(model))
    assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == []
    assert [next(iter(lines(model, chain).values())).replace("P", "C") for chain in (0, 1)] == ["FFFFFFCCFCC"] * 2


def test_samples_that_decide_for_themselves_each_begin_anew_for_themselves() -> None:
    inputs = flux_inputs(batch=2)

    def at(step: int) -> Given:
        hint = {name: [torch.cat([one, one]) for one in value] for name, value in residuals().items()}
        if step >= CHANGE:
            for one in (one for value in hint.values() for one in value):
                one[1] = 0
        return {**inputs, **hint}

    model = tiny_transformer()
    expected = run(model, at)
    for way in ("mask", "by sample"):
        options = WAYS[way]()
        options.decision = "sample"
        cache_dit.enable_cache(model, options, PREDICTORS["taylor 2"])
        outputs = run(model, at)
        assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == []
        assert lines(model) == {"default[0]": "FFFFFCCCFCC", "default[1]": "FFFFFFCCFCC"}


def test_a_sample_that_computes_anyway_begins_anew_beside_one_that_is_measured() -> None:
    scales = {0: [1.0] * 5 + [0.0] * 6, 1: [1.0, 1.0, 2.0, 2.0, 2.0] + [0.0] * 6}
    inputs = flux_inputs(batch=2)

    def at(step: int) -> Given:
        by_sample = [residuals(scales[sample][step]) for sample in scales]
        return inputs | {
            name: [torch.cat(pair) for pair in zip(*(one[name] for one in by_sample), strict=True)]
            for name in by_sample[0]
        }

    model = tiny_transformer()
    expected = run(model, at)
    options = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        residual_diff_threshold=0.9,
        max_continuous_cached_steps=2,
        decision="sample",
        num_inference_steps=STEPS,
    )
    cache_dit.enable_cache(model, options, PREDICTORS["taylor 1"])
    outputs = run(model, at)
    assert lines(model) == {"default[0]": "FCCFCFCCFCC", "default[1]": "FCFCCFCCFCC"}
    assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == []


# Text states


@pytest.mark.parametrize("change", range(1, 10))
def test_another_text_at_any_step(change: int) -> None:
    """One that changes at the second call is known to be no tensor made anew at each call when it stays."""
    texts = [flux_inputs(), flux_inputs(seed=9)]
    model = tiny_transformer()
    expected = run(model, lambda step: texts[step >= change])
    cache_dit.enable_cache(model, masked(), PREDICTORS["taylor 2"])
    outputs = run(model, lambda step: texts[step >= change])
    assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == []


def test_text_states_that_are_made_anew_at_each_call_lose_no_cached_step() -> None:
    def sliced() -> At:
        base = torch.cat([flux_inputs()["encoder_hidden_states"]] * 2)
        return lambda step: {**flux_inputs(), "encoder_hidden_states": base[:1]}

    model = tiny_transformer()
    for at in (lambda step: flux_inputs(), sliced()):
        cache_dit.enable_cache(model, masked())
        run(model, at)
        assert line(model) == "FFFFFCCCFCC"


@torch.no_grad()
def test_text_states_that_branches_take_in_turn_are_no_change() -> None:
    texts = {"cond": flux_inputs(), "uncond": flux_inputs(seed=9)}
    model: Any = tiny_transformer()
    cache_dit.enable_cache(model, masked(), PREDICTORS["taylor 2"])
    for step in range(STEPS):
        for branch, given in texts.items():
            with model.cache_context(branch):
                model(**given, timestep=torch.tensor([1 - step * 2e-7]), return_dict=False)
    assert lines(model) == dict.fromkeys(texts, "FFFFFCCCFCC")


@pytest.mark.parametrize("way", ["threshold", "by sample", "prune", "prune by the step before"])
def test_a_diff_that_leaps_begins_a_new_history_where_nothing_else_tells(way: str) -> None:
    """The text is made anew at each call, so that only the first block, or each block's input, shows the change."""

    def at(step: int) -> Given:
        return flux_inputs() | ({name: flux_inputs(seed=9)[name] for name in TEXT} if step >= CHANGE else {})

    model = tiny_transformer()
    expected = run(model, at)
    options = WAYS[way]()
    options.residual_diff_threshold = 0.01
    options.steps_computation_mask = [1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    cache_dit.enable_cache(model, options, PREDICTORS["taylor 2"])
    outputs = run(model, at)
    late = [CHANGE] if way == "prune by the step before" else []
    assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == late


# Without a wait, as on an accelerator


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """No number is at hand in the step that it was measured in."""
    make = HostCopy.__init__

    def sent(self: HostCopy, numbers: Tensor) -> None:
        make(self, numbers)
        self.at_hand = False

    monkeypatch.setattr(HostCopy, "__init__", sent)


@pytest.mark.parametrize(
    ("way", "late"), [("mask", [5]), ("mask, no F", [5]), ("prune by mask", [5]), ("threshold", []), ("by sample", [])]
)
@pytest.mark.usefixtures("far")
def test_where_a_jump_travels_a_mask_is_one_step_late_and_a_measured_step_is_not(way: str, late: list[int]) -> None:
    wrong, done = off(control_made_anew, WAYS[way](), PREDICTORS["taylor 2"])
    assert (wrong, done.replace("P", "C")) == (late, "FFFFFCFCFCC" if late else "FFFFFFCCFCC")


@pytest.mark.usefixtures("far")
def test_where_a_jump_travels_from_a_computed_step_that_step_stays_and_those_before_it_go() -> None:
    def at(step: int) -> Given:
        return {**flux_inputs(), **residuals(1.0 if step < 4 else 0.0)}

    model = tiny_transformer()
    expected = run(model, at)
    cache_dit.enable_cache(model, masked(), PREDICTORS["taylor 2"])
    outputs = run(model, at)
    assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == []
    assert line(model) == "FFFFFCCCFCC"


# The real pipeline


def control_pipeline() -> FluxControlNetPipeline:
    """Tiny and random; its ControlNet's residuals are not small beside the streams."""
    torch.manual_seed(1)
    controlnet = FluxControlNetModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 6, 6],
    )
    for block in (*controlnet.controlnet_blocks, *controlnet.controlnet_single_blocks):  # they are zero at first
        torch.nn.init.normal_(block.weight, std=0.1)
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxControlNetPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        transformer=tiny_transformer(),
        controlnet=controlnet.eval().requires_grad_(False),
        **none,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def errors(end: float) -> tuple[list[float], str]:
    """How far each step is from what the model alone makes of the same inputs, and what was done."""
    pipe, alone, found = control_pipeline(), tiny_transformer(), []
    mask = [1, 1, 1, 0, 1, 0, 0, 1, 0, 1]
    options = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=1, steps_computation_mask=mask, steps_computation_policy="static"
    )
    cache_dit.enable_cache(pipe, options, PREDICTORS["taylor 1"])

    def compare(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        found.append(float((output[0] - alone(*args, **kwargs)[0]).abs().max()))

    pipe.transformer.register_forward_hook(compare, with_kwargs=True)
    pipe(
        **embeddings(),
        control_image=normal(1, 3, 8, 8, seed=7),
        control_guidance_end=end,
        height=8,
        width=8,
        num_inference_steps=10,
        output_type="latent",
        generator=torch.Generator().manual_seed(2),
    )
    return found, line(pipe.transformer)


# diffusers' own FluxControlNetModel makes it
deprecated = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


@deprecated
def test_a_controlnet_that_ends_leaves_nothing_behind() -> None:
    """Its residuals are made anew at each step, and are zero from the sixth on."""
    without_end, _ = errors(1.0)
    found, done = errors(0.5)
    assert done == "FFFCFFCFCF"
    assert max(found) <= max(without_end)


@deprecated
@pytest.mark.usefixtures("far")
def test_without_a_wait_it_leaves_something_behind_for_one_step() -> None:
    without_end, _ = errors(1.0)
    found, done = errors(0.5)
    assert done == "FFFCFCFFCF"
    assert [step for step, error in enumerate(found) if error > max(without_end)] == [5]


# Adapters


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute in the model:UserWarning:peft")
@pytest.mark.filterwarnings("ignore:Adapter one was active which is now deleted:UserWarning:peft")
@pytest.mark.parametrize(
    "do",
    [
        lambda model: model.set_adapter("two"),
        lambda model: model.set_adapters(["one", "two"], [0.5, 1.0]),
        lambda model: model.fuse_lora(adapter_names=["one"], lora_scale=0.3),
        lambda model: model.delete_adapters("one"),
        lambda model: model.unload_lora(),
        lambda model: adapt(model, "three"),
        lambda model: [module.set_scale("one", 3) for module in model.modules() if hasattr(module, "set_scale")],
    ],
    ids=["another", "two", "fused", "deleted", "unloaded", "loaded", "scaled"],
)
def test_whatever_is_done_to_adapters_in_the_middle(do: Callable[[Any], Any]) -> None:
    def prepared() -> Any:
        model = tiny_transformer()
        for name in ("one", "two"):
            adapt(model, name)
        model.set_adapter("one")
        return model.requires_grad_(False)

    def at(model: Any) -> At:
        inputs = flux_inputs()
        return lambda step: (inputs, do(model))[0] if step == CHANGE else inputs

    plain, model = prepared(), prepared()
    expected = run(plain, at(plain))
    assert unlike(expected[CHANGE], expected[CHANGE - 1], by=0.01), "nothing changes"
    cache_dit.enable_cache(model, masked(), PREDICTORS["taylor 2"])
    outputs = run(model, at(model))
    assert line(model) == "FFFFFFCCFCC"
    assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == []


def test_the_first_adapter_that_a_model_gets_in_the_middle() -> None:
    def at(model: Any) -> At:
        inputs = flux_inputs()
        return lambda step: (inputs, adapt(model))[0] if step == CHANGE else inputs

    plain, model = tiny_transformer(), tiny_transformer()
    expected = run(plain, at(plain))
    cache_dit.enable_cache(model, masked(), PREDICTORS["taylor 2"])
    outputs = run(model, at(model))
    assert line(model) == "FFFFFFCCFCC"
    assert [step for step in range(STEPS) if unlike(outputs[step], expected[step], by=BOUND)] == []


@torch.no_grad()
def test_an_adapter_that_acts_in_one_branch_alone_is_no_change() -> None:
    model: Any = tiny_transformer()
    adapt(model)
    inputs = flux_inputs()
    cache_dit.enable_cache(model, masked())
    for step in range(STEPS):
        for branch in ("cond", "uncond"):
            (model.enable_adapters if branch == "cond" else model.disable_adapters)()
            with model.cache_context(branch):
                model(**inputs, timestep=torch.tensor([1 - step * 2e-7]), return_dict=False)
    assert lines(model) == {"cond": "FFFFFCCCFCC", "uncond": "FFFFFCCCFCC"}
