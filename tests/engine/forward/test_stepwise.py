"""Blocks and loops that do what the usual ones do not: each is handled, or refused with a reason; none goes wrong."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import (
    BlockAdapter,
    ConfigError,
    DBCacheConfig,
    ForwardPattern,
    PatternMismatchError,
    TaylorSeerCalibratorConfig,
    UnsupportedModelError,
)
from cache_dit.engine.adapters.rules import CallRules
from cache_dit.engine.subclass import state_of
from tests.kit.equality import close, same
from tests.kit.toys import (
    FORMS,
    WIDTH,
    InPlacePair,
    InPlaceSolo,
    Joined,
    OptionalToy,
    PairBlock,
    SoloBlock,
    Toy,
    counted,
    denoise,
    dynamic,
    frozen_run,
    line,
    lines,
    loop,
    static,
    stream_inputs,
)

LINE = "FFCCFC"
FRONTS = pytest.mark.parametrize(("front", "back"), [(0, 0), (1, 0), (1, 1), (0, 1), (2, 2)])


def reason(model: Any) -> str | None:
    """Why nothing was cached."""
    return cache_dit.summary(model, logging=False)[0].reason


def plain_classes(model: nn.Module) -> bool:
    """Whether no module of a model has a class of ours."""
    return all(state_of(module) is None and "Cached" not in str(type(module).__call__) for module in model.modules())


# -- writing in place


class InPlaceToy(Toy):
    """A toy whose blocks write into their input."""

    def __init__(self, form: str) -> None:
        super().__init__(form)
        for block in self.blocks:
            block.__class__ = InPlaceSolo if self.form.pattern.Forward_H_only else InPlacePair
            block.writes_encoder = not self.form.pattern.Return_H_Only

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
        encoder = None if encoder_hidden_states is None else encoder_hidden_states.clone()
        return super().forward(hidden_states, encoder, timestep)


@FRONTS
@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
def test_blocks_that_write_into_their_input(form: str, front: int, back: int, inference: bool) -> None:
    model = InPlaceToy(form)
    inputs = stream_inputs(model)
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
    with torch.inference_mode(inference), torch.set_grad_enabled(False):
        outputs = [model(*inputs) for _ in LINE]
    assert close(outputs, expected)
    assert line(model) == LINE


def test_blocks_that_write_into_their_input_are_measured_right_and_hit() -> None:
    plain, writing = Toy("0"), InPlaceToy("0")
    for model in (plain, writing):
        cache_dit.enable_cache(model.adapter(), dynamic(residual_diff_threshold=0.3))
        denoise(model, loop(6))
    assert "C" in line(writing)
    diffs = [cache_dit.summary(model, logging=False)[0].residual_diffs for model in (plain, writing)]
    assert all(0.01 < diff < 1 for diff in diffs[1].values())


@pytest.mark.parametrize(("model_class", "writes"), [(Toy, False), (InPlaceToy, True)])
def test_only_blocks_that_write_cost_a_copy(model_class: type, writes: bool) -> None:
    model = model_class("0")
    cache_dit.enable_cache(model.adapter(), static(LINE))
    frozen_run(model, stream_inputs(), 3)
    assert [chain.writes_input for chain, _ in state_of(model).chains] == [writes]


class InPlaceLoop(Toy):
    """A loop that adds to the streams in place between the blocks, from the very first on."""

    def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
        hidden, encoder = super().step(block, hidden, encoder)
        hidden += 0.1
        if encoder is not None:
            encoder += 0.2
        return hidden, encoder


@FRONTS
@pytest.mark.parametrize("form", ["0", "1", "3", "4", "5"])
def test_loops_that_add_in_place_between_blocks(form: str, front: int, back: int) -> None:
    model = InPlaceLoop(form)
    inputs = stream_inputs(model)
    kept = [stream.clone() for stream in inputs]
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
    outputs = frozen_run(model, inputs, len(LINE))
    assert same(inputs, kept)  # what the caller passed in is not written into on a skipped step
    assert close(outputs, expected)
    assert line(model) == LINE


# -- numbers that are none, shapes that change


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_miss_and_is_reported(bad: float) -> None:
    model = Toy("0")
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), dynamic())
    broken = (inputs[0].clone(), inputs[1])
    broken[0][0, 0, 0] = bad
    outputs = [frozen_run(model, given, 1)[0] for given in (inputs, inputs, broken, inputs, inputs)]
    assert line(model) == "FCFFC"
    assert not outputs[2].isfinite().all()
    assert close([outputs[place] for place in (0, 1, 3, 4)], expected)


def test_a_run_of_nan_says_so() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), dynamic())
    frozen_run(model, [stream * math.nan for stream in stream_inputs()], 4)
    assert line(model) == "FFFF"
    assert "NaN or infinite in 3 of 4 steps" in (reason(model) or "")
    assert cache_dit.summary(model, logging=False)[0].residual_diffs == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stream", ["H", "E"])
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_value_that_is_not_finite_in_the_middle_alone_is_a_miss_and_is_forgotten(
    order: int, step: int, stream: str, bad: float
) -> None:
    model = Toy("0")
    inputs = stream_inputs()
    expected = model(*inputs)
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    cache_dit.enable_cache(model.adapter(), dynamic(max_warmup_steps=3), calibrator)
    outputs = frozen_run(model, inputs, step)
    spoil = model.blocks[-1].register_forward_hook(
        lambda module, args, output: (output[0] * bad, output[1]) if stream == "H" else (output[0], output[1] * bad)
    )
    broken = frozen_run(model, inputs, 1)
    spoil.remove()
    outputs += frozen_run(model, inputs, 7 - step)
    assert not broken[0].isfinite().all()
    assert close(outputs, expected)
    kept = max(order, 1) + 1 if order else 1  # the computed steps that a prediction is made of
    assert line(model) == ("FFFFCCCC" if step + kept >= 3 else "FFFCCCCC")


CHANGES = {
    "tokens": lambda streams: (streams[0][:, 1:], streams[1]),
    "text tokens": lambda streams: (streams[0], streams[1][:, 1:]),
    "batch": lambda streams: tuple(torch.cat([stream, stream]) for stream in streams),
    "batch and nothing else to tell": lambda streams: tuple(stream.expand(2, -1, -1) for stream in streams),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "config",
    [static("FCCCCC"), static("FCCCCC", Fn_compute_blocks=0), dynamic(), dynamic(residual_diff_threshold=1.0)],
    ids=["static", "static F0", "measured", "unmeasured"],
)
def test_a_shape_that_changes_at_a_would_be_skip_is_computed(config: DBCacheConfig, change: str) -> None:
    model = Toy("0")
    inputs = stream_inputs()
    changed = CHANGES[change](inputs)
    expected, expected_changed = frozen_run(model, inputs, 1)[0], frozen_run(model, changed, 1)[0]
    cache_dit.enable_cache(model.adapter(), config)
    outputs = [frozen_run(model, given, 1)[0] for given in (inputs, inputs, changed, changed, inputs, inputs)]
    assert line(model) == "FCFCFC"
    assert close(outputs[:2] + outputs[4:], expected)
    assert close(outputs[2:4], expected_changed)
    whys = [record.why for record in next(iter(state_of(model).latest.caches.values())).samples[0].policy.records]
    assert {whys[2], whys[4]} == {"shape" if change == "tokens" else "conditioning"}  # the text is another object too


@pytest.mark.parametrize("first", ["with", "without"])
@pytest.mark.parametrize(
    "config",
    [static("FCCCCC"), static("FCCCCC", Fn_compute_blocks=0), dynamic(), dynamic(residual_diff_threshold=1.0)],
    ids=["static", "static F0", "measured", "unmeasured"],
)
def test_text_that_appears_or_vanishes_at_a_would_be_skip_is_computed(config: DBCacheConfig, first: str) -> None:
    model = OptionalToy()
    given = [stream_inputs(), stream_inputs()[:1]]
    if first == "without":
        given.reverse()
    expected = [frozen_run(model, inputs, 1)[0] for inputs in given]
    cache_dit.enable_cache(model.adapter(), config)
    order = [0, 0, 1, 1, 0, 0]
    outputs = [frozen_run(model, given[place], 1)[0] for place in order]
    assert line(model) == "FCFCFC"
    assert all(close([output], expected[place]) for place, output in zip(order, outputs, strict=True))


def test_a_dtype_that_changes_at_a_would_be_skip_is_computed() -> None:
    class Widens(Toy):
        dtype = torch.float32

        def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
            hidden, encoder = super().step(block, hidden, encoder)
            return hidden.to(self.dtype), encoder

    model = Widens("2")
    cache_dit.enable_cache(model.adapter(), static("FCCC", Bn_compute_blocks=1))
    inputs = stream_inputs()
    frozen_run(model, inputs, 2)
    model.dtype = torch.float64
    model.blocks[1:].double()
    with pytest.raises(RuntimeError):  # the model's own error: text and image are of two dtypes now
        frozen_run(model, inputs, 1)
    model.blocks[1:].float()
    model.dtype = torch.float32
    assert len(frozen_run(model, inputs, 2)) == 2


class ShortensHidden(SoloBlock):
    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        return super().forward(hidden_states[:, 1:], scale)


class ShortensEncoder(PairBlock):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Any:
        return super().forward(hidden_states, encoder_hidden_states[:, 1:], scale)


@pytest.mark.parametrize(("form", "block_class"), [("3", ShortensHidden), ("0", ShortensEncoder)])
@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_tokens_that_vanish_inside_the_middle(
    form: str, block_class: type, kept: str, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = Toy(form)
    model.blocks[place].__class__ = block_class
    inputs = stream_inputs(model)
    expected = model(*inputs)
    calibrator = TaylorSeerCalibratorConfig(calibrator_cache_type=kept)
    cache_dit.enable_cache(model.adapter(), static("FCFCCC", Bn_compute_blocks=1), calibrator)
    assert close(frozen_run(model, inputs, 6), expected)
    if kept == "residual":  # there is none: it computes for good, and says so
        assert line(model) == "FFFFFF"
        assert "so nothing can be predicted for them" in (reason(model) or "")
        assert cache_dit.summary(model, logging=False)[0].peak_bytes == 0


class Casts(SoloBlock):
    """Computes in float32 whatever it is given, and hands out what it is told to."""

    out: Any = torch.float32

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        if hidden_states.is_meta:
            hidden_states = torch.zeros(hidden_states.shape)
        return super().forward(hidden_states.float(), scale).to(self.out)


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize(
    ("place", "out", "refused"),
    [
        (0, torch.bfloat16, True),
        (1, torch.bfloat16, False),
        (2, "meta", False),
        (3, torch.bfloat16, True),
        (3, torch.float64, True),
        (3, "meta", True),
        (4, torch.bfloat16, False),
    ],
    ids=str,
)
def test_a_middle_that_gives_another_dtype_or_device_than_it_is_given_is_refused(
    place: int, refused: bool, out: Any, kept: str
) -> None:
    model = Toy("3")
    for block in model.blocks:
        block.__class__ = Casts
    model.blocks[place].out = out
    model.leave = nn.Identity()
    inputs = stream_inputs(model)
    expected = frozen_run(model, inputs, 1)[0]
    calibrator = TaylorSeerCalibratorConfig(calibrator_cache_type=kept)
    cache_dit.enable_cache(model.adapter(), static("FCFCCC", Bn_compute_blocks=1), calibrator)
    outputs = frozen_run(model, inputs, 6)
    assert {output.dtype for output in outputs} == {expected.dtype}
    assert line(model) == ("FFFFFF" if refused else "FCFCCC")
    if refused:
        assert expected.is_meta or same(outputs, [expected] * 6)
        assert "so nothing can be predicted for them" in (reason(model) or "")
        assert cache_dit.summary(model, logging=False)[0].peak_bytes == 0
    else:
        assert expected.is_meta or close(outputs, expected, depth=1, dtype=torch.bfloat16)  # one block of the middle


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
def test_a_middle_that_gives_text_of_another_dtype_is_refused(kept: str) -> None:
    class CastsText(PairBlock):
        def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Any:
            hidden, encoder = super().forward(hidden_states, encoder_hidden_states.float(), scale)
            return hidden, encoder.double()

    model = Toy("0")
    model.blocks[3].__class__ = model.blocks[4].__class__ = CastsText
    inputs = stream_inputs()
    expected = model(*inputs)
    calibrator = TaylorSeerCalibratorConfig(calibrator_cache_type=kept)
    cache_dit.enable_cache(model.adapter(), static("FCFC", Bn_compute_blocks=1), calibrator)
    assert same(frozen_run(model, inputs, 4), [expected] * 4)
    assert "so nothing can be predicted for them" in (reason(model) or "")


# -- who is called, and how often


class Twice(Toy):
    """Runs its list two times in a forward."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
        once = super().forward(hidden_states, encoder_hidden_states, timestep)
        return super().forward(once, encoder_hidden_states, timestep)


