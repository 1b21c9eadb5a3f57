"""Handles: what ``cache_dit.session`` gives, and what can be done with it while its request runs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit import (
    BlockAdapter,
    ConfigError,
    DBCacheConfig,
    DBPruneConfig,
    ForwardPattern,
    NewtonCalibratorConfig,
    ParamsModifier,
    PolicyCalibration,
    TaylorSeerCalibratorConfig,
)
from cache_dit.engine.forward.conditioning import ConditioningMonitor
from cache_dit.engine.sessions.pool import SessionPool
from cache_dit.engine.sessions.request import current_request
from cache_dit.engine.sessions.session import Session
from cache_dit.engine.state.history import History
from cache_dit.engine.subclass import state_of
from tests.kit.equality import same
from tests.kit.threads import in_threads
from tests.kit.toys import Toy, denoise, dynamic, line, lines, loop, static, stream_inputs
from tests.kit.walks import Walk, Walked, nbytes, walked

STEPS = 8
PLAN = "FFCCFCCF"
OTHER = "FCCFCCFF"
TAYLOR = TaylorSeerCalibratorConfig()
PRUNE = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5)


def mask(plan: str) -> list[int]:
    """A plan as an option."""
    return [int(letter == "F") for letter in plan]


def alone(config: Any, calibrator: Any = TAYLOR, **walk: Any) -> list[Tensor]:
    """What a walk gives on a model of its own."""
    return Walk(walked(config, calibrator), **walk).go()


def uncached(**walk: Any) -> list[Tensor]:
    """What it gives without a cache."""
    return Walk(walked(None), **walk).go()


# -- entering and leaving


def test_a_handle_may_be_entered_again_and_again() -> None:
    model = walked(static(PLAN), TAYLOR)
    walk = Walk(model, cache_dit.session("a"))  # each step enters and leaves it
    assert same(walk.go(), alone(static(PLAN)))
    assert line(model) == PLAN


def test_a_handle_inside_itself_is_one_request() -> None:
    model = walked(static(PLAN), TAYLOR)
    handle = cache_dit.session("a")
    walk = Walk(model, handle)
    with handle, handle:
        walk.go(3)
    with handle:
        walk.go(2)
        assert current_request() is handle
    assert current_request() is None
    assert same(walk.go(), alone(static(PLAN)))


def test_generators_that_take_turns_leave_their_own_sessions() -> None:
    def inside(name: str) -> Iterator[None]:
        with cache_dit.session(name):
            yield

    first, second = inside("first"), inside("second")
    next(first)
    next(second)
    assert current_request().key[1] == "second"
    next(first, None)
    assert current_request().key[1] == "second"
    next(second, None)
    assert current_request() is None


def test_a_handle_left_in_another_context_than_it_was_entered_in_takes_no_other_s_place() -> None:
    entered, other = cache_dit.session("a"), cache_dit.session("b")
    contextvars.copy_context().run(entered.__enter__)
    with other:
        entered.__exit__(None, None, None)
        assert current_request() is other


def test_a_request_may_go_from_thread_to_thread() -> None:
    model = walked(static(PLAN), TAYLOR)
    walk = Walk(model, cache_dit.session("a"))
    for _ in range(STEPS):
        thread = threading.Thread(target=walk.step)
        thread.start()
        thread.join()
    assert same(walk.outputs, alone(static(PLAN)))
    assert len(state_of(model).sessions) == 1


def test_one_handle_in_several_threads_and_tasks_at_once_selects_its_request_in_each() -> None:
    handle, barrier = cache_dit.session("a"), threading.Barrier(3)
    seen: list[bool] = []

    def in_thread() -> None:
        with handle:
            barrier.wait()
            seen.append(current_request() is handle)
            barrier.wait()
        seen.append(current_request() is None)

    async def task() -> None:
        with handle:
            await asyncio.sleep(0)
            seen.append(current_request() is handle)
        seen.append(current_request() is None)

    async def tasks() -> None:
        await asyncio.gather(task(), task())

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(in_thread) for _ in range(3)]:
            done.result()
    asyncio.run(tasks())
    assert seen == [True] * 10


def test_a_handle_closed_inside_its_own_block_begins_anew() -> None:
    model = walked(static(PLAN), TAYLOR)
    handle = cache_dit.session("a").update(residual_diff_threshold=0.3)
    with handle:
        Walk(model).go(5)
        handle.close()
        assert nbytes(model) == 0
        assert not state_of(model).sessions
        again = Walk(model, seed=3)
        assert same(again.go(), alone(static(PLAN), seed=3))
    assert line(model) == PLAN
    handle.close()
    handle.close()
    assert nbytes(model) == 0


def test_a_handle_that_was_never_entered_closes_nothing() -> None:
    model = walked(static(PLAN))
    Walk(model, cache_dit.session("a")).go(2)
    cache_dit.session("a").close()
    assert len(state_of(model).sessions) == 1


def test_a_kept_handle_keeps_no_model_alive() -> None:
    handle = cache_dit.session("a")
    for _ in range(3):
        model = walked(static(PLAN))
        Walk(model, handle).go(3)
        remains = [weakref.ref(model), weakref.ref(model.blocks[1]), weakref.ref(state_of(model))]
        del model
        gc.collect()
        assert [one() for one in remains] == [None, None, None]
    handle.close()
    assert len(handle._seen) == 0


# -- several handles of one name


def test_two_handles_of_one_name_are_one_request() -> None:
    model = walked(static(PLAN), TAYLOR)
    walk = Walk(model, cache_dit.session("a"))
    walk.go(3)
    walk.handle = cache_dit.session("a")
    assert same(walk.go(), alone(static(PLAN)))
    assert line(model) == PLAN


def test_of_two_handles_of_one_name_the_one_with_options_that_was_used_last_decides() -> None:
    model = walked(static("FFFFFFFF"), TAYLOR)
    eager = cache_dit.session("a").update(steps_computation_mask=mask("FFCCCCCC"))
    careful = cache_dit.session("a").update(steps_computation_mask=mask("FFFFFFCF"))
    plain = cache_dit.session("a")
    walk = Walk(model)
    for handle in (eager, careful, eager, plain, careful, plain, careful, eager):
        walk.handle = handle
        walk.step()
    #       eager careful eager plain careful plain careful eager
    assert line(model) == "FFCCFFCC"


# -- switching it off


@pytest.mark.parametrize("config", [static(PLAN), dynamic(), dynamic(decision="sample"), PRUNE], ids=str)
def test_a_disabled_request_gives_what_there_is_without_a_cache(config: Any) -> None:
    model = walked(config, TAYLOR)
    handle = cache_dit.session("a")
    handle.enabled = False
    walk = Walk(model, handle)
    assert same(walk.go(), uncached())
    assert nbytes(model) == 0
    (session,) = state_of(model).sessions.values()
    assert session.clock.step == STEPS - 1


@pytest.mark.parametrize("off", [range(0, 3), range(2, 4), range(3, 6), range(6, 8)], ids=str)
def test_steps_in_which_a_request_is_disabled_are_plain_and_counted(off: range) -> None:
    model = walked(static("FFCCCCCC"), TAYLOR)
    handle = cache_dit.session("a")
    walk, plain = Walk(model, handle), walked(None)
    for step in range(STEPS):
        handle.enabled = step not in off
        hidden = walk.hidden
        walk.step()
        if step in off:
            with torch.no_grad():
                expected = plain(hidden, walk.texts["cond"], torch.tensor(walk.timesteps[step]))
            assert torch.equal(walk.outputs[-1], expected)
            assert nbytes(model) == 0
    expected_line = ["-" if step in off else "FFCCCCCC"[step] for step in range(STEPS)]
    if off.stop < STEPS:
        expected_line[off.stop] = "F"  # nothing was kept to predict it from
    assert line(model) == "".join(expected_line).rstrip("-")


def test_one_request_is_disabled_and_the_next_on_the_same_handle_is_not() -> None:
    model = walked(static(PLAN, num_inference_steps=STEPS), TAYLOR)
    handle = cache_dit.session("a")
    for enabled in (True, False, True):
        handle.enabled = enabled
        walk = Walk(model, handle)
        assert same(walk.go(), alone(static(PLAN)) if enabled else uncached())


def test_a_disabled_request_beside_another_one_disturbs_nothing() -> None:
    model = walked(dynamic(), TAYLOR)
    off = cache_dit.session("off")
    off.enabled = False
    first, second = Walk(model, cache_dit.session("on")), Walk(model, off, seed=4)
    for _ in range(STEPS):
        first.step()
        second.step()
    assert same(first.outputs, alone(dynamic()))
    assert same(second.outputs, uncached(seed=4))


def test_a_disabled_call_inside_a_cached_forward_is_plain() -> None:
    model, plain = walked(static(PLAN)), walked(None)
    off, previews = cache_dit.session("preview"), []
    off.enabled = False
    other = Walk(model, seed=6)

    def preview(module: Any, args: Any) -> None:
        if current_request() is not off:
            with off:
                previews.append(model(other.hidden, other.texts["cond"], torch.tensor(0.5)))

    expected = alone(static(PLAN), None)
    hook = model.blocks[0].register_forward_pre_hook(preview)
    outputs = Walk(model, cache_dit.session("a")).go()
    hook.remove()
    assert same(outputs, expected)
    with torch.no_grad():
        assert same(previews, [plain(other.hidden, other.texts["cond"], torch.tensor(0.5))] * STEPS)


@pytest.mark.parametrize("value", [None, 1, "no"])
def test_enabled_is_true_or_false(value: Any) -> None:
    handle = cache_dit.session("a")
    with pytest.raises(ConfigError, match="expected True or False"):
        handle.enabled = value
    assert handle.enabled


# -- other options for one request


@pytest.mark.parametrize("again", [1, 2], ids=["new", "after another run"])
def test_options_given_before_the_first_step_are_those_of_the_request(again: int) -> None:
    model = walked(static(PLAN), TAYLOR)
    other = cache_dit.session("other").update(steps_computation_mask=mask(OTHER))
    for _ in range(again):
        assert same(Walk(model, other).go(), alone(static(OTHER)))
        assert line(model) == OTHER
        other.close()
    assert same(Walk(model).go(), alone(static(PLAN)))
    assert line(model) == PLAN


@pytest.mark.parametrize("at", range(1, STEPS))
def test_options_given_between_steps_count_from_the_next_step_on(at: int) -> None:
    model = walked(static(PLAN), TAYLOR)
    handle = cache_dit.session("a")
    walk = Walk(model, handle)
    walk.go(at)
    handle.update(steps_computation_mask=mask(OTHER))
    walk.go()
    assert line(model) == PLAN[:at] + OTHER[at:]
    expected = PLAN[:at] + OTHER[at:]
    assert same(walk.outputs, alone(static(expected)))  # a step that was done counts, and so does what it left


def test_options_given_between_the_branches_of_a_step_wait_for_the_next_step() -> None:
    model = walked(static(PLAN), TAYLOR)
    handle = cache_dit.session("a")
    walk = Walk(model, handle, branches=("cond", "uncond"), named=True)
    walk.go(2)
    original = model.cache_context

    def between(name: str) -> Any:
        if walk.at == 2 and name == "uncond":
            handle.update(steps_computation_mask=mask("FFFFFFFF"))
        return original(name)

    model.cache_context = between
    walk.go()
    assert lines(model) == {"cond": "FFCFFFFF", "uncond": "FFCFFFFF"}


def test_updates_add_up() -> None:
    model = walked(static("F" * STEPS), None)
    handle = cache_dit.session("a").update(steps_computation_mask=mask(PLAN))
    handle.update(calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2))
    handle.update(calibrator_config=TaylorSeerCalibratorConfig().reset(calibrator_cache_type="hidden_states"))
    assert handle.update(Bn_compute_blocks=1) is handle
    expected = TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type="hidden_states")
    assert same(Walk(model, handle).go(), alone(static(PLAN, Bn_compute_blocks=1), expected))


CHANGES: dict[str, tuple[Any, Any, dict[str, Any], Any, Any]] = {
    # what is on, what the handle is given, what a model of its own has
    "Fn": (static(PLAN), None, {"Fn_compute_blocks": 2}, static(PLAN, Fn_compute_blocks=2), None),
    "Fn 0": (static(PLAN), None, {"Fn_compute_blocks": 0}, static(PLAN, Fn_compute_blocks=0), None),
    "Bn": (static(PLAN), None, {"Bn_compute_blocks": 2}, static(PLAN, Bn_compute_blocks=2), None),
    "order": (static(PLAN), TAYLOR, {"enable_taylorseer": True, "taylorseer_order": 2}, static(PLAN),
              TaylorSeerCalibratorConfig(taylorseer_order=2)),
    "predictor": (static(PLAN), TAYLOR, {"calibrator_config": NewtonCalibratorConfig()}, static(PLAN),
                  NewtonCalibratorConfig()),
    "a predictor": (static(PLAN), None, {"calibrator_config": TAYLOR}, static(PLAN), TAYLOR),
    "no predictor": (static(PLAN), TAYLOR,
                     {"calibrator_config": TaylorSeerCalibratorConfig(enable_calibrator=False,
                                                                       enable_encoder_calibrator=False)},
                     static(PLAN), None),
    "coordinate": (static(PLAN), TAYLOR, {"calibrator_config": TaylorSeerCalibratorConfig(coordinate="timestep")},
                   static(PLAN), TaylorSeerCalibratorConfig(coordinate="timestep")),
    "threshold": (dynamic(residual_diff_threshold=0.01), TAYLOR, {"residual_diff_threshold": 0.5}, dynamic(), TAYLOR),
    "static to measured": (static(PLAN), TAYLOR, {"cache_config": dynamic(steps_computation_policy="dynamic",
                                                                           steps_computation_mask=[1] + [0] * 7)},
                           dynamic(steps_computation_mask=[1] + [0] * 7), TAYLOR),
    "policy easycache": (dynamic(), None, {"policy": "easycache", "residual_diff_threshold": 0.2},
                         dynamic(policy="easycache", residual_diff_threshold=0.2), None),
    "policy teacache": (dynamic(), None, {"policy": "teacache", "residual_diff_threshold": 0.3},
                        dynamic(policy="teacache", residual_diff_threshold=0.3), None),
    "policy magcache": (dynamic(), None,
                        {"policy": "magcache", "policy_calibration":
                            PolicyCalibration("magcache", "Walked", STEPS, None, {"default": [1.0, 0.9] * 4})},
                        dynamic(policy="magcache", policy_calibration=PolicyCalibration(
                            "magcache", "Walked", STEPS, None, {"default": [1.0, 0.9] * 4})), None),
    "decision": (dynamic(), TAYLOR, {"decision": "sample", "residual_diff_threshold": 0.3},
                 dynamic(decision="sample", residual_diff_threshold=0.3), TAYLOR),
    "DBPrune": (dynamic(), TAYLOR, {"cache_type": "DBPrune", "residual_diff_threshold": 0.3},
                DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.3), TAYLOR),
    "kept as": (static(PLAN), TAYLOR, {"cache_dtype": "bfloat16"}, static(PLAN, cache_dtype="bfloat16"), TAYLOR),
    "hint": (static(PLAN), TAYLOR, {"force_refresh_step_hint": 3}, static(PLAN, force_refresh_step_hint=3), TAYLOR),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_any_option_can_be_another_in_one_request(change: str) -> None:
    config, calibrator, given, other, other_calibrator = CHANGES[change]
    batch = 2 if change == "decision" else 1
    model = walked(config, calibrator)
    beside = Walk(model, seed=7, batch=batch)
    handle = cache_dit.session("a").update(**given)
    walk = Walk(model, handle, batch=batch)
    for _ in range(STEPS):
        walk.step()
        beside.step()
    expected = alone(other, other_calibrator, batch=batch)
    assert same(walk.outputs, expected)
    assert same(beside.outputs, alone(config, calibrator, seed=7, batch=batch))
    assert not same(walk.outputs, alone(config, calibrator, batch=batch))
    assert not same(walk.outputs, uncached(batch=batch))


@pytest.mark.parametrize("change", CHANGES)
def test_any_option_can_change_between_steps_and_change_back(change: str) -> None:
    config, calibrator, given, _, _ = CHANGES[change]
    model = walked(config, calibrator)
    handle = cache_dit.session("a")
    walk = Walk(model, handle, steps=12)
    walk.go(3)
    handle.update(**given)
    walk.go(4)
    back = {"cache_config": config}
    if calibrator is not None or "predictor" in change:
        back["calibrator_config"] = calibrator or TaylorSeerCalibratorConfig(
            enable_calibrator=False, enable_encoder_calibrator=False
        )
    handle.update(**back)
    walk.go()
    plain = uncached(steps=12)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(walk.outputs, plain, strict=True)]
    assert max(errors) < 0.3
    (letters,) = {key.partition("[")[0]: value for key, value in lines(model).items()}.values()
    assert len(letters) == 12
    assert "-" not in letters


def test_from_dbcache_to_dbprune_and_back_the_steps_done_count() -> None:
    model = walked(dynamic(residual_diff_threshold=1e-9), None)
    handle = cache_dit.session("a")
    walk = Walk(model, handle, steps=12)
    walk.go(3)
    handle.update(PRUNE)
    walk.go(4)
    handle.update(dynamic(residual_diff_threshold=1.0, max_cached_steps=5))
    walk.go()
    assert line(model).startswith("FFFF")
    assert len(line(model)) == 12
    assert set(line(model)[3:7]) == {"F", "P"}
    cached = [letter for letter in line(model) if letter != "F"]
    assert len(cached) == 5  # those of DBPrune among them
    assert walk.done


def test_a_request_may_have_another_number_of_steps() -> None:
    model = walked(static("FCCC", num_inference_steps=4), None)
    handle = cache_dit.session("a").update(num_inference_steps=6, steps_computation_mask=mask("FCCFCC"))
    for _ in range(2):  # all steps are at one timestep: the number alone tells where a request ends
        with handle:
            denoise(model, [1.0] * 6)
        assert line(model) == "FCCFCC"
        assert nbytes(model) == 0
    denoise(model, [1.0] * 4)
    assert line(model) == "FCCC"


def test_a_request_may_get_more_steps_while_it_runs() -> None:
    model = walked(static("FCCC", num_inference_steps=4), None)
    handle = cache_dit.session("a")
    with handle:
        text = stream_inputs()[1]
        denoise(model, [1.0] * 2, text=text)
        handle.update(num_inference_steps=6, steps_computation_mask=mask("FCCFCC"))
        denoise(model, [1.0] * 4, text=text)
    assert line(model) == "FCCFCC"
    assert nbytes(model) == 0


@pytest.mark.parametrize("cfg_first", [False, True])
def test_the_calls_of_one_request_may_take_turns(cfg_first: bool) -> None:
    model = walked(static(PLAN), None)
    handle = cache_dit.session("a").update(enable_separate_cfg=True, cfg_compute_first=cfg_first)
    handle.update(cfg_diff_compute_separate=not cfg_first)
    turns = Walk(model, handle, branches=("uncond", "cond") if cfg_first else ("cond", "uncond"))
    turns.go()
    assert lines(model) == {"cond": PLAN, "uncond": PLAN}
    Walk(model).go()
    assert lines(model) == {"default": PLAN}
    named = walked(static(PLAN), None)
    assert same(turns.outputs, Walk(named, branches=turns.branches, named=True).go())


def two_chains(*modifiers: ParamsModifier) -> Toy:
    """A toy of two chains with options of their own."""
    model = Toy("0", (3, 3))
    adapter = BlockAdapter(
        transformer=model,
        blocks=[model.blocks, model.blocks_1],
        forward_pattern=[ForwardPattern.Pattern_0, ForwardPattern.Pattern_0],
        params_modifiers=list(modifiers),
    )
    cache_dit.enable_cache(adapter, static("FCFCFCFF"), TAYLOR)
    return model


def test_the_options_that_differ_from_chain_to_chain_stay_where_they_were_not_changed() -> None:
    own = ParamsModifier(cache_config=DBCacheConfig().reset(steps_computation_mask=mask(OTHER)))
    model = two_chains(ParamsModifier(), own)
    with cache_dit.session("a").update(Bn_compute_blocks=1):
        denoise(model, loop(STEPS))
    assert [line(model, chain) for chain in range(2)] == ["FCFCFCFF", OTHER]
    stats = cache_dit.summary(model, logging=False)
    assert [one.cache_options["cache_config"].Bn_compute_blocks for one in stats] == [1, 1, 1]
    with cache_dit.session("b").update(steps_computation_mask=mask(PLAN)):
        denoise(model, loop(STEPS))
    assert [line(model, chain) for chain in range(2)] == [PLAN, PLAN]


def test_the_summary_names_the_options_that_the_request_had() -> None:
    model = walked(static(PLAN), None)
    handle = cache_dit.session("a").update(Bn_compute_blocks=2, calibrator_config=TAYLOR)
    Walk(model, handle).go()
    assert "F1B2" in cache_dit.strify(model)
    assert "T1O1" in cache_dit.strify(model)


# -- options that cannot be


@pytest.mark.parametrize(
    "given",
    [
        {"residual_diff_treshold": 0.2},
        {"Fn_compute_blocks": -1},
        {"cache_config": "fast"},
        {"calibrator_config": DBCacheConfig()},
        {"taylorseer_order": -1, "enable_taylorseer": True},
        {"steps_computation_mask": [2]},
        {"cache_type": "NONE"},
    ],
    ids=str,
)
def test_wrong_options_are_refused_and_nothing_has_changed(given: dict[str, Any]) -> None:
    model = walked(static(PLAN), TAYLOR)
    handle = cache_dit.session("a").update(Bn_compute_blocks=1)
    walk = Walk(model, handle)
    walk.go(3)
    with pytest.raises(ConfigError):
        handle.update(**given)
    assert same(walk.go(), alone(static(PLAN, Bn_compute_blocks=1)))


UNFIT: dict[str, dict[str, Any]] = {
    "too many blocks": {"Fn_compute_blocks": 30},
    "nothing measured": {"Fn_compute_blocks": 0, "steps_computation_policy": "dynamic"},
    "no such policy": {"policy": "clairvoyance"},
    "calibration of another length": {
        "policy": "magcache",
        "steps_computation_policy": "dynamic",
        "policy_calibration": PolicyCalibration("magcache", "Walked", 50, None, {"default": [1.0] * 50}),
    },
    "calibration of another model": {
        "policy": "magcache",
        "steps_computation_policy": "dynamic",
        "policy_calibration": PolicyCalibration("magcache", "Other", STEPS, None, {"default": [1.0] * STEPS}),
    },
    "calibration of another policy": {
        "policy": "teacache",
        "steps_computation_policy": "dynamic",
        "policy_calibration": PolicyCalibration("magcache", "Walked", STEPS, None, {"default": [1.0] * STEPS}),
    },
    "no file": {"policy": "magcache", "policy_calibration": "/nowhere/at/all.json"},
    "unlike decisions": {"policy": "easycache", "decision": "sample"},
    "prune's without its type": {"prune_decision": "previous"},
}


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("unfit", UNFIT)
def test_what_does_not_fit_the_model_is_refused_at_the_next_step_and_the_request_goes_on(unfit: str, at: int) -> None:
    model = walked(static(PLAN), TAYLOR)
    handle = cache_dit.session("a", num_inference_steps=STEPS)
    own = {"Bn_compute_blocks": 1} if at else {}
    handle.update(**own)
    walk = Walk(model, handle)
    walk.go(at)
    try:
        handle.update(**UNFIT[unfit])
    except ConfigError:
        pass  # found at once
    else:
        with pytest.raises(ConfigError):
            walk.step()
    assert walk.at == at
    walk.go()
    assert line(model) == PLAN
    assert same(walk.outputs, alone(static(PLAN, **own)))
    handle.close()
    handle.update(steps_computation_mask=mask(OTHER))  # what was refused is not laid under later updates
    assert same(Walk(model, handle).go(), alone(static(OTHER, **own)))


def test_what_does_not_fit_one_of_two_models_is_taken_back_for_both() -> None:
    large, small = walked(static(PLAN), depth=6), walked(static(PLAN), depth=3)
    handle = cache_dit.session("a").update(Fn_compute_blocks=5)
    first, second = Walk(large, handle), Walk(small, handle)
    first.go(1)
    with pytest.raises(ConfigError, match="exceed the 3 blocks"):
        second.go(1)
    first.go()
    second.go()
    assert (line(large), line(small)) == (PLAN, PLAN)
    options = cache_dit.summary(large, logging=False)[0].cache_options["cache_config"]
    assert options.Fn_compute_blocks == 1


def test_a_model_that_took_none_of_the_options_goes_on_without_them() -> None:
    large, small = walked(static(PLAN), depth=6), walked(static(PLAN), depth=3)
    handle = cache_dit.session("a").update(Fn_compute_blocks=5)
    first, second = Walk(large, handle), Walk(small, handle)
    first.go(1)
    handle.update(Fn_compute_blocks=4)
    for _ in range(2):  # the newer options, then those before them, which the other model took
        with pytest.raises(ConfigError, match="exceed the 3 blocks"):
            second.go(1)
    second.go()
    assert line(small) == PLAN


def test_several_updates_at_once_are_taken_or_refused_together() -> None:
    model = walked(static(PLAN), TAYLOR)
    handle = cache_dit.session("a")
    walk = Walk(model, handle)
    walk.go(2)
    handle.update(steps_computation_mask=mask(OTHER))
    handle.update(Fn_compute_blocks=30)
    with pytest.raises(ConfigError):
        walk.step()
    assert same(walk.go(), alone(static(PLAN)))


# -- around pipelines


class Pipe:
    """A loop over a toy, as a pipeline is one."""

    def __init__(self, config: Any = None, calibrator: Any = TAYLOR) -> None:
        self.transformer = Walked(4)
        self.between: Callable[[int], None] = lambda step: None
        cache_dit.enable_cache(self.transformer.adapter(pipe=self), config or static(PLAN), calibrator)

    def __call__(self, num_inference_steps: int = STEPS, seed: int = 0) -> list[Tensor]:
        walk = Walk(self.transformer, steps=num_inference_steps, seed=seed)
        while not walk.done:
            walk.step()
            self.between(walk.at)
        return walk.outputs


def test_a_pipeline_takes_over_a_session_s_options_and_not_its_name() -> None:
    pipe = Pipe()
    handle = cache_dit.session("a").update(steps_computation_mask=mask(OTHER))
    with handle:
        assert same(pipe(), alone(static(OTHER)))
        assert line(pipe.transformer) == OTHER
        assert same(pipe(seed=2), alone(static(OTHER), seed=2))  # a request of its own, not the rest of the first
        handle.enabled = False
        assert same(pipe(), uncached())
        handle.enabled = True
    assert same(pipe(), alone(static(PLAN)))
    assert not state_of(pipe.transformer).sessions
    assert nbytes(pipe.transformer) == 0


def test_a_session_s_options_may_change_in_the_middle_of_a_pipeline_s_call() -> None:
    pipe = Pipe()
    handle = cache_dit.session("a")

    def between(step: int) -> None:
        if step == 3:
            handle.update(steps_computation_mask=mask(OTHER))
        handle.enabled = step < 6

    pipe.between = between
    with handle:
        pipe()
    assert line(pipe.transformer) == (PLAN[:3] + OTHER[3:])[:6]


def test_a_pipeline_knows_its_own_number_of_steps() -> None:
    pipe = Pipe(dynamic(residual_diff_threshold=1.0, max_warmup_steps=4))
    with cache_dit.session("a", num_inference_steps=28).update(num_inference_steps=28):
        pipe(num_inference_steps=5)
    assert line(pipe.transformer) == "FFFFF"  # a call of 5 steps is too short for a warm-up of 4


def test_a_pipeline_call_that_fails_for_its_session_s_options_is_the_only_one() -> None:
    pipe = Pipe()
    handle = cache_dit.session("a").update(Fn_compute_blocks=30)
    with handle:
        with pytest.raises(ConfigError, match="exceed"):
            pipe()
        assert same(pipe(), alone(static(PLAN)))
    assert not state_of(pipe.transformer).sessions


# -- what is kept


def test_what_a_request_keeps_goes_with_its_last_step_unless_it_is_to_be_kept() -> None:
    model = walked(static(PLAN, num_inference_steps=STEPS), TAYLOR)
    Walk(model, cache_dit.session("a")).go()
    assert nbytes(model) == 0
    kept = cache_dit.session("b", keep=True)
    Walk(model, kept).go()
    assert nbytes(model) > 0
    kept.close()
    assert nbytes(model) == 0
    Walk(model, kept).go()
    assert same(Walk(model, kept, seed=1).go(), alone(static(PLAN), seed=1))  # the next one begins all the same


def test_conditioning_goes_with_the_last_step_too() -> None:
    class Controlled(Walked):
        def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None,
                    control: Any = None) -> Tensor:  # fmt: skip
            return super().forward(hidden_states + control, encoder_hidden_states, timestep)

    model = Controlled()
    cache_dit.enable_cache(model.adapter(), dynamic(num_inference_steps=4))
    walk = Walk(model)
    with torch.no_grad():
        for timestep in loop(4):
            model(walk.hidden, walk.texts["cond"], torch.tensor(timestep), torch.full_like(walk.hidden, timestep))
    assert nbytes(model) == 0


def test_requests_that_ran_to_their_end_make_room_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    model = walked(static(PLAN, num_inference_steps=STEPS, max_sessions=2))
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            Walk(model, cache_dit.session(number)).go()
    assert [key[1] for key in state_of(model).sessions] == [3, 4]
    assert not caplog.records


def test_the_longest_unused_request_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    model = walked(static(PLAN, max_sessions=2), TAYLOR)
    walks = {name: Walk(model, cache_dit.session(name), seed=seed) for seed, name in enumerate("abc")}
    for name in "ab" * 3 + "a" + "c" * 2 + "a" * 4 + "c" * 6:
        walks[name].step()
    assert same(walks["a"].outputs, alone(static(PLAN), seed=0))
    assert same(walks["c"].outputs, alone(static(PLAN), seed=2))
    told = [record.getMessage() for record in caplog.records if "max_sessions" in record.getMessage()]
    assert len(told) == 1
    assert "'b'" in told[0]
    assert len(state_of(model).sessions) == 2


class Watching:
    """A block's pre-hook that lets another thread do something while the forward is under way."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action
        self.armed = False

    def __call__(self, module: Any, args: Any) -> None:
        if self.armed:
            self.armed = False
            thread = threading.Thread(target=self.action)
            thread.start()
            thread.join()


