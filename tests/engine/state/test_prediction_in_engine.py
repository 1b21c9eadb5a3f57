"""What a skipped step gives, against the textbook: the same inputs through a twin without a cache, filled by hand."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from torch import Tensor

import cache_dit
from cache_dit import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
)
from cache_dit.engine.state import snapshots as past_module
from cache_dit.engine.state.history import History
from cache_dit.engine.subclass import state_of
from tests.kit import textbook
from tests.kit.equality import close
from tests.kit.textbook import Filled, Rule, polynomial
from tests.kit.tiny_flux import generate, tiny_pipeline
from tests.kit.tiny_models import inputs as family_inputs
from tests.kit.tiny_models import tiny
from tests.kit.toys import Toy, line, lines, static, stream_inputs

#: Gaps of every size; four even ones at the end, so that a dynamic mode decomposition is made of them.
LINE = "FFCFCCCCFFFFCCFCFCFCFCCC"

CALIBRATORS: dict[str, tuple[Callable[..., CalibratorConfig], dict[str, Any], Rule]] = {
    "taylorseer 0": (TaylorSeerCalibratorConfig, {"taylorseer_order": 0}, textbook.reuse),
    "taylorseer 1": (TaylorSeerCalibratorConfig, {"taylorseer_order": 1}, polynomial(1)),
    "taylorseer 2": (TaylorSeerCalibratorConfig, {"taylorseer_order": 2}, polynomial(2)),
    "taylorseer 3": (TaylorSeerCalibratorConfig, {"taylorseer_order": 3}, polynomial(3)),
    "newton": (NewtonCalibratorConfig, {"newton_order": 2}, polynomial(2)),
    "hermite": (HermiteCalibratorConfig, {"hermite_order": 3, "hermite_scale": 0.4}, textbook.hermite(3, 0.4)),
    "foca": (FoCaCalibratorConfig, {}, textbook.foca),
    "dmd": (DMDCalibratorConfig, {}, textbook.dmd),
}
SWITCHES = {"both": (True, True), "hidden": (True, False), "encoder": (False, True)}


def moved(step: float) -> float:
    """How far the inputs of a step are from those of the first."""
    return 0.4 * math.sin(step / 5)


def toy_inputs(model: Toy, step: float) -> list[Tensor]:
    """What a toy is called with at a step."""
    hidden, *encoder = stream_inputs(model)
    return [hidden * (1 + moved(step)), *(stream * (1 - moved(step + 3)) for stream in encoder)]


def toy_twin(model: Toy, **options: Any) -> tuple[Toy, Filled]:
    """An uncached copy of a toy that is filled by hand."""
    twin = copy.deepcopy(model)
    solo = twin.form.pattern.Forward_H_only
    filled = Filled(
        list(twin.blocks),
        read=lambda args, kwargs: (args[0], None if solo else args[1]),
        split=lambda output: twin.form.take(output, None),
        build=twin.form.give,
        **options,
    )
    return twin, filled


@torch.no_grad()
def by_hand(twin: Any, filled: Filled, calls: Sequence[Any], plan: str, times: Sequence[float]) -> list[Tensor]:
    """The outputs of a twin's steps."""
    outputs = []
    for given, letter, time in zip(calls, plan, times, strict=True):
        filled.step(time, skip=letter == "C")
        outputs.append(twin(*given) if isinstance(given, list) else twin(**given)[0])
    return outputs


@pytest.mark.parametrize(("front", "back"), [(0, 0), (1, 0), (1, 2)])
@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("name", CALIBRATORS)
@torch.no_grad()
def test_a_skipped_step_is_what_the_textbook_says(name: str, switches: str, kept: str, front: int, back: int) -> None:
    make, options, rule = CALIBRATORS[name]
    on = SWITCHES[switches]
    calibrator = make(**options, enable_calibrator=on[0], enable_encoder_calibrator=on[1], calibrator_cache_type=kept)
    model = Toy("0")
    twin, filled = toy_twin(
        model,
        front=front,
        back=back,
        rules=tuple(rule if switch else textbook.reuse for switch in on),
        states=tuple(switch and kept == "hidden_states" for switch in on),
    )
    calls = [toy_inputs(model, step) for step in range(len(LINE))]
    expected = by_hand(twin, filled, calls, LINE, range(len(LINE)))
    cache_dit.enable_cache(model.adapter(), static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back), calibrator)
    outputs = [model(*given) for given in calls]
    assert line(model) == LINE
    assert close(outputs, expected, growth=20 if name == "dmd" else 2)