@FRONTS
@pytest.mark.parametrize("form", ["0", "3", "5"])
def test_a_list_that_runs_twice_in_a_forward(form: str, front: int, back: int) -> None:
    model = Twice(form)
    inputs = stream_inputs(model)
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))
    with counted(model.blocks) as fired:
        outputs = frozen_run(model, inputs, len(LINE))
    assert close(outputs, expected)
    assert lines(model) == {"default": LINE, "default #2": LINE}
    assert fired.total() == cache_dit.summary(model, logging=False)[0].executed_blocks
    assert fired.total() == 2 * (3 * 5 + 3 * (front + back))


def test_two_lists_that_take_turns_twice_in_a_forward() -> None:
    model = Twice("0", (3, 3))
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert lines(model, 0) == lines(model, 1) == {"default": LINE, "default #2": LINE}


class Leaves(Toy):
    """Leaves blocks out when it is told to."""

    left_out: tuple[int, ...] = ()

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
        hidden, encoder = hidden_states, encoder_hidden_states
        for place, block in enumerate(self.blocks):
            if place not in self.left_out:
                hidden, encoder = self.step(block, hidden, encoder)
        return hidden if encoder is None else hidden + encoder.mean(1, keepdim=True)


@pytest.mark.parametrize("left_out", [(4,), (3, 4), (2, 3, 4), (1, 4), (1,), (2,)], ids=str)
@pytest.mark.parametrize("form", ["0", "3", "4"])
def test_first_and_last_are_those_that_were_called(form: str, left_out: tuple[int, ...]) -> None:
    model = Leaves(form)
    model.left_out = left_out
    inputs = stream_inputs(model)
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE


