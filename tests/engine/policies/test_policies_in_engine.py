"""Policies on real models: what they decide is what the papers' formulas say, worked out here by hand in float64."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.engine.policies import registry as policies
from cache_dit.engine.policies.budget import TeaCachePolicy
from cache_dit.engine.policies.calibration import PolicyCalibration
from cache_dit.engine.state import measure
from cache_dit.errors import ConfigError
from tests.kit.equality import same
from tests.kit.tiny_flux import (
    generate,
    generate_qwen,
    generate_sd3,
    generate_video,
    tiny_pipeline,
    tiny_qwen_pipeline,
    tiny_sd3_pipeline,
    tiny_wan_pipeline,
)
from tests.kit.tiny_models import inputs, tiny
from tests.kit.toys import Toy, line, lines, stream_inputs

#: How far the latent has gone at each step: large and small strides, so that diffs differ.
PATH = [0.0, 0.3, 0.5, 0.6, 0.65, 0.7, 0.9, 0.95, 1.0, 1.3, 1.35, 1.4]
STEPS = len(PATH)

FLUX, WAN, SD3 = "FluxTransformer2DModel", "WanTransformer3DModel", "SD3Transformer2DModel"

#: Where a family's first attention is.
FIRST_ATTENTION = {
    FLUX: "transformer_blocks.0.attn",
    "QwenImageTransformer2DModel": "transformer_blocks.0.attn",
    WAN: "blocks.0.attn1",
    SD3: "transformer_blocks.0.attn",
    "PixArtTransformer2DModel": "transformer_blocks.0.attn1",
}

GAMMAS = [1.0, 0.9, 1.05, 0.98, 1.01, 1.02, 0.95, 1.0, 1.03, 0.9, 0.99, 1.01]


def given_at(name: str, step: int, *, seed: int = 0) -> dict[str, Any]:
    """What a step calls a family's transformer with; the same in every run, whatever the outputs are."""
    given = inputs(name, timestep=1 - step / STEPS)
    start = given["hidden_states"]
    way = torch.randn(start.shape, generator=torch.Generator().manual_seed(10 + seed))
    given["hidden_states"] = start + PATH[step] * way
    return given


@torch.no_grad()
def run(model: nn.Module, name: str = WAN, steps: Sequence[int] = range(STEPS), *, seed: int = 0) -> list[Tensor]:
    return [model(**given_at(name, step, seed=seed), return_dict=False)[0] for step in steps]


