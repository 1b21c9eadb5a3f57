"""A plan on real models: it does what a mask and a predictor do, and refuses every run that it was not made for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch._dynamo.testing import CompileCounterWithBackend

import cache_dit
from cache_dit import ConfigError, DBCacheConfig, DBPruneConfig, ParamsModifier, TaylorSeerCalibratorConfig
from cache_dit.demo import load_pipeline
from cache_dit.engine.forward import branch_cache
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.engine.predictors.polynomial import taylor
from cache_dit.engine.sessions import call_reader as calls
from cache_dit.engine.sessions.model_facts import parameter_dtype, schedule_facts, weights_digest
from cache_dit.engine.state import history, measure
from cache_dit.engine.subclass import state_of
from tests.engine.sessions.test_guidance import Guided, guide
from tests.kit.equality import close, same
from tests.kit.tiny_flux import (
    MASK,
    STEPS,
    blocks_of,
    counted,
    denoise,
    flux_inputs,
    generate,
    tiny_pipeline,
    tiny_transformer,
)
from tests.kit.tiny_flux import static_config as masked
from tests.kit.toys import Toy, lines

TEXT = "".join(map(str, MASK))
LINE = TEXT.replace("1", "F").replace("0", "C")
DAMPED = GapRule(1, 0.4)
FLUX = "FluxTransformer2DModel"


def plan_of(*rules: GapRule | str, mask: str = TEXT, masks: dict[str, str] | None = None, **conditions: Any) -> Plan:
    """A plan with one point, chosen, whose full steps have these rules in turn."""
    count = mask.count("1")
    named = {name: BranchSchedule(text) for name, text in (masks or {}).items()}
    cycled = [(rules or ("reuse",))[index % max(len(rules), 1)] for index in range(count)]
    schedules = named or {"*": BranchSchedule(mask, tuple(cycled))}
    steps = len(next(iter(schedules.values())).mask)
    point = PlanPoint(count, schedules, measured=Quality(40.0, 36.0, 35.0, 39.0, 41.0, 8), ideal_speedup=steps / count)
    return Plan(PlanScope(**{"num_inference_steps": steps, **conditions}), (point,), chosen=count)


def drawn(pipe: Any, config: Any = None, calibrator: Any = None, **options: Any) -> torch.Tensor:
    """What a pipeline gives with a cache, or without one; the cache stays on."""
    if config is None:
        cache_dit.disable_cache(pipe)
    else:
        cache_dit.enable_cache(pipe, config, calibrator)
    return generate(pipe, **options)


# -- the same as a mask and a predictor


@pytest.mark.parametrize(
    ("rule", "calibrator"),
    [
        (GapRule(), None),
        (GapRule(1), TaylorSeerCalibratorConfig()),
        (DAMPED, TaylorSeerCalibratorConfig(damping=0.4)),
        (GapRule(2, 0.5), TaylorSeerCalibratorConfig(taylorseer_order=2, damping=0.5)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_one_rule_for_all_gaps_gives_what_a_static_mask_with_that_predictor_gives_bit_for_bit(
    rule: GapRule, calibrator: Any
) -> None:
    pipe = tiny_pipeline()
    expected = drawn(pipe, masked(0), calibrator)
    assert torch.equal(drawn(pipe, plan_of(rule)), expected)
    assert not torch.equal(expected, drawn(pipe))


def test_so_it_does_on_the_demo_model_with_two_branches() -> None:
    pipe = load_pipeline(progress=False)
    told = {"prompt": "glossy 3d emoji of cuba flag", "num_inference_steps": 6, "output_type": "latent"}

    def latents() -> torch.Tensor:
        return pipe(generator=torch.Generator().manual_seed(0), **told).images

    cache_dit.enable_cache(pipe, masked(0, mask=MASK), TaylorSeerCalibratorConfig(damping=0.4))
    expected = latents()
    cache_dit.enable_cache(pipe, plan_of(DAMPED, scheduler=type(pipe.scheduler).__name__, branches=("cond", "uncond")))
    assert torch.equal(latents(), expected)
    assert lines(pipe) == {"cond": LINE, "uncond": LINE}


def test_cached_steps_run_no_block() -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), plan_of(DAMPED))
    with counted(transformer) as calls_by_block:
        denoise(transformer)
    assert set(calls_by_block.values()) == {sum(MASK)}
    assert len(calls_by_block) == len(blocks_of(transformer))


def test_each_gap_has_its_own_rule_made_for_the_steps_that_were_computed() -> None:
    plan = plan_of("reuse", "reuse", "taylor1*0.4")  # full 0, 1 (then 2 cached), 3 (then 4 and 5 cached)
    schedule = plan.point.branches["*"]
    assert [schedule.rule(step).name for step in (2, 4, 5)] == ["reuse", "taylor1*0.4", "taylor1*0.4"]
    seen: list[tuple[list[float], float]] = []
    transformer = cache_dit.enable_cache(tiny_transformer(), plan)
    past = history.History.predict_with

    def noted(self: Any, other: Any, coefficients: Any, *rest: Any) -> Any:
        seen.extend((one.times[:], list(coefficients)) for one in (self, other))
        return past(self, other, coefficients, *rest)

    history.History.predict_with = noted  # type: ignore[method-assign]
    try:
        denoise(transformer)
    finally:
        history.History.predict_with = past  # type: ignore[method-assign]
    rule = taylor(1, 0.4)
    assert seen[::2] == seen[1::2]  # of H and of E
    assert seen[::2] == [
        ([0.0, 1.0], [0.0, 1.0]),
        ([1.0, 3.0], rule.coefficients([1.0, 3.0], 4)),
        ([1.0, 3.0], rule.coefficients([1.0, 3.0], 5)),
    ]


def test_it_keeps_no_more_snapshots_than_its_rules_use() -> None:
    """The last full step's rule of order 3 is used by no step, and the text's stream goes with the picture's."""
    one, two = (cache_dit.enable_cache(tiny_transformer(), plan) for plan in (plan_of(), plan_of("taylor1")))
    unused = cache_dit.enable_cache(tiny_transformer(), plan_of("reuse", "reuse", "taylor3", mask="110100"))
    last = cache_dit.enable_cache(tiny_transformer(), plan_of("reuse", "reuse", "taylor3", mask="110001"))
    kept = []
    for transformer in (one, two, unused, last):
        denoise(transformer)
        kept.append(cache_dit.summary(transformer, logging=False)[0].peak_bytes)
    assert kept == [kept[0], 2 * kept[0], 3 * kept[0], kept[0]]  # of order 3 there are but three full steps