@pytest.mark.parametrize("calibrator", [None, CalibratorConfig(calibrator_cache_type="hidden_states")])
@torch.no_grad()
def test_without_a_calibrator_the_last_residual_is_reused(calibrator: CalibratorConfig | None) -> None:
    model = Toy("0")
    rules = (textbook.reuse, textbook.reuse)
    twin, filled = toy_twin(model, front=1, back=0, rules=rules, states=(False, False))
    calls = [toy_inputs(model, step) for step in range(len(LINE))]
    expected = by_hand(twin, filled, calls, LINE, range(len(LINE)))
    cache_dit.enable_cache(model.adapter(), static(LINE), calibrator)
    assert close([model(*given) for given in calls], expected, depth=16)


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize("name", ["taylorseer 2", "foca"])
@pytest.mark.parametrize("family", ["FluxTransformer2DModel", "WanTransformer3DModel"])
@torch.no_grad()
def test_real_models_too(family: str, name: str, kept: str) -> None:
    make, options, rule = CALIBRATORS[name]
    model, twin = tiny(family), tiny(family)
    twin.load_state_dict(model.state_dict())
    paired = family.startswith("Flux")  # its blocks take and give both streams; Wan's take both and give H
    blocks = [*twin.transformer_blocks, *twin.single_transformer_blocks] if paired else list(twin.blocks)
    filled = Filled(
        blocks,
        read=lambda args, kwargs: (
            (kwargs["hidden_states"], kwargs["encoder_hidden_states"]) if paired else (args[0], None)
        ),
        split=lambda output: (output[1], output[0]) if paired else (output, None),
        build=lambda hidden, encoder: (encoder, hidden) if paired else hidden,
        front=1,
        back=0,
        rules=(rule, rule),
        states=(kept == "hidden_states",) * 2,
    )
    plan = LINE[:12]
    calls = []
    for step in range(len(plan)):
        given = family_inputs(family, timestep=1 - step / len(plan))
        given["hidden_states"] = given["hidden_states"] * (1 + moved(step))
        calls.append({**given, "return_dict": False})
    expected = by_hand(twin, filled, calls, plan, range(len(plan)))
    cache_dit.enable_cache(model, static(plan, enable_separate_cfg=False), make(**options, calibrator_cache_type=kept))
    outputs = [model(**given)[0] for given in calls]
    assert line(model) == plan
    assert close(outputs, expected, growth=10)


# -- where the steps lie

UNEVEN = [1.0, 0.93, 0.9, 0.7, 0.55, 0.52, 0.3, 0.1]
PLAN = "FFCFFCCC"


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize("schedule", [UNEVEN, UNEVEN[::-1]], ids=["falling", "rising"])
@torch.no_grad()
def test_a_polynomial_in_the_timestep_takes_the_weights_of_the_timesteps(schedule: list[float], kept: str) -> None:
    model = Toy("0")
    rules = (polynomial(2), polynomial(2))
    twin, filled = toy_twin(model, front=1, back=1, rules=rules, states=(kept == "hidden_states",) * 2)
    calls = [[*toy_inputs(model, step), torch.tensor(time)] for step, time in enumerate(schedule)]
    expected = by_hand(twin, filled, calls, PLAN, schedule)
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type=kept, coordinate="timestep")
    cache_dit.enable_cache(model.adapter(), static(PLAN, Bn_compute_blocks=1), calibrator)
    for _ in range(2):  # in the first request the direction is learned on the way
        outputs = [model(*given) for given in calls]
        assert close(outputs[3:], expected[3:], growth=5)
    assert close(outputs, expected, growth=5)
    assert line(model) == PLAN


@torch.no_grad()
def test_a_second_call_at_a_timestep_takes_the_place_of_the_first_and_older_ones_stay() -> None:
    schedule = [1.0, 0.8, 0.8, 0.5, 0.5, 0.1]
    plan = "FFFCCC"
    model = Toy("0")
    rules = (polynomial(1), polynomial(1))
    twin, filled = toy_twin(model, front=1, back=0, rules=rules, states=(False, False))
    calls = [[*toy_inputs(model, step), torch.tensor(time)] for step, time in enumerate(schedule)]
    outputs_by_hand = []
    with torch.no_grad():
        for step, given in enumerate(calls):
            if step == 2:  # what came before at this timestep is forgotten
                filled.times.pop()
                for kept in filled.kept:
                    kept.pop()
            outputs_by_hand += by_hand(twin, filled, [given], plan[step], [schedule[step]])
    calibrator = TaylorSeerCalibratorConfig(coordinate="timestep")
    cache_dit.enable_cache(model.adapter(), static(plan), calibrator)
    model_outputs = [model(*given) for given in calls]
    assert close(model_outputs, outputs_by_hand, growth=5)