@pytest.mark.parametrize("front", [0, 1])
@pytest.mark.parametrize("form", ["0", "3", "4"])
def test_a_last_middle_block_that_is_not_called_on_a_skipped_step(
    form: str, front: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = Leaves(form)
    inputs = stream_inputs(model)
    whole = model(*inputs)
    model.left_out = (4,)
    reduced = model(*inputs)
    model.left_out = ()
    cache_dit.enable_cache(model.adapter(), static("FCCCCC", Fn_compute_blocks=front, num_inference_steps=6))
    outputs = frozen_run(model, inputs, 2)
    model.left_out = (4,)
    outputs += frozen_run(model, inputs, 2)
    assert state_of(model).latest.nbytes == 0
    model.left_out = ()
    outputs += frozen_run(model, inputs, 2)
    assert close(outputs[:2] + outputs[4:], whole)
    assert close(outputs[2:4], reduced)
    assert line(model) == "FCFFFF"  # its prediction is not to be trusted any more
    again = frozen_run(model, inputs, 2)
    assert close(again, whole)
    assert line(model) == "FC"  # in the next request it may be


def test_the_reason_of_a_refused_branch_is_given() -> None:
    model = Leaves("3")
    inputs = stream_inputs(model)
    cache_dit.enable_cache(model.adapter(), static("FCCC"))
    frozen_run(model, inputs, 1)
    model.left_out = (4,)
    frozen_run(model, inputs, 3)
    assert line(model) == "FFFF"
    assert "the last middle block was not called" in (reason(model) or "")


class Pops(Leaves):
    """Empties the list that it is called with."""

    def forward(self, hidden_states: Tensor, extras: list[Tensor], more: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        hidden = hidden_states
        for place, block in enumerate(self.blocks):
            if place not in self.left_out:
                hidden = block(hidden) + extras.pop()
        return hidden + more.pop("last")


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_a_rerun_gets_the_arguments_that_a_model_has_emptied(by: str) -> None:
    model = Pops("3")
    (inputs,) = stream_inputs(model)

    def call() -> Tensor:
        extras, more = [torch.full((1, 1, WIDTH), float(value)) for value in range(9)], {"last": torch.ones(1)}
        with torch.no_grad():
            if by == "position":
                output: Tensor = model(inputs, extras, more)
            else:
                output = model(hidden_states=inputs, extras=extras, more=more)
        return output

    whole = call()
    model.left_out = (4,)
    reduced = call()
    model.left_out = ()
    cache_dit.enable_cache(model.adapter(), static("FCCC"))
    assert close([call(), call()], whole)
    model.left_out = (4,)
    assert close([call(), call()], reduced)


class CallsForward(Toy):
    """Calls its blocks' forward, past their ``__call__``."""

    def call(self, block: nn.Module, hidden: Tensor, encoder: Any) -> Any:
        return block.forward(hidden, encoder, 0.5)


def test_blocks_that_are_called_by_their_forward_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = CallsForward("0")
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static("FCCC"))
    assert same(frozen_run(model, inputs, 4), [expected] * 4)
    assert "never called its blocks" in (reason(model) or "")
    assert line(model) == "FFFF"
    with caplog.at_level(logging.WARNING):
        cache_dit.disable_cache(model)
    assert "never called its blocks" in caplog.text


# -- calls that are none, or must compute


def test_calls_that_must_compute_are_steps_and_compute() -> None:
    model = Toy("0")
    rules = CallRules(computes=lambda call: call["timestep"] is not None and float(call["timestep"]) == 0.5)
    cache_dit.enable_cache(model.adapter(rules=rules), static("FCCC"))
    denoise(model, loop(4))
    assert line(model) == "FCFC"


def test_calls_that_are_no_steps_run_plain() -> None:
    model = Toy("0")
    inputs = stream_inputs()
    expected = model(*inputs)
    rules = CallRules(bypasses=lambda call: call.get("timestep") is None)
    cache_dit.enable_cache(model.adapter(rules=rules), static("FCFC"))
    for timestep in loop(4):
        denoise(model, [timestep])
        with counted(model.blocks) as fired:
            assert same(frozen_run(model, inputs, 1), [expected])
        assert fired.total() == 5
    assert line(model) == "FCFC"


def test_calls_that_differ_in_an_argument_that_chooses_blocks_are_branches_of_their_own() -> None:
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(rules=CallRules(branch_arguments=("timestep",))), static("FCFC"))
    inputs = stream_inputs()
    with torch.no_grad():
        for _ in range(2):
            for timestep in (None, [1], [1, 2]):
                model(*inputs, timestep if timestep is None else torch.tensor(float(len(timestep))))
    assert lines(model) == {"default": "FC", "default tensor(1.)": "FC", "default tensor(2.)": "FC"}