@contextlib.contextmanager
def called_with(model: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """The first argument of each call of a module, which an uncached model makes."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    hook = model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def relative(before: Tensor, now: Tensor) -> float:
    """relL1 in double precision."""
    return float((now.double() - before.double()).abs().mean() / before.double().abs().mean())


def by_hand(cost: Callable[[int], float], budget: float, *, warmup: int = 2, longest: float = math.inf) -> str:
    """The steps line of a policy that skips while the costs since the last computed step stay below a budget."""
    plan, spent, row = "", 0.0, 0
    for step in range(STEPS):
        if step < warmup or row >= longest or not spent + cost(step) < budget:
            plan, spent, row = plan + "F", 0.0, 0
        else:
            plan, spent, row = plan + "C", spent + cost(step), row + 1
    return plan


def known(policy: str, name: str = WAN, **fields: Any) -> PolicyCalibration | None:
    """A calibration for a policy that needs or takes one."""
    if policy not in ("magcache", "teacache"):
        return None
    numbers = GAMMAS if policy == "magcache" else [2.0, 0.5, 0.0]
    made = {"num_inference_steps": STEPS, "scheduler": None, "branches": {"default": numbers}}
    return PolicyCalibration(policy, name, **{**made, **fields})


#: A budget for each policy that lets some of Wan's steps through and others not.
BUDGETS = {"dbcache": 0.12, "teacache": 0.2, "magcache": 0.12, "easycache": 0.25}


def asked(policy: str, name: str = WAN, **options: Any) -> DBCacheConfig:
    defaults = {
        "Fn_compute_blocks": 1,
        "max_warmup_steps": 2,
        "residual_diff_threshold": BUDGETS[policy],
        "num_inference_steps": STEPS,
    }
    return DBCacheConfig(policy=policy, policy_calibration=known(policy, name), **{**defaults, **options})


@contextlib.contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many numbers each host read of a decision brought."""
    reads: list[int] = []
    read_back = measure.read_back

    def count(values: Tensor) -> list[float]:
        reads.append(values.numel())
        return read_back(values)

    with monkeypatch.context() as patched:
        patched.setattr(measure, "read_back", count)
        yield reads


# TeaCache


@pytest.mark.parametrize("name", FIRST_ATTENTION)
@pytest.mark.parametrize("coefficients", [None, [4.0, 0.5, 0.01]], ids=["identity", "polynomial"])
def test_teacache_adds_up_the_rescaled_change_of_what_the_first_attention_gets(
    name: str, coefficients: list[float] | None
) -> None:
    model = tiny(name)
    with called_with(model, FIRST_ATTENTION[name]) as modulated:
        run(model, name)
    diffs = [0.0, *(relative(before, now) for before, now in pairwise(modulated))]
    costs = [diff if coefficients is None else 4 * diff**2 + 0.5 * diff + 0.01 for diff in diffs]
    budget = 2.1 * sum(costs) / len(costs)
    calibration = None if coefficients is None else known("teacache", name, branches={"default": coefficients})
    options = DBCacheConfig(
        policy="teacache",
        policy_calibration=calibration,
        Fn_compute_blocks=1,
        max_warmup_steps=2,
        residual_diff_threshold=budget,
        num_inference_steps=STEPS,
    )
    cache_dit.enable_cache(model, options)
    run(model, name)
    plan = line(model)
    assert plan == by_hand(costs.__getitem__, budget)
    assert {"FC", "CF"} <= {plan[i : i + 2] for i in range(STEPS)}
    measured = cache_dit.summary(model, logging=False)[0].residual_diffs
    assert list(measured.values()) == pytest.approx(diffs[2:], rel=1e-5)  # against the step before, skipped or not


def test_teacache_refuses_a_block_without_an_attention_and_nothing_has_changed() -> None:
    model = Toy("3")
    before = type(model.blocks[0])
    adapter: BlockAdapter = model.adapter()
    with pytest.raises(ConfigError, match="SoloBlock has no attention that can be recognised: pass policy='dbcache'"):
        cache_dit.enable_cache(adapter, DBCacheConfig(policy="teacache", Fn_compute_blocks=1))
    assert type(model.blocks[0]) is before
    cache_dit.enable_cache(adapter, DBCacheConfig(Fn_compute_blocks=1))
    with pytest.raises(ConfigError, match="no attention"):
        cache_dit.refresh_context(model, policy="teacache")
    assert cache_dit.summary(adapter, logging=False)[0].cache_options["cache_config"].policy == "dbcache"


def test_what_teacache_looks_at_is_itself_again_afterwards() -> None:
    model = tiny(FLUX)
    plain = type(model.transformer_blocks[0].attn)
    cache_dit.enable_cache(model, asked("teacache", FLUX))
    assert type(model.transformer_blocks[0].attn) is not plain
    cache_dit.disable_cache(model)
    assert type(model.transformer_blocks[0].attn) is plain


def test_a_policy_of_ones_own_may_look_at_the_modulated_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policies._factories, "mine", TeaCachePolicy)
    plans = []
    for policy in ("teacache", "mine"):
        model = tiny(WAN)
        cache_dit.enable_cache(model, asked("teacache", WAN).update(policy=policy))
        run(model)
        plans.append(line(model))
    assert plans[0] == plans[1]
    assert "C" in plans[0]


# EasyCache