# -- what it costs


def test_no_step_reads_back_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = measure.read_back

    def counting(values: torch.Tensor) -> list[float]:
        reads.append(values.numel())
        return read(values)

    transformer = cache_dit.enable_cache(tiny_transformer(), plan_of(DAMPED))
    denoise(transformer)  # once it is known whether the blocks write into their input, nobody asks again
    for module in (measure, branch_cache, history, calls):
        monkeypatch.setattr(module, "read_back", counting)
    monkeypatch.setattr(type(state_of(transformer).reader), "timestep", lambda *args, **kwargs: None)
    denoise(transformer)
    assert cache_dit.summary(transformer, logging=False)[0].steps_line == {"default": LINE}
    assert reads == []


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No compiled code from other tests, and none left for them."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_it_is_two_graphs_and_nothing_is_compiled_anew() -> None:
    counter = CompileCounterWithBackend("eager")
    plan = plan_of("reuse", "taylor1", DAMPED)
    expected = denoise(cache_dit.enable_cache(tiny_transformer(), plan))
    transformer = tiny_transformer()
    transformer.compile(backend=counter, fullgraph=True)
    cache_dit.enable_cache(transformer, plan)
    found = denoise(transformer)
    assert counter.frame_count == 2
    assert close(found, expected)
    denoise(transformer)
    assert counter.frame_count == 2


# -- ways to ask for it


def test_every_way_to_ask_gives_the_same(tmp_path: Path) -> None:
    plan, path = plan_of("reuse", DAMPED), tmp_path / "plan.json"
    plan.save(path)
    yaml = tmp_path / "cache.yaml"
    yaml.write_text(f"cache_config:\n  plan: {path}\n", encoding="utf-8")
    pipe = tiny_pipeline()
    expected = drawn(pipe, plan)
    for config in (path, str(path), DBCacheConfig(plan=plan), DBCacheConfig(plan=str(path)), DBCacheConfig(plan=path)):
        assert torch.equal(drawn(pipe, config), expected)
    cache_dit.disable_cache(pipe)
    cache_dit.enable_cache(pipe, **cache_dit.load_configs(yaml))
    assert torch.equal(generate(pipe), expected)
    cache_dit.disable_cache(pipe)
    base = DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.2, max_warmup_steps=2)
    modifier = ParamsModifier(DBCacheConfig().reset(plan=plan))
    cache_dit.enable_cache(pipe, base, TaylorSeerCalibratorConfig(), [modifier])
    assert torch.equal(generate(pipe), expected)
    assert state_of(pipe.transformer).config.Fn_compute_blocks == 0