# -- results that fit no pattern


class Strange(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Any:
        return self.result(hidden_states, encoder_hidden_states)


class StrangeModel(nn.Module):
    """Does not care what its blocks return."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Strange(result) for _ in range(4))

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        for block in self.blocks:
            block(hidden_states, encoder_hidden_states)
        return hidden_states


@pytest.mark.parametrize(
    ("pattern", "result", "seen"),
    [
        (ForwardPattern.Pattern_0, lambda h, e: h, "a tensor of shape"),
        (ForwardPattern.Pattern_0, lambda h, e: (h, e, e), "a tuple of (a tensor"),
        (ForwardPattern.Pattern_0, lambda h, e: (h,), "a tuple of (a tensor"),
        (ForwardPattern.Pattern_0, lambda h, e: (None, h), "a tuple of (builtins.NoneType"),
        (ForwardPattern.Pattern_1, lambda h, e: (h, None), "builtins.NoneType)"),
        (ForwardPattern.Pattern_1, lambda h, e: None, "builtins.NoneType"),
        (ForwardPattern.Pattern_2, lambda h, e: (h, e), "a tuple of (a tensor"),
        (ForwardPattern.Pattern_3, lambda h, e: (h, e), "a tuple of (a tensor"),
        (ForwardPattern.Pattern_3, lambda h, e: {"sample": h}, "builtins.dict"),
        (ForwardPattern.Pattern_0, lambda h, e: (h, [e]), "a list of (a tensor"),
        (ForwardPattern.Pattern_0, lambda h, e: (h, SimpleNamespace(text=e)), "types.SimpleNamespace"),
        (ForwardPattern.Pattern_2, lambda h, e: (h, (h, e)), "a tuple of (a tensor"),
        (ForwardPattern.Pattern_3, lambda h, e: (h, {"keys": h}), "builtins.dict"),
    ],
)
@pytest.mark.parametrize("front", [0, 1])
def test_a_result_that_does_not_fit_is_an_error_at_the_first_computed_step(
    pattern: ForwardPattern, result: Any, seen: str, front: int
) -> None:
    model = StrangeModel(result)
    adapter = BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=pattern)
    cache_dit.enable_cache(adapter, static("FCCC", Fn_compute_blocks=front))
    with torch.no_grad(), pytest.raises(PatternMismatchError) as caught:
        model(*stream_inputs())
    message = str(caught.value)
    assert "Strange returned " in message
    assert seen in message
    assert pattern.name in message
    assert ", ".join(pattern.Out) in message


@pytest.mark.parametrize("second", [None, "note", 3, 0.5, True, ()], ids=repr)
@pytest.mark.parametrize("pattern", ["2", "3", "4", "5"])
def test_a_second_item_that_holds_no_tensor_is_handed_out_again(pattern: str, second: Any) -> None:
    seen: list[Any] = []

    class Notes(Toy):
        def step(self, block: nn.Module, hidden: Tensor, encoder: Any) -> tuple[Tensor, Any]:
            result = self.call(block, hidden, encoder)
            hidden, note = result[::-1] if pattern == "5" else result
            seen.append(note)
            return hidden, encoder

    model = Notes(pattern)
    for block in model.blocks:
        block.give = lambda h, e: (second, h) if pattern == "5" else (h, second)
    inputs = stream_inputs(model)
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE
    assert seen == [second] * 5 * (1 + len(LINE))


class Anything(nn.Module):
    """A block whose signature says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FORMS["0"].block()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*(args or (kwargs["a"], kwargs["b"])))