class Recorded(History):
    """A history that writes down at which times it was filled, and with which weights it was read."""

    appended: list[float]
    read: list[tuple[list[float], list[float]]]

    def append(self, time: float, snapshot: Tensor) -> None:
        super().append(time, snapshot)
        type(self).appended.append(time)

    def predict(self, coefficients: Sequence[float], *args: Any, **kwargs: Any) -> Tensor:
        type(self).read.append((list(self.times), list(coefficients)))
        return super().predict(coefficients, *args, **kwargs)

    def predict_with(self, other: History, coefficients: Sequence[float], *anchors: Tensor) -> tuple[Tensor, Tensor]:
        type(self).read += [(list(history.times), list(coefficients)) for history in (self, other)]
        return super().predict_with(other, coefficients, *anchors)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    """The histories that are made from now on."""
    Recorded.appended, Recorded.read = [], []
    monkeypatch.setattr("cache_dit.engine.state.snapshots.History", Recorded)
    return Recorded


def lagrange(times: Sequence[float], target: float) -> list[float]:
    """The weights of the polynomial through values at some times."""
    return [math.prod((target - b) / (a - b) for b in times if b != a) for a in times]


@pytest.mark.parametrize("start", [0, 4])
def test_sigmas_are_those_of_the_pipelines_scheduler(recorded: type[Recorded], start: int) -> None:
    pipe: Any = tiny_pipeline()
    call: dict[str, Any] = {"steps": 6}
    if start:  # image-to-image begins somewhere inside of the schedule
        pipe = FluxImg2ImgPipeline(**pipe.components)
        pipe.set_progress_bar_config(disable=True)
        call = {"steps": 10, "image": torch.rand(1, 3, 8, 8), "strength": 0.6}
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2, coordinate="sigma")
    cache_dit.enable_cache(pipe, static("FFFCFC"), calibrator)
    generate(pipe, **call)
    assert line(pipe) == "FFFCFC"
    sigmas = [-float(sigma) for sigma in pipe.scheduler.sigmas[start : start + 6]]
    assert recorded.appended[::2] == [sigmas[step] for step in (0, 1, 2, 4)]  # H's, then E's
    (times, weights), *_ = recorded.read
    assert times == sigmas[:3]
    assert weights == pytest.approx(lagrange(times, sigmas[3]), rel=1e-6)
    if start == 0:  # without a shift these sigmas lie evenly
        assert weights == pytest.approx(lagrange([0, 1, 2], 3), rel=1e-5)


def test_an_unknown_sigma_is_named_once_and_steps_take_its_place(
    recorded: type[Recorded], caplog: pytest.LogCaptureFixture
) -> None:
    model = Toy("0")
    calibrator = TaylorSeerCalibratorConfig(coordinate="sigma")
    cache_dit.enable_cache(model.adapter(), static("FFCFCC", num_inference_steps=6), calibrator)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            for step in range(6):
                model(*toy_inputs(model, step))
    assert [message for message in caplog.messages if "sigma" in message] == caplog.messages[:1]
    assert recorded.read[0] == ([0.0, 1.0], [-1.0, 2.0])
    assert recorded.read[-1] == ([1.0, 3.0], [-1.0, 2.0])


@torch.no_grad()
def test_times_of_two_units_are_never_mixed(recorded: type[Recorded]) -> None:
    model = Toy("0")
    calibrator = TaylorSeerCalibratorConfig(coordinate="timestep", enable_encoder_calibrator=True)
    cache_dit.enable_cache(model.adapter(), static("FFCFCC"), calibrator)
    for step, time in enumerate([1.0, 0.9, None, None, None, 0.3]):  # a call may leave its timestep out
        model(*toy_inputs(model, step), None if time is None else torch.tensor(time))
    assert line(model) == "FFCFCC"
    assert [weights for _, weights in recorded.read] == [[1.0]] * 6  # reuse, of H and of E
    assert [len(times) for times, _ in recorded.read] == [2, 2, 1, 1, 1, 1]


# -- whose history