ACTIONS: dict[str, Callable[[Any, Any], object]] = {
    "crowded out": lambda model, handle: Walk(model, cache_dit.session("another")).go(1),
    "closed": lambda model, handle: handle.close(),
    "refreshed": lambda model, handle: cache_dit.refresh_context(model),
    "disabled": lambda model, handle: setattr(handle, "enabled", False),
    "updated": lambda model, handle: handle.update(Fn_compute_blocks=2, Bn_compute_blocks=2),
}


@pytest.mark.parametrize("config", [static(PLAN), dynamic(), PRUNE,
                                    dynamic(decision="sample"), dynamic(policy="easycache")], ids=str)  # fmt: skip
@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_forward_under_way_ends_as_it_would_have_whatever_another_thread_does(
    action: str, at: int, config: Any
) -> None:
    config = config.update(max_sessions=1)
    model = walked(config, TAYLOR)
    expected = Walk(walked(config, TAYLOR), seed=2, batch=2).go()
    handle = cache_dit.session("a")
    walk = Walk(model, handle, seed=2, batch=2)
    hook = Watching(lambda: ACTIONS[action](model, handle))
    model.blocks[0].register_forward_pre_hook(hook)
    walk.go(at)
    hook.armed = True
    walk.step()
    assert not hook.armed
    assert same(walk.outputs, expected[: at + 1])
    if action in ("crowded out", "closed", "refreshed"):
        others = sum(session.nbytes for session in state_of(model).sessions.values())
        latest = state_of(model).latest
        assert latest.nbytes in (0, others)
        assert ("session", "a") not in state_of(model).sessions
    handle.enabled = True
    walk.go()
    assert all(output.isfinite().all() for output in walk.outputs)
    handle.close()
    if action != "crowded out":
        assert nbytes(model) == 0