class Opaque(Toy):
    def __init__(self, how: str) -> None:
        super().__init__("0")
        self.how = how
        self.blocks = nn.ModuleList(Anything() for _ in range(5))
        self.requires_grad_(False)

    def call(self, block: nn.Module, hidden: Tensor, encoder: Any) -> Any:
        if self.how == "position":
            return block(hidden, encoder)
        return block(a=hidden, b=encoder)


@pytest.mark.parametrize(("how", "names"), [("position", None), ("keyword", ("a", "b"))])
def test_blocks_whose_signature_says_nothing(how: str, names: Any) -> None:
    model = Opaque(how)
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(stream_names=names), static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE


@pytest.mark.parametrize("config", [static(LINE), static(LINE, Fn_compute_blocks=0), dynamic()])
def test_a_stream_that_cannot_be_found_in_a_call_is_a_typed_error(config: DBCacheConfig) -> None:
    model = Opaque("keyword")
    cache_dit.enable_cache(model.adapter(), config)
    with (
        torch.no_grad(),
        pytest.raises(
            PatternMismatchError, match=r"Anything was called with 0 .*\(a, b\).*'hidden_states'.*stream_names"
        ),
    ):
        model(*stream_inputs())


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = FORMS["0"].block()

    def forward(self, temb: Tensor, x: Tensor, y: Tensor) -> Any:
        return self.inner(x, y)