@pytest.mark.parametrize("order", [1, 2, 3])
def test_easycache_predicts_nothing_from_a_step_that_was_not_finite(order: int) -> None:
    model, bad = Toy(), [math.nan, *[1.0] * 9]
    handle = model.blocks[2].register_forward_hook(lambda module, args, out: (out[0] * bad.pop(0), out[1]))
    options = asked("easycache", Fn_compute_blocks=0, max_warmup_steps=3, residual_diff_threshold=0.9)
    cache_dit.enable_cache(model.adapter(), options, TaylorSeerCalibratorConfig(taylorseer_order=order))
    hidden, encoder = stream_inputs(model)
    with torch.no_grad():
        outputs = [model(hidden + 0.01 * step, encoder) for step in range(8)]
    handle.remove()
    assert [step for step, output in enumerate(outputs) if not output.isfinite().all()] == [0]
    assert line(model)[-1] == "C"


@pytest.mark.parametrize("name", [WAN, FLUX, SD3])
def test_easycache_expects_of_the_output_what_the_rate_at_computed_steps_says(name: str) -> None:
    model = tiny(name)
    outputs = [output.double() for output in run(model, name)]
    latents = [given_at(name, step)["hidden_states"].double() for step in range(STEPS)]

    def by_formula(budget: float) -> str:
        plan, spent, full, rate = "", 0.0, [], 0.0
        for step in range(STEPS):
            cost = math.inf
            if step >= 2:
                cost = rate * float((latents[step] - latents[step - 1]).abs().mean() / outputs[full[-1]].abs().mean())
            if spent + cost < budget:
                plan, spent = plan + "C", spent + cost
                continue
            if full:
                moved = (latents[step] - latents[full[-1]]).abs().mean()
                rate = float((outputs[step] - outputs[full[-1]]).abs().mean() / moved)
            plan, spent, full = plan + "F", 0.0, [*full, step]
        return plan

    budget = next(budget for budget in (0.5**power for power in range(9)) if "FC" in by_formula(budget)[-6:])
    cache_dit.enable_cache(model, asked("easycache", name, Fn_compute_blocks=0, residual_diff_threshold=budget))
    run(model, name)
    assert line(model) == by_formula(budget)
    assert "CF" in line(model)


# MagCache


def magnitudes_by_hand(name: str, front: int) -> list[float]:
    """The mean over the tokens of what the blocks after the first few add, at each step of an uncached run."""
    model = tiny(name)
    blocks: Any = model.blocks if name == WAN else model.transformer_blocks
    seen: list[Tensor] = []
    last = blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    path = f"{'blocks' if name == WAN else 'transformer_blocks'}.{front}"
    with called_with(model, path) as entered:
        run(model, name)
    last.remove()
    after = [output[1] if isinstance(output, tuple) else output for output in seen]
    added = [(out.double() - into.double()) for out, into in zip(after, entered, strict=True)]
    return [float(residual.norm(dim=-1).mean()) for residual in added]