def test_a_session_that_is_closed_right_before_its_forward_begins_is_freed_when_it_ends() -> None:
    pool = SessionPool()
    session, _ = pool.open("a", Session, limit=2)
    pool.close("a")  # by another thread
    pool.hold("a", session)
    session.monitors["default"] = ConditioningMonitor()
    pool.release(session)
    assert not session.monitors


def test_the_sessions_of_threads_that_have_ended_go_when_another_opens() -> None:
    model = walked(static(PLAN), TAYLOR)
    for seed in range(4):
        thread = threading.Thread(target=Walk(model, seed=seed).go, args=(3,))
        thread.start()
        thread.join()
    gone = weakref.ref(thread)
    one = nbytes(model)
    del thread
    Walk(model, cache_dit.session("a")).go(3)
    assert nbytes(model) == one
    gc.collect()
    assert gone() is None


# -- how long it takes


def test_the_pool_does_the_same_number_of_things_however_many_are_open() -> None:
    class Counting(SessionPool):
        """A pool whose work is counted in the sessions it touches."""

        touched = 0

        def _tidy(self, session: Session) -> None:
            type(self).touched += 1
            super()._tidy(session)

    def work(open_ones: int) -> int:
        pool = Counting()
        for number in range(open_ones):
            pool.open(number, Session, limit=open_ones + 1)
        Counting.touched = 0
        session, _ = pool.open("a", Session, limit=open_ones + 1)
        pool.hold("a", session)
        pool.release(session)
        pool.close("a")
        pool.open("b", Session, limit=open_ones)
        return Counting.touched

    assert work(10) == work(10_000) == 2