class RenamedModel(Toy):
    def __init__(self, keywords: bool) -> None:
        super().__init__("0", keywords=keywords)
        self.blocks = nn.ModuleList(Renamed() for _ in range(5))
        self.requires_grad_(False)

    def call(self, block: nn.Module, hidden: Tensor, encoder: Any) -> Any:
        temb = torch.zeros(1)
        return block(y=encoder, x=hidden, temb=temb) if self.keywords else block(temb, hidden, encoder)


@pytest.mark.parametrize("keywords", [False, True])
def test_streams_of_other_names_at_other_places(keywords: bool) -> None:
    model = RenamedModel(keywords)
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(stream_names=("x", "y"), check_forward_pattern=True), static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)


class OtherwiseNamed(PairBlock):
    """Calls itself ``block``."""

    def forward(block, hidden_states: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Any:
        return PairBlock.forward(block, hidden_states, encoder_hidden_states, scale)


class OtherwiseNamedModel(Toy):
    """Calls itself ``model``."""

    def forward(model, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
        return Toy.forward(model, hidden_states, encoder_hidden_states, timestep)


@pytest.mark.parametrize("keywords", [False, True])
@pytest.mark.parametrize("config", [static(LINE), dynamic(residual_diff_threshold=0.3)], ids=["static", "measured"])
def test_a_forward_that_calls_itself_something_else_than_self(config: DBCacheConfig, keywords: bool) -> None:
    usual, other = Toy("0", keywords=keywords), OtherwiseNamedModel("0", keywords=keywords)
    for block in other.blocks:
        block.__class__ = OtherwiseNamed
    for model in (usual, other):
        cache_dit.enable_cache(model.adapter(), config)
    for seed in range(2):  # without its timestep, the second run would be taken for more of the first
        outputs = [denoise(model, loop(6), seed=seed) for model in (usual, other)]
        assert same(*outputs)
        assert line(usual) == line(other)
        assert len(line(other)) == 6
        assert "C" in line(other)


# -- instances and classes of all kinds


def test_one_instance_at_two_places_is_refused() -> None:
    model = Toy("0")
    model.blocks = nn.ModuleList([*model.blocks, model.blocks[1]])
    with pytest.raises(ConfigError, match=r"PairBlock instance stands twice in blocks"):
        cache_dit.enable_cache(model.adapter(), static(LINE))
    assert plain_classes(model)


def test_one_instance_in_two_lists_is_refused() -> None:
    model = Toy("0", (3, 3))
    model.blocks_1[2] = model.blocks[0]
    with pytest.raises(ConfigError, match="stands twice"):
        cache_dit.enable_cache(model.adapter(), static(LINE))
    assert plain_classes(model)


class Uncooperative(PairBlock):
    def __init_subclass__(cls, **options: Any) -> None:
        raise TypeError("this class is final")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["class that refuses", "scripted"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_what_cannot_be_subclassed_is_refused_and_everything_is_as_before(kind: str, place: int) -> None:
    model = Toy("3" if kind == "scripted" else "0")
    if kind == "scripted":
        model.blocks[place] = torch.jit.script(nn.Linear(WIDTH, WIDTH))
        model.call = lambda block, hidden, encoder: block(hidden)  # type: ignore[method-assign]
    else:
        model.blocks[place].__class__ = Uncooperative
    inputs = stream_inputs(model)
    expected, classes = model(*inputs), [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedModelError, match="cannot be intercepted"):
        cache_dit.enable_cache(model.adapter(), static(LINE))
    assert all(type(module) is cls for module, cls in zip(model.modules(), classes, strict=True))
    assert plain_classes(model)
    assert same(frozen_run(model, inputs, 2), [expected] * 2)


class OwnCall(PairBlock):
    """Has a ``__call__`` of its own."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


class Slotted(PairBlock):
    """Has ``__slots__``, and an entry in them."""

    __slots__ = ("note",)


class Meta(type):
    """A metaclass that counts what is asked of it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    def __eq__(cls, other: object) -> bool:
        return super().__eq__(other)

    def __hash__(cls) -> int:
        return super().__hash__()


class OwnMeta(PairBlock, metaclass=Meta):
    """Has a metaclass of its own."""


class Registered(PairBlock):
    """Keeps a list of its subclasses, and wants an argument for each."""

    known: list[type] = []  # noqa: RUF012

    def __init_subclass__(cls, tag: str = "none", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.known.append(cls)


@pytest.mark.parametrize("block_class", [OwnCall, Slotted, OwnMeta, Registered])
def test_classes_of_all_kinds(block_class: type) -> None:
    model = Toy("0")
    model.blocks = nn.ModuleList(_made_anew(block, block_class) for block in model.blocks)
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE, Bn_compute_blocks=1))
    assert all(isinstance(block, block_class) for block in model.blocks)
    assert {type(block).__name__ for block in model.blocks} == {block_class.__name__}
    assert len({type(block) for block in model.blocks}) == 1
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE
    cache_dit.disable_cache(model)
    assert all(type(block) is block_class for block in model.blocks)


def _made_anew(block: nn.Module, block_class: type) -> nn.Module:
    """The same block as an instance of another class."""
    new: nn.Module = block_class(block.give)
    new.load_state_dict(block.state_dict())
    return new.requires_grad_(False)


def test_a_block_whose_forward_was_replaced_on_the_instance() -> None:
    model = Toy("0")
    for block in model.blocks:
        plain = block.forward
        block.forward = lambda *args, plain=plain, **kwargs: plain(*args, **kwargs)
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE))
    assert close(frozen_run(model, inputs, len(LINE)), expected)
    assert line(model) == LINE