def test_refresh_context_takes_a_plan_in_place_of_a_threshold_and_another_policy_in_place_of_the_plan() -> None:
    transformer = cache_dit.enable_cache(
        tiny_transformer(), DBCacheConfig(Fn_compute_blocks=1, max_continuous_cached_steps=1, num_inference_steps=STEPS)
    )
    cache_dit.refresh_context(transformer, plan=plan_of())
    denoise(transformer)
    assert lines(transformer) == {"default": LINE}
    cache_dit.refresh_context(transformer, plan=plan_of(mask="101010"))
    denoise(transformer)
    assert lines(transformer) == {"default": "FCFCFC"}
    cache_dit.refresh_context(
        transformer, policy="dbcache", Fn_compute_blocks=1, max_warmup_steps=STEPS, residual_diff_threshold=0.5
    )
    denoise(transformer)
    assert lines(transformer) == {"default": "F" * STEPS}
    assert cache_dit.summary(transformer, logging=False)[0].plan is None


def test_a_session_may_have_a_plan_of_its_own() -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), plan_of())
    expected = denoise(transformer)
    handle = cache_dit.session("other").update(plan=plan_of(mask="100100"))
    with handle:
        denoise(transformer)
    assert lines(transformer) == {"default": "FCCFCC"}
    assert same(denoise(transformer), expected)
    with cache_dit.session("third").update(DBCacheConfig().reset(plan=plan_of(mask="111111"))) as third:
        third.update(policy="dbcache", Fn_compute_blocks=1, residual_diff_threshold=1.0, max_warmup_steps=1)
        denoise(transformer)
    assert lines(transformer) == {"default": "FCCCCC"}


def test_the_number_of_steps_of_a_bare_transformer_is_the_plans() -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), plan_of())
    denoise(transformer)
    first = state_of(transformer).latest
    denoise(transformer)
    assert state_of(transformer).latest is not first
    assert lines(transformer) == {"default": LINE}


def test_a_plan_is_for_all_chains_of_a_transformer() -> None:
    model = Toy("0", (2, 2))
    changed = [ParamsModifier(), ParamsModifier(DBCacheConfig().reset(plan=plan_of()))]
    with pytest.raises(ConfigError, match="plan concerns the transformer as a whole"):
        cache_dit.enable_cache(model.adapter(), masked(), params_modifiers=changed)


# -- guidance


CALLS = ["cu"] * STEPS
TIMES = [1 - step / STEPS for step in range(STEPS)]


def guided(plan: Plan, **options: Any) -> Guided:
    """A guided toy with a plan on."""
    model = Guided("0")
    cache_dit.enable_cache(model.adapter(), DBCacheConfig(plan=plan, **options))
    return model


def test_branches_may_have_different_masks() -> None:
    model = guided(plan_of(masks={"c": "110101", "u": "100100"}, mask="110101"))
    guide(model, CALLS, named=True, timesteps=TIMES)
    assert lines(model) == {"c": "FFCFCF", "u": "FCCFCC"}


def test_a_star_is_for_every_branch_without_a_schedule_of_its_own() -> None:
    model = guided(plan_of(masks={"c": "110101", "*": "100100"}, mask="110101"))
    guide(model, ["cux"] * STEPS, named=True, timesteps=TIMES)
    assert lines(model) == {"c": "FFCFCF", "u": "FCCFCC", "x": "FCCFCC"}


def test_unnamed_branches_that_take_turns_are_cond_and_uncond() -> None:
    plan = plan_of(masks={"cond": "110101", "uncond": "100100"}, mask="110101")
    model = guided(plan, enable_separate_cfg=True)
    guide(model, CALLS, named=False, timesteps=TIMES)
    assert lines(model) == {"cond": "FFCFCF", "uncond": "FCCFCC"}