def test_opening_refreshing_and_closing_one_takes_the_same_time_however_many_are_open() -> None:
    def seconds(open_ones: int) -> float:
        model = walked(static("FFFF", max_sessions=20_000), depth=1)
        for number in range(open_ones):
            state_of(model).router.session(cache_dit.session(number), state_of(model))
        best = math.inf
        for _ in range(5):
            begun = time.process_time()
            for number in range(40):
                handle = cache_dit.session(("new", number))
                walk = Walk(model, handle, steps=1)
                walk.step()
                handle.update(residual_diff_threshold=0.1 + number)
                walk.at = 0
                walk.step()
                handle.close()
            best = min(best, time.process_time() - begun)
        assert len(state_of(model).sessions) == open_ones
        return best

    few, many = seconds(10), seconds(10_000)
    assert many < 2 * few + 0.02


# -- threads


@pytest.mark.parametrize("max_sessions", [64, 1])
def test_threads_that_open_walk_update_and_close_at_random_give_what_each_gives_alone(max_sessions: int) -> None:
    base = static(PLAN, max_sessions=max_sessions)
    model = walked(base, TAYLOR)
    plans = [PLAN, OTHER, "FCFCFCFC", "F" * STEPS]
    expected = {(plan, seed): alone(static(plan), seed=seed) for plan in plans for seed in range(3)}
    failures: list[object] = []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        draws = torch.Generator().manual_seed(number)
        barrier.wait()
        try:
            for turn in range(8):
                plan = plans[int(torch.randint(len(plans), (), generator=draws))]
                seed = int(torch.randint(3, (), generator=draws))
                handle = cache_dit.session((number, turn % 2)).update(steps_computation_mask=mask(plan))
                walk = Walk(model, handle, seed=seed)
                for _ in range(int(torch.randint(1, STEPS + 1, (), generator=draws))):
                    walk.step()
                    cache_dit.summary(model, logging=False)
                if max_sessions > 1 and not same(walk.outputs, expected[plan, seed][: walk.at]):
                    failures.append((plan, seed))
                failures.extend("not finite" for output in walk.outputs if not output.isfinite().all())
                handle.close()
        except Exception as error:  # noqa: BLE001 -- told by the main thread
            failures.append(error)

    in_threads(work, 4)
    assert not failures
    assert not state_of(model).sessions
    assert nbytes(model) == 0