@pytest.mark.parametrize("kind", ["list", "tuple", "sequential", "slice", "module dict", "of unlike classes"])
def test_block_lists_of_all_kinds(kind: str) -> None:
    model = Toy("0")
    if kind == "of unlike classes":
        model.blocks[2].__class__ = OwnCall
    blocks: Any = {
        "list": list(model.blocks),
        "tuple": tuple(model.blocks),
        "sequential": nn.Sequential(*model.blocks),
        "slice": model.blocks[1:4],
        "module dict": nn.ModuleDict({str(place): block for place, block in enumerate(model.blocks)}),
        "of unlike classes": model.blocks,
    }[kind]
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(blocks=blocks), static(LINE))
    with counted(model.blocks) as fired:
        assert close(frozen_run(model, inputs, len(LINE)), expected)
    skipped = {place for place in range(5) if fired[place] == LINE.count("F")}
    assert skipped == ({2, 3} if kind == "slice" else {1, 2, 3, 4})


# -- gradients


@pytest.mark.parametrize("what", ["parameters", "input"])
def test_with_gradients_everything_is_computed_and_nothing_is_kept(what: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Toy("0")
    inputs = list(stream_inputs())
    if what == "parameters":
        model.requires_grad_(True)
    else:
        inputs[0].requires_grad_(True)
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static("FCCC"))
    with counted(model.blocks) as fired, caplog.at_level(logging.WARNING):
        outputs = [model(*inputs) for _ in range(4)]
    assert fired == dict.fromkeys(range(5), 4)
    assert same(outputs, [expected] * 4)
    for output in outputs:  # no graph of one step hangs on another's
        output.sum().backward()
    assert sum(session.nbytes for session in state_of(model).sessions.values()) == 0
    assert "gradients are enabled" in (reason(model) or "")
    assert sum("gradients are enabled" in record.message for record in caplog.records) == 1


def test_gradients_in_a_nested_argument_are_seen() -> None:
    class Nested(Toy):
        def forward(self, hidden_states: Any, more: Any) -> Tensor:  # type: ignore[override]
            return super().forward(hidden_states[0] + more["a"][0], stream_inputs()[1])

    model = Nested("0")
    deep = torch.zeros(1, requires_grad=True)
    cache_dit.enable_cache(model.adapter(), static("FCCC"))
    with counted(model.blocks) as fired:
        for _ in range(3):
            model([stream_inputs()[0]], {"a": [deep]}).sum().backward()
    assert deep.grad is not None
    assert fired == dict.fromkeys(range(5), 3)