class CallsTwice:
    """A pipeline that calls its transformer twice a step and gives no names."""

    def __init__(self, plan: Plan) -> None:
        self.transformer = Guided("0")
        cache_dit.enable_cache(self.transformer.adapter(pipe=self), plan)

    def __call__(self, num_inference_steps: int = STEPS) -> None:
        guide(self.transformer, CALLS, named=False, timesteps=TIMES)


def test_a_common_schedule_holds_for_unnamed_branches_that_take_turns() -> None:
    pipe = CallsTwice(plan_of(mask="110101", branches=("cond", "uncond")))
    pipe()
    assert lines(pipe.transformer) == {"cond": "FFCFCF", "uncond": "FFCFCF"}


def test_the_one_branch_of_a_run_needs_no_name_in_the_plan_or_in_the_run() -> None:
    for plan in (plan_of(branches=("cond",)), plan_of(masks={"cond": TEXT}, branches=("cond",))):
        transformer = cache_dit.enable_cache(tiny_transformer(), plan)
        denoise(transformer)
        assert lines(transformer) == {"default": LINE}
    pipe = tiny_pipeline()
    drawn(pipe, plan_of(branches=("default",)))
    assert lines(pipe.transformer) == {"cond": LINE}
    model = guided(plan_of(mask="110101", branches=("cond", "uncond")))
    with pytest.raises(ConfigError, match=r"branches=\('cond', 'uncond'\), not \('default',\)"):
        guide(model, ["c"] * STEPS, named=False, timesteps=TIMES)


def test_a_branch_that_the_plan_does_not_know_is_refused() -> None:
    model = guided(plan_of(masks={"c": "110101", "u": "100100"}, mask="110101"))
    with pytest.raises(ConfigError, match="guidance branches 'c', 'u', and knows none called 'x'"):
        guide(model, ["cx"], named=True, timesteps=TIMES[:1])


def test_a_branch_that_was_made_with_and_is_not_called_is_refused_before_anything_is_skipped() -> None:
    model = guided(plan_of(mask="100100", branches=("c", "u")))
    with pytest.raises(ConfigError, match=r"branches=\('c', 'u'\), not \('c',\)"):
        guide(model, ["c"] * STEPS, named=True, timesteps=TIMES)
    assert cache_dit.summary(model, logging=False)[0].cached_steps == []


# -- what it does not hold for


def test_all_that_is_known_and_differs_when_it_is_enabled_is_told_at_once() -> None:
    pipe = tiny_pipeline()
    plan = plan_of(model_class="WanTransformer3DModel", weights="0" * 32, dtype="bfloat16", scheduler="DDIMScheduler")
    with pytest.raises(ConfigError) as error:
        cache_dit.enable_cache(pipe, plan)
    assert state_of(pipe.transformer) is None
    told = str(error.value)
    for part in (
        "model_class='WanTransformer3DModel', not 'FluxTransformer2DModel'",
        f"weights='{'0' * 32}', not '{weights_digest(pipe.transformer)}'",
        "dtype='bfloat16', not 'float32'",
        "scheduler='DDIMScheduler', not 'FlowMatchEulerDiscreteScheduler'",
    ):
        assert part in told


def test_it_holds_where_everything_is_as_it_was_made() -> None:
    pipe = tiny_pipeline()
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    generate(pipe)
    sigmas = tuple(pipe.scheduler.sigmas.tolist())
    plan = plan_of(
        model_class=FLUX,
        weights=weights_digest(pipe.transformer),
        dtype=parameter_dtype(pipe.transformer),
        scheduler=type(scheduler).__name__,
        shift=scheduler.config.shift,
        sigmas=sigmas,
        branches=("cond",),
        resolution=16,
    )
    pipe.scheduler = scheduler
    cache_dit.enable_cache(pipe, plan)
    generate(pipe)
    assert lines(pipe) == {"cond": LINE}


@pytest.mark.parametrize(
    ("conditions", "run", "told"),
    [
        ({}, {"steps": 8}, "num_inference_steps=6, not 8"),
        ({"resolution": 16}, {"size": 12}, "resolution=16, not 36"),
        ({"resolution": 16, "sigmas": [1.0, 0.8, 0.6, 0.5, 0.3, 0.1]}, {}, r"sigmas\[1\]=0.8000, not 0.8333"),
        ({"branches": ("cond", "uncond")}, {}, r"branches=\('cond', 'uncond'\), not \('cond',\)"),
    ],
    ids=["steps", "resolution", "sigmas", "branches"],
)
def test_what_is_known_only_in_a_request_is_refused_in_it(
    conditions: dict[str, Any], run: dict[str, Any], told: str
) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of(**conditions))
    with counted(pipe.transformer) as blocks, pytest.raises(ConfigError, match=told):
        generate(pipe, **run)
    full = 1 if "branches" in conditions else 0
    assert set(blocks.values()) <= {full}
    cache_dit.enable_cache(pipe, plan_of())
    generate(pipe)
    assert lines(pipe) == {"cond": LINE}


