"""What a skipped step is filled with, worked out by hand with inputs that change: residuals, states, extrapolations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit import TaylorSeerCalibratorConfig
from tests.kit.equality import close, unlike
from tests.kit.toys import Toy, line, static, stream_inputs

STEPS = [0.0, 0.4, 1.3, 1.5]
"""How far the inputs of each step are from those of the first."""

LINE = "FFCF"
SKIPPED = 2


def inputs_of(model: Toy, moved: float) -> tuple[Tensor, Any]:
    """(H, E) of a step, E None where the blocks read none."""
    hidden, *encoder = stream_inputs(model)
    return hidden * (1 + moved), (encoder[0] * (1 - moved / 2) if encoder else None)


def through(model: Toy, hidden: Tensor, encoder: Any, first: int, last: int) -> tuple[Tensor, Any]:
    """(H, E) after the blocks from ``first`` to ``last``, the latter left out."""
    for block in model.blocks[first:last]:
        hidden, encoder = model.step(block, hidden, encoder)
    return hidden, encoder


def filled(now: Any, earlier: list[tuple[Any, Any]], kept: str, weights: list[float]) -> Any:
    """What stands for the middle blocks' output: ``earlier`` are pairs of what went in and what came out."""
    if earlier[-1][1] is None:
        return now
    if kept == "hidden_states" or now is None:  # a stream that is new in the middle has no residual
        return sum(weight * after for weight, (_, after) in zip(weights, earlier, strict=True))
    return now + sum(weight * (after - before) for weight, (before, after) in zip(weights, earlier, strict=True))


@pytest.mark.parametrize("kept", ["residual", "hidden_states"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("front", "back"), [(1, 0), (0, 0), (2, 1), (0, 2)])
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
@torch.no_grad()
def test_a_skipped_step_is_filled_as_worked_out_by_hand(
    form: str, front: int, back: int, order: int, kept: str
) -> None:
    model = Toy(form)
    middle = len(model.blocks) - back
    pairs: list[list[tuple[Any, Any]]] = [[], []]
    for moved in STEPS[:SKIPPED]:
        hidden, encoder = inputs_of(model, moved)
        before = through(model, model.enter(hidden), encoder, 0, front)
        after = through(model, *before, front, middle)
        for stream in (0, 1):
            pairs[stream].append((before[stream], after[stream]))
    weights = [-1.0, 2.0] if order else [0.0, 1.0]  # steps 0 and 1, taken on to step 2

    hidden, encoder = inputs_of(model, STEPS[SKIPPED])
    before = through(model, model.enter(hidden), encoder, 0, front)
    after_hidden = filled(before[0], pairs[0], kept, weights)
    read_only = model.form.pattern.Return_H_Only
    after_encoder = before[1] if read_only else filled(before[1], pairs[1], kept, weights)
    hidden, encoder = through(model, after_hidden, after_encoder, middle, len(model.blocks))
    expected = model.leave(hidden)
    expected = expected if encoder is None else expected + encoder.mean(1, keepdim=True)

    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order, calibrator_cache_type=kept)
    config = static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back)
    plain = [model(*[stream for stream in inputs_of(model, moved) if stream is not None]) for moved in STEPS]
    cache_dit.enable_cache(model.adapter(), config, calibrator)
    outputs = [model(*[stream for stream in inputs_of(model, moved) if stream is not None]) for moved in STEPS]
    assert line(model) == LINE
    assert close([outputs[SKIPPED]], expected)
    assert unlike(outputs[SKIPPED], plain[SKIPPED], by=1e-3)
    assert all(torch.equal(outputs[step], plain[step]) for step in (0, 1, 3))


@torch.no_grad()
def test_the_two_streams_may_be_predicted_in_two_ways() -> None:
    outputs = {}
    for hidden, encoder in ((True, True), (True, False), (False, True), (False, False)):
        model = Toy("0")
        calibrator = TaylorSeerCalibratorConfig(enable_calibrator=hidden, enable_encoder_calibrator=encoder)
        cache_dit.enable_cache(model.adapter(), static("FFC"), calibrator)
        outputs[hidden, encoder] = [model(*inputs_of(model, moved)) for moved in STEPS[:3]][-1]
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FFC"))
    reuse = [model(*inputs_of(model, moved)) for moved in STEPS[:3]][-1]
    assert torch.equal(outputs[False, False], reuse)
    # The output is a sum over both streams, so what one switch changes does not depend on the other.
    assert close([outputs[True, True] - outputs[False, True]], outputs[True, False] - reuse)
    assert unlike(outputs[True, False], reuse, by=1e-3)
    assert unlike(outputs[False, True], reuse, by=1e-3)