def test_with_grad_mode_on_but_nothing_to_differentiate_it_caches() -> None:
    model = Toy("0")
    inputs = stream_inputs()
    cache_dit.enable_cache(model.adapter(), static("FCCC"))
    assert torch.is_grad_enabled()
    outputs = [model(*inputs) for _ in range(4)]
    assert line(model) == "FCCC"
    assert close(outputs, outputs[0])


def test_after_gradients_it_caches_again() -> None:
    model = Toy("0").requires_grad_(True)
    inputs = stream_inputs()
    cache_dit.enable_cache(model.adapter(), static("FCCC"))
    model(*inputs).sum().backward()
    frozen_run(model, inputs, 4)
    assert line(model) == "FCCC"
    assert reason(model) is None


# -- another cache


def test_a_cache_of_diffusers_that_is_on_already_is_refused() -> None:
    model = Toy("0")
    model.is_cache_enabled = True
    with pytest.raises(ConfigError, match=r"two would skip twice.*disable_cache"):
        cache_dit.enable_cache(model.adapter(), static(LINE))
    assert plain_classes(model)


def test_hooks_on_skipped_blocks_do_not_fire_and_those_on_the_model_do() -> None:
    model = Toy("0")
    inputs = stream_inputs()
    cache_dit.enable_cache(model.adapter(), static("FCCF"))
    steps = itertools.count()
    model.register_forward_hook(lambda module, args, output: next(steps) and None)
    pre: list[int] = []
    for place, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda module, args, place=place: pre.append(place))
    frozen_run(model, inputs, 4)
    assert next(steps) == 4
    assert pre == [0, 1, 2, 3, 4, 0, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("act", ["off", "on again", "refreshed"])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("step", [1, 3])
def test_a_cache_that_changes_in_mid_forward(act: str, place: int, step: int) -> None:
    model = Toy("0")
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static("FFCFC"))

    def change(module: Any, args: Any) -> None:
        hook.remove()
        if act == "off":
            cache_dit.disable_cache(model)
        elif act == "on again":
            cache_dit.enable_cache(model.adapter(), static("FCFC", Bn_compute_blocks=1))
        else:
            cache_dit.refresh_context(model)

    frozen_run(model, inputs, step)
    hook = model.blocks[place].register_forward_pre_hook(change)
    outputs = frozen_run(model, inputs, 5)
    assert close(outputs, expected)
    assert state_of(model) is None or all(chain.current.forward is None for chain, _ in state_of(model).chains)


# -- what makes the blocks change their input's shape


class Adds(SoloBlock):
    """Returns a token more than it was given."""

    def forward(self, hidden_states: Tensor, scale: float = 1.0) -> Any:
        hidden = super().forward(hidden_states, scale)
        return torch.cat([hidden, hidden[:, :1]], dim=1)


def growing() -> tuple[nn.Module, BlockAdapter]:
    """A toy whose third block returns a token more."""
    model = Toy("3")
    model.blocks[2].__class__ = Adds
    return model, model.adapter()


def without_join() -> tuple[nn.Module, BlockAdapter]:
    """Two lists, the second over both streams concatenated, described as if it were not."""
    model = Joined("eh")
    return model, BlockAdapter(
        transformer=model,
        blocks=[model.double_blocks, model.single_blocks],
        forward_pattern=[ForwardPattern.Pattern_1, ForwardPattern.Pattern_3],
        merge=True,
    )


def of_streams(**described: Any) -> tuple[nn.Module, BlockAdapter]:
    """A toy of blocks that take (H, E) and return them in this order, described otherwise."""
    model = Toy("0")
    return model, model.adapter(**described)


SHAPE_CHANGES: dict[str, tuple[Callable[[], tuple[nn.Module, BlockAdapter]], str]] = {
    "lists joined in between": (without_join, "pass join='eh' or 'he'"),
    "another pattern": (lambda: of_streams(forward_pattern=ForwardPattern.Pattern_1), "forward_pattern"),
    "another stream": (lambda: of_streams(stream_names=("encoder_hidden_states", "hidden_states")), "stream_names"),
    "a token more": (growing, "adds, drops or merges tokens"),
}


@pytest.mark.parametrize("cause", SHAPE_CHANGES)
def test_a_changed_shape_is_told_with_all_that_may_cause_it(cause: str) -> None:
    make, told = SHAPE_CHANGES[cause]
    model, adapter = make()
    cache_dit.enable_cache(adapter, static("FCFC"))
    with contextlib.suppress(RuntimeError):  # the model itself may not go on with what it was given
        frozen_run(model, stream_inputs(model), 4)
    found = reason(model)
    assert found is not None and found.startswith("The blocks change their input's shape")
    assert told in found