@pytest.mark.parametrize("rising", [True, False])
def test_predictions_by_timestep_are_the_same_before_and_after_a_model_s_direction_is_known(rising: bool) -> None:
    timesteps = sorted((0.1 + step**1.5 for step in range(STEPS)), reverse=not rising)
    model = walked(static("FFCCFCCF"), TaylorSeerCalibratorConfig(coordinate="timestep"))
    first, second = (denoise(model, timesteps) for _ in range(2))
    assert line(model) == "FFCCFCCF"
    assert same(first, second)


def test_the_histories_of_one_request_are_no_other_s(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[History]] = []
    original = History.__init__

    def noted(self: History, *args: Any, **kwargs: Any) -> None:
        made.append(weakref.ref(self))
        original(self, *args, **kwargs)

    monkeypatch.setattr(History, "__init__", noted)
    model = walked(static(PLAN), TAYLOR)
    handles = [cache_dit.session(name) for name in "ab"]
    for handle in handles:
        Walk(model, handle).go(3)
        handle.close()
    del handle
    state_of(model).router.pool.latest = None
    gc.collect()
    assert len(made) == 4
    assert not [one for one in made if one() is not None]


@pytest.mark.parametrize("options", [{"num_inference_steps": 0}, {"num_inference_steps": "28"}, {"keep": "yes"}])
def test_a_session_is_refused_what_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(cache_dit.ConfigError, match=rf"{next(iter(options))}=.* is not valid: expected"):
        cache_dit.session("a", **options)