def test_another_scheduler_or_shift_is_refused_in_the_request_that_has_it() -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe, plan_of(scheduler="FlowMatchEulerDiscreteScheduler", shift=1.0))
    generate(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.raises(ConfigError, match=r"shift=1\.0, not 3\.0"):
        generate(pipe)


def test_a_run_that_begins_within_the_schedule_has_the_steps_that_are_left() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    plan = plan_of(resolution=16, sigmas=[0.5])
    known = schedule_facts(plan, scheduler, None)
    assert (
        known
        == {"num_inference_steps": 6, "sigmas": scheduler.sigmas[4:10].tolist()}
        == schedule_facts(plan, scheduler, 10)
    )
    assert schedule_facts(plan_of(), scheduler, 10)["sigmas"] is None


def test_weights_that_change_while_it_is_on_are_refused() -> None:
    pipe = tiny_pipeline()
    cache_dit.enable_cache(pipe, plan_of(weights=weights_digest(pipe.transformer)))
    generate(pipe)
    with torch.no_grad():
        pipe.transformer.proj_out.weight.data *= 2  # as merging a LoRA does: nothing else tells
    with pytest.raises(ConfigError, match="weights="):
        generate(pipe)


def test_options_that_decide_beside_it_are_refused() -> None:
    plan = plan_of()
    for options in (
        {"Fn_compute_blocks": 1},
        {"Bn_compute_blocks": 1},
        {"steps_computation_mask": MASK},
        {"residual_diff_threshold": 0.2},
        {"policy": "magcache"},
        {"max_warmup_steps": 4},
        {"max_continuous_cached_steps": 2},
        {"decision": "sample"},
        {"force_refresh_step_hint": 3},
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}=.* and plan exclude each other"):
            DBCacheConfig(plan=plan, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="policy='plan' decides for whole steps"):
        DBPruneConfig(plan=plan)
    with pytest.raises(ConfigError, match="calibrator_config and plan exclude each other"):
        cache_dit.enable_cache(tiny_transformer(), DBCacheConfig(plan=plan), TaylorSeerCalibratorConfig())
    with pytest.raises(ConfigError, match="num_inference_steps=6, not 9"):
        cache_dit.enable_cache(tiny_transformer(), DBCacheConfig(plan=plan, num_inference_steps=9))


def test_without_a_chosen_point_or_a_plan_it_is_refused() -> None:
    plan = plan_of()
    open_plan = Plan(plan.scope, plan.points)
    for config, told in (
        (open_plan, r"no point of the plan is chosen, and there are 1: pass plan.select\(target_psnr=35\)"),
        (DBCacheConfig(policy="plan", Fn_compute_blocks=1), "policy='plan' needs a plan"),
        ("nowhere.json", "plan='nowhere.json' cannot be read"),
    ):
        with pytest.raises(ConfigError, match=told):
            cache_dit.enable_cache(tiny_transformer(), config)
    with pytest.raises(ConfigError, match=r"'plan_guard' is no option, .*plan\.promise\(level\)"):
        cache_dit.enable_cache(tiny_transformer(), plan, plan_guard=0.9)
    with pytest.raises(ConfigError, match="plan=3 is not valid: expected a Plan"):
        DBCacheConfig(plan=3)


# -- what happened


def test_the_summary_names_the_plan_its_quality_and_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of())
    generate(pipe)
    stats = cache_dit.summary(pipe)[0]
    assert stats.plan is not None
    assert (stats.plan.name, stats.plan.kept, stats.plan.unplanned) == ("3of6", True, {"cond": {}})
    assert stats.plan.quality is not None
    assert stats.plan.quality.mean == 40.0
    assert stats.ideal_speedup == stats.plan.ideal_speedup == 2.0
    told = (
        "plan 3of6: 40.0 dB, mean of 8 pictures of the search (5th percentile 36.0), ideal speed-up 2.00; every step "
        "was done as planned"
    )
    assert told in capsys.readouterr().out
    assert cache_dit.strify(pipe) == "DBCache_PLAN3of6_CFG0_S3"