@torch.no_grad()
def test_each_chain_has_the_calibrator_of_its_modifier(recorded: type[Recorded]) -> None:
    model = Toy("2", (3, 3))
    modifiers = [
        ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2)),
        ParamsModifier(calibrator_config=HermiteCalibratorConfig(hermite_order=1, hermite_scale=0.5)),
    ]
    cache_dit.enable_cache(model.adapter(), static("FFFC"), params_modifiers=modifiers)
    for step in range(4):
        model(*toy_inputs(model, step))
    weights = [weights for _, weights in recorded.read]
    assert weights == [pytest.approx([1, -3, 3]), pytest.approx([-0.5, 1.5])]  # the latter: F + ΔF · 2σ²k


@torch.no_grad()
def test_branches_of_guidance_know_nothing_of_each_other() -> None:
    alone = {}
    for sign in (1, -1):
        model = Toy("0")
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2)
        cache_dit.enable_cache(model.adapter(), static(PLAN, enable_separate_cfg=False), calibrator)
        alone[sign] = [model(*[sign * s for s in toy_inputs(model, i)], torch.tensor(t)) for i, t in enumerate(UNEVEN)]
    model = Toy("0")
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=2)
    cache_dit.enable_cache(model.adapter(), static(PLAN, enable_separate_cfg=True), calibrator)
    together: dict[int, list[Tensor]] = {1: [], -1: []}
    for step, time in enumerate(UNEVEN):
        for sign in (1, -1):
            together[sign].append(model(*[sign * s for s in toy_inputs(model, step)], torch.tensor(time)))
    assert set(lines(model).values()) == {PLAN} and len(lines(model)) == 2
    for sign in (1, -1):
        assert all(map(torch.equal, together[sign], alone[sign]))


# -- what goes wrong


@pytest.mark.parametrize("name", CALIBRATORS)
@torch.no_grad()
def test_a_nan_is_not_carried_on_by_any_predictor(name: str) -> None:
    make, options, _ = CALIBRATORS[name]
    model = Toy("0")
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=0.9)
    cache_dit.enable_cache(model.adapter(), config, make(**options))
    outputs = []
    for step in range(12):
        bad = step == 3
        hook = model.blocks[2].register_forward_hook(
            lambda module, args, output, bad=bad: tuple(s * math.nan for s in output) if bad else output
        )
        outputs.append(model(*toy_inputs(model, step)))
        hook.remove()
    assert line(model)[:5] == "FFFFF"
    assert [bool(output.isfinite().all()) for output in outputs] == [step != 3 for step in range(12)]
    assert "C" in line(model)[5:]


@torch.no_grad()
def test_a_decomposition_of_too_few_snapshots_is_a_straight_line(recorded: type[Recorded]) -> None:
    model = Toy("2")
    cache_dit.enable_cache(model.adapter(), static("FCFCFCCFFC"), DMDCalibratorConfig())
    for step in range(10):
        model(*toy_inputs(model, step))
    weights = [weights for _, weights in recorded.read]
    assert weights[:3] == [[1.0], pytest.approx([-0.5, 1.5]), pytest.approx([0, -0.5, 1.5])]
    assert weights[-1] == pytest.approx([0, 0, 0, -1, 2])


@torch.no_grad()
def test_both_streams_share_their_weights_where_they_are_predicted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    weights = past_module.weights
    monkeypatch.setattr(past_module, "weights", lambda *args: asked.append(args) or weights(*args))
    for calibrator, times in (
        (TaylorSeerCalibratorConfig(), 1),
        (TaylorSeerCalibratorConfig(enable_encoder_calibrator=False), 2),
        (DMDCalibratorConfig(), 2),  # its weights are made of the values
    ):
        asked.clear()
        model = Toy("0")
        cache_dit.enable_cache(model.adapter(), static("FFC"), calibrator)
        for step in range(3):
            model(*toy_inputs(model, step))
        assert len(asked) == times


@torch.no_grad()
def test_snapshots_are_freed_with_the_last_step_and_by_refreshing() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FFCC", num_inference_steps=4), TaylorSeerCalibratorConfig())
    for step in range(3):
        model(*toy_inputs(model, step))
    state = state_of(model)
    assert state.latest.nbytes > 0
    model(*toy_inputs(model, 3))
    assert state.latest.nbytes == 0 and line(model) == "FFCC"
    for step in range(3):
        model(*toy_inputs(model, step))
    assert state.latest.nbytes > 0
    session = state.latest
    cache_dit.refresh_context(model)
    assert session.nbytes == 0