@pytest.mark.parametrize(("name", "front"), [(WAN, 1), (WAN, 0), (SD3, 2)])
def test_magcache_is_a_plan_known_beforehand_and_reads_nothing_back(
    name: str, front: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = magnitudes_by_hand(name, front)
    ratios = [1.0, *(now / before for before, now in pairwise(norms))]
    model = tiny(name)
    cache_dit.enable_cache(model, DBCacheConfig(Fn_compute_blocks=max(front, 1)))
    if front == 0:
        cache_dit.enable_cache(model, asked("magcache", name, Fn_compute_blocks=0))
    calibration = cache_dit.calibrate(model, lambda: run(model, name), policy="magcache")
    assert calibration.values() == pytest.approx(ratios, rel=1e-4)

    def plan_by_hand(budget: float) -> str:
        plan, spent, last = "", 0.0, 0
        for step in range(STEPS):
            error = abs(1 - math.prod(ratios[last + 1 : step + 1]))
            if step < 2 or spent + error > budget or step - last > 3:
                plan, spent, last = plan + "F", 0.0, step
            else:
                plan, spent = plan + "C", spent + error
        return plan

    budget = next(b for b in (2.0**-power for power in range(15)) if "FC" in plan_by_hand(b)[-6:])
    plan = plan_by_hand(budget)
    options = asked("magcache", name, Fn_compute_blocks=front, residual_diff_threshold=budget)
    options = options.update(max_continuous_cached_steps=3, policy_calibration=calibration)
    cache_dit.enable_cache(model, options)
    with counted_reads(monkeypatch) as reads:
        outputs = run(model, name)
    assert line(model) == plan
    assert not reads
    mask = [int(letter == "F") for letter in plan]
    static = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    cache_dit.enable_cache(model, DBCacheConfig(Fn_compute_blocks=front, num_inference_steps=STEPS, **static))
    assert same(run(model, name), outputs)


# Every policy


@pytest.mark.parametrize("policy", BUDGETS)
def test_a_decision_costs_one_host_read_at_most(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(WAN)
    cache_dit.enable_cache(model, asked(policy))
    with counted_reads(monkeypatch) as reads:
        for step in range(STEPS):
            before = len(reads)
            run(model, steps=[step])
            assert len(reads) - before == (policy != "magcache" and step >= 2)
    assert {"F", "C"} == set(line(model)[2:])


@pytest.mark.parametrize("policy", BUDGETS)
def test_a_static_mask_decides_in_place_of_a_policy_and_nothing_is_read(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(WAN)
    mask = [1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    options = asked(policy, steps_computation_mask=mask, steps_computation_policy="static", residual_diff_threshold=0)
    cache_dit.enable_cache(model, options)
    with counted_reads(monkeypatch) as reads:
        run(model)
    assert line(model) == "FFCCFCCCFCCF"
    assert not reads


@pytest.mark.parametrize("policy", BUDGETS)
def test_limits_hold_for_every_policy(policy: str) -> None:
    model = tiny(WAN)
    generous = {"residual_diff_threshold": 50.0, "max_continuous_cached_steps": 2}
    cache_dit.enable_cache(model, asked(policy, **generous))
    run(model)
    assert line(model) == "FFCCFCCFCCFC"
    cache_dit.enable_cache(model, asked(policy, **generous, max_cached_steps=3))
    run(model)
    assert line(model) == "FFCCFCFFFFFF"
    cache_dit.enable_cache(model, asked(policy, **generous, steps_computation_mask=[1, 0, 1, 0, 0, 0, *[1] * 6]))
    run(model)
    assert line(model) == ("FFFCCFFFFFFF" if policy == "easycache" else "FCFCCFFFFFFF")  # a rate takes two steps


@pytest.mark.parametrize("policy", BUDGETS)
@pytest.mark.parametrize("calibrator", [None, TaylorSeerCalibratorConfig()], ids=["reuse", "taylor"])
def test_branches_decide_for_themselves_and_give_what_they_give_alone(policy: str, calibrator: Any) -> None:
    model: Any = tiny(WAN)
    alone = {}
    for seed, branch in enumerate(("cond", "uncond")):
        cache_dit.enable_cache(model, asked(policy), calibrator)
        alone[branch] = run(model, seed=seed), line(model)
    cache_dit.enable_cache(model, asked(policy), calibrator)
    together: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    for step in range(STEPS):
        for seed, branch in enumerate(together):
            with model.cache_context(branch):
                together[branch] += run(model, steps=[step], seed=seed)
    for branch, (outputs, plan) in alone.items():
        assert lines(model)[branch] == plan
        assert same(together[branch], outputs)


@pytest.mark.parametrize("policy", BUDGETS)
def test_runs_that_take_turns_give_what_they_give_alone(policy: str) -> None:
    model = tiny(WAN)
    cache_dit.enable_cache(model, asked(policy), TaylorSeerCalibratorConfig())
    alone = [run(model, seed=seed) for seed in (0, 1)]
    outputs: list[list[Tensor]] = [[], []]
    for step in range(STEPS):
        for seed in (0, 1):
            with cache_dit.session(seed):
                outputs[seed] += run(model, steps=[step], seed=seed)
    assert same(outputs[0], alone[0])
    assert same(outputs[1], alone[1])


@pytest.mark.parametrize("policy", BUDGETS)
@pytest.mark.parametrize("within", [True, False], ids=["within a step", "between two"])
def test_a_run_that_was_given_up_leaves_no_trace_in_the_next(policy: str, within: bool) -> None:
    model: Any = tiny(WAN)
    cache_dit.enable_cache(model, asked(policy), TaylorSeerCalibratorConfig())
    expected, plan = run(model), line(model)
    run(model, steps=range(4), seed=1)
    if within:
        hook = model.blocks[0].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model, steps=[4], seed=1)
        hook.remove()
    assert same(run(model), expected)
    assert line(model) == plan


@pytest.mark.parametrize("policy", BUDGETS)
def test_predictions_do_not_change_decisions_that_the_input_alone_makes(policy: str) -> None:
    model = tiny(WAN)
    plans = set()
    for calibrator in (None, TaylorSeerCalibratorConfig(), TaylorSeerCalibratorConfig(taylorseer_order=2)):
        cache_dit.enable_cache(model, asked(policy), calibrator)
        run(model)
        plans.add(line(model))
    assert len(plans) == 1


@pytest.mark.parametrize(
    "policy", ["teacache", *(pytest.param(policy, marks=pytest.mark.slow) for policy in ("dbcache", "easycache"))]
)
def test_compiled_blocks_decide_as_plain_ones_and_compile_no_more_after_the_first_run(policy: str) -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    model: Any = tiny(FLUX)
    cache_dit.enable_cache(model, asked(policy, FLUX))
    expected, plan = run(model, FLUX), line(model)
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert same(run(model, FLUX), expected)
    counters.clear()
    assert same(run(model, FLUX), expected)
    assert line(model) == plan
    assert counters["stats"]["unique_graphs"] == 0
    torch.compiler.reset()


PIPELINES: dict[str, tuple[Callable[[], Any], Callable[..., Tensor]]] = {
    "flux": (tiny_pipeline, generate),
    "qwen": (tiny_qwen_pipeline, generate_qwen),
    "wan": (tiny_wan_pipeline, generate_video),
    "sd3": (tiny_sd3_pipeline, generate_sd3),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("policy", BUDGETS)
def test_in_a_pipeline_each_call_begins_anew(pipeline: str, policy: str) -> None:
    make, call = PIPELINES[pipeline]
    pipe = make()
    options: dict[str, Any] = {"max_warmup_steps": 2, "residual_diff_threshold": 10.0, "Fn_compute_blocks": 1}
    calibration = None
    if policy in ("magcache", "teacache"):
        calibration = cache_dit.calibrate(pipe, lambda: call(pipe), policy=policy, degree=1)
        assert calibration.scheduler == type(pipe.scheduler).__name__
        assert calibration.num_inference_steps == 6
    uncached = call(pipe)
    cache_dit.enable_cache(pipe, DBCacheConfig(policy=policy, policy_calibration=calibration, **options))
    first, plans = call(pipe), lines(pipe)
    assert set(plans.values()) == {"FFCCCC"}
    assert set(plans) == ({"cond", "uncond"} if pipeline in ("qwen", "wan") else set(plans))
    assert torch.equal(call(pipe), first)
    assert lines(pipe) == plans
    assert not torch.equal(first, uncached)
    cache_dit.disable_cache(pipe)
    assert torch.equal(call(pipe), uncached)


# Warm-up, refreshes and the options of guidance


@torch.no_grad()
def frozen(model: Any, name: str, steps: int, *branches: str) -> None:
    """A run whose inputs never change: only rules compute a step."""
    for _ in range(steps):
        for branch in branches or (None,):
            with contextlib.nullcontext() if branch is None else model.cache_context(branch):
                model(**inputs(name))


@pytest.mark.parametrize(
    ("options", "steps", "plan"),
    [
        ({"max_warmup_steps": 2}, 6, "FFCCCC"),
        ({"max_warmup_steps": 8, "warmup_interval": 2}, 12, "FCFCFCFCCCCC"),
        ({"max_warmup_steps": 7, "warmup_interval": 3}, 12, "FCCFCCFCCCCC"),
        ({"max_warmup_steps": 2, "max_cached_steps": 3}, 8, "FFCCCFFF"),
        ({"max_warmup_steps": 0}, 5, "FCCCC"),
        ({"max_warmup_steps": 2, "max_continuous_cached_steps": 1}, 8, "FFCFCFCF"),
        ({"max_warmup_steps": 8, "steps_computation_mask": [1, 1, 0, 0, 1, 0, 0, 1, 1, 1]}, 10, "FFCCFCCFFF"),
        ({"max_warmup_steps": 2, "force_refresh_step_hint": 4}, 10, "FFCCFFCCCC"),
        ({"max_warmup_steps": 1, "force_refresh_step_hint": 4}, 10, "FCCCFCCCCC"),
        (
            {"max_warmup_steps": 2, "force_refresh_step_hint": 4, "force_refresh_step_policy": "repeat"},
            10,
            "FFCCFFCCFF",
        ),
        ({"max_warmup_steps": 1, "force_refresh_step_hint": 10}, 10, "FCCCCCCCCC"),
        (
            {"max_warmup_steps": 1, "force_refresh_step_hint": 4, "steps_computation_mask": [1, 0, 1, 0, 0]},
            9,
            "FCFCFCFCC",
        ),
    ],
)
def test_what_the_options_say_of_steps(options: dict[str, Any], steps: int, plan: str) -> None:
    model = tiny(SD3)
    fields = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.1, "num_inference_steps": steps, **options}
    cache_dit.enable_cache(model, DBCacheConfig(**fields))
    for _ in range(2):
        frozen(model, SD3, steps)
        assert line(model) == plan


def test_a_refresh_counts_for_all_branches() -> None:
    model: Any = tiny(FLUX)
    options = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=1, force_refresh_step_hint=3, residual_diff_threshold=0.1
    )
    cache_dit.enable_cache(model, options)
    frozen(model, FLUX, 6, "cond", "uncond")
    assert lines(model) == {"cond": "FCCFCC", "uncond": "FCCFCC"}


@pytest.mark.parametrize("policy", ["dbcache", "teacache", "easycache"])
@pytest.mark.parametrize("separate", [True, False])
def test_a_diff_that_branches_share_is_measured_once(
    policy: str, separate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny(WAN)
    cache_dit.enable_cache(model, asked(policy, cfg_diff_compute_separate=separate))
    with counted_reads(monkeypatch) as reads:
        for step in range(STEPS):
            for seed, branch in enumerate(("cond", "uncond")):
                with model.cache_context(branch):
                    run(model, steps=[step], seed=seed)
    plans = lines(model)
    assert len(reads) == (STEPS - 2) * (2 if separate else 1)
    assert (plans["cond"] == plans["uncond"]) or separate


def test_the_unconditional_branch_may_come_first() -> None:
    model = tiny(WAN)
    options = asked("dbcache", enable_separate_cfg=True, cfg_compute_first=True, cfg_diff_compute_separate=False)
    cache_dit.enable_cache(model, options)
    for step in range(STEPS):
        run(model, steps=[step], seed=1)
        run(model, steps=[step], seed=0)
    stats = cache_dit.summary(model, logging=False)[0]
    assert list(stats.steps_line) == ["uncond", "cond"]
    assert stats.steps_line["cond"] == stats.steps_line["uncond"]