@pytest.mark.parametrize("copied", [False, True])
def test_generators_that_take_turns_call_by_their_handles(copied: bool) -> None:
    """Servers run each ``next`` in a context of its own, or all of them in one: a handle's call is right in both."""
    model = Toy("0", (5,))
    cache_dit.enable_cache(model.adapter(), static(PLAN))
    inputs = {seed: stream_inputs(seed=seed) for seed in (1, 2)}

    def steps(seed: int) -> Iterator[Tensor]:
        handle = cache_dit.session(f"seed {seed}", num_inference_steps=STEPS)
        hidden, encoder = inputs[seed]
        for timestep in loop(STEPS):
            output = handle.call(model, hidden, encoder, timestep=timestep)
            hidden = hidden - output / STEPS
            yield output

    def following(run: Iterator[Tensor]) -> Tensor:
        return contextvars.copy_context().run(next, run) if copied else next(run)

    with torch.no_grad():
        alone = {seed: [following(run) for _ in range(STEPS)] for seed in (1, 2) for run in [steps(seed)]}
        runs = {seed: steps(seed) for seed in (1, 2)}
        turns = [{seed: following(run) for seed, run in runs.items()} for _ in range(STEPS)]
    assert current_request() is None
    for seed in (1, 2):
        assert same([turn[seed] for turn in turns], alone[seed])
    assert line(model) == PLAN