def test_an_adapted_plan_has_no_quality_in_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan_of(mask="1101001010").adapt(STEPS))
    generate(pipe)
    stats = cache_dit.summary(pipe)[0]
    assert stats.plan is not None and stats.plan.quality is None
    printed = capsys.readouterr().out
    assert "plan 5of6: quality unknown: an estimate, ideal speed-up 1.20" in printed
    assert " dB" not in printed


@pytest.mark.parametrize(("full_steps", "noted"), [(3, True), (2, False)])
def test_the_summary_has_the_note_of_the_chosen_point_alone(
    full_steps: int, noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    points = (
        PlanPoint(3, {"*": BranchSchedule(TEXT)}, note="too few prompts"),
        PlanPoint(2, {"*": BranchSchedule("100100")}),
    )
    plan = Plan(PlanScope(num_inference_steps=STEPS), points, note="for all")
    pipe = cache_dit.enable_cache(tiny_pipeline(), plan.select(full_steps=full_steps))
    generate(pipe)
    cache_dit.summary(pipe.transformer)
    printed = capsys.readouterr().out
    assert ("too few prompts" in printed) is noted
    assert "for all" in printed


def test_a_step_that_the_engine_had_to_compute_is_told(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A conditioning tensor of another shape in the middle of a run is a miss, also for a plan."""
    transformer = cache_dit.enable_cache(tiny_transformer(), plan_of())
    longer = {"encoder_hidden_states": torch.randn(1, 5, 32), "txt_ids": torch.zeros(5, 3)}
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for step in range(STEPS):
            given = flux_inputs() | (longer if step == 2 else {})
            transformer(**given, timestep=torch.tensor([1 - step / STEPS]), return_dict=False)
    stats = cache_dit.summary(transformer)[0]
    assert stats.plan is not None
    assert not stats.plan.kept
    assert 2 in stats.plan.unplanned["default"]
    assert "not as planned: default: steps 2 (" in capsys.readouterr().out
    assert "the plan was not followed: default computed step 2 (" in caplog.text


def test_a_plan_that_computes_every_step_says_so() -> None:
    transformer = cache_dit.enable_cache(tiny_transformer(), plan_of(mask="111111"))
    denoise(transformer)
    stats = cache_dit.summary(transformer, logging=False)[0]
    assert stats.reason == "The plan computes 5 of 6 steps."
    assert stats.peak_bytes == 0


# -- the digest of weights


def test_the_digest_is_the_same_with_a_cache_compiled_copied_and_reloaded(tmp_path: Path) -> None:
    transformer = tiny_transformer()
    digest = weights_digest(transformer)
    transformer.save_pretrained(tmp_path)
    assert weights_digest(type(transformer).from_pretrained(tmp_path)) == digest
    assert weights_digest(torch.compile(transformer)) == digest
    assert weights_digest(cache_dit.enable_cache(transformer, plan_of())) == digest
    cache_dit.disable_cache(transformer)
    assert weights_digest(transformer) == digest
    assert weights_digest(tiny_transformer(1)) != digest


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.proj_out.weight.data.neg_(),
        lambda model: setattr(model, "extra", torch.nn.Linear(2, 2)),
        lambda model: _swap(model.transformer_blocks[0].norm1.linear, model.transformer_blocks[1].norm1.linear),
    ],
    ids=["dtype", "values", "a part more", "two parts swapped"],
)
def test_the_digest_changes_with_the_weights(change: Callable[[Any], Any]) -> None:
    transformer = tiny_transformer()
    digest = weights_digest(transformer)
    change(transformer)
    assert weights_digest(transformer) != digest


def _swap(first: torch.nn.Linear, second: torch.nn.Linear) -> None:
    first.weight, second.weight = second.weight, first.weight


def test_a_lora_changes_the_digest() -> None:
    peft = pytest.importorskip("peft")
    transformer = tiny_transformer()
    digest = weights_digest(transformer)
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights="gaussian"))
    assert weights_digest(transformer) != digest


def test_weights_without_values_have_no_digest() -> None:
    assert weights_digest(tiny_transformer().to("meta")) is None
