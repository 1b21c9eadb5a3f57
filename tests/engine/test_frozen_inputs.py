"""The same inputs at every step: then a skipped step must give the true output, to rounding.

It is the strongest test of anchors, layouts, pairing and order, for every way in which blocks are called.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import CalibratorConfig, TaylorSeerCalibratorConfig
from tests.kit.equality import close, same, unlike
from tests.kit.toys import FORMS, Joined, Toy, counted, dynamic, frozen_run, line, static, stream_inputs

LINE = "FFCCFC"

#: Fn, Bn
SPLITS = [(1, 0), (1, 1), (2, 1), (0, 0), (0, 2), (3, 1)]
CALIBRATORS: dict[str, CalibratorConfig | None] = {
    "reuse": None,
    "taylor": TaylorSeerCalibratorConfig(taylorseer_order=1),
    "states reused": TaylorSeerCalibratorConfig(taylorseer_order=0, calibrator_cache_type="hidden_states"),
    "states by taylor": TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type="hidden_states"),
}


def check(model: Any, inputs: Any, config: Any, calibrator: CalibratorConfig | None = None, **described: Any) -> None:
    """Frozen inputs under a configuration that must follow ``LINE``: right outputs, and skipped blocks not called."""
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(**described), config, calibrator)
    with counted(model.all_blocks) as fired:
        outputs = frozen_run(model, inputs, len(LINE))
    assert close(outputs, expected)
    stats = cache_dit.summary(model.adapter(**described), logging=False)
    assert [list(chain.steps_line.values()) for chain in stats] == [[LINE]] * len(stats)
    assert sum(fired.values()) == sum(chain.executed_blocks for chain in stats) < len(LINE) * len(model.all_blocks)


@pytest.mark.parametrize(("front", "back"), SPLITS)
@pytest.mark.parametrize("keywords", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("form", FORMS)
def test_a_skipped_step_gives_the_true_output(form: str, keywords: bool, front: int, back: int) -> None:
    model = Toy(form, keywords=keywords)
    check(model, stream_inputs(model), static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize(("front", "back"), [(1, 0), (2, 1), (0, 1)])
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
def test_whatever_is_kept_and_however_it_is_predicted(form: str, front: int, back: int, calibrator: str) -> None:
    model = Toy(form)
    config = static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back)
    check(model, stream_inputs(model), config, CALIBRATORS[calibrator])


@pytest.mark.parametrize("form", FORMS)
def test_a_measured_step_is_skipped_and_gives_the_true_output(form: str) -> None:
    model = Toy(form)
    config = dynamic(steps_computation_mask=[1, 1, 0, 0, 1, 0], max_warmup_steps=2, Bn_compute_blocks=1)
    check(model, stream_inputs(model), config)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize(("front", "back"), SPLITS)
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
def test_two_lists_as_one_chain(form: str, front: int, back: int, calibrator: str) -> None:
    model = Toy(form, (3, 3))
    config = static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back)
    check(model, stream_inputs(model), config, CALIBRATORS[calibrator], merge=True)


@pytest.mark.parametrize(("front", "back"), [(1, 0), (1, 1), (0, 0), (0, 1), (2, 0)])
@pytest.mark.parametrize("form", ["0", "1", "2", "3", "4", "5"])
def test_two_lists_as_two_chains(form: str, front: int, back: int) -> None:
    model = Toy(form, (3, 4))
    check(model, stream_inputs(model), static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back))


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize(("front", "back"), [(1, 0), (1, 1), (2, 3), (0, 0), (3, 0), (4, 1), (0, 3), (0, 4)])
@pytest.mark.parametrize("join", ["eh", "he"])
def test_two_lists_of_which_the_second_reads_both_streams_as_one(
    join: str, front: int, back: int, calibrator: str
) -> None:
    model = Joined(join)
    config = static(LINE, Fn_compute_blocks=front, Bn_compute_blocks=back)
    check(model, stream_inputs(), config, CALIBRATORS[calibrator])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_every_dtype(dtype: torch.dtype) -> None:
    model = Toy("1").to(dtype)
    inputs = [stream.to(dtype) for stream in stream_inputs()]
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE), CALIBRATORS["taylor"])
    outputs = frozen_run(model, inputs, len(LINE))
    assert {output.dtype for output in outputs} == {dtype}
    assert close(outputs, expected, depth=4)  # the residual, the two sums of its streams, the block after


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "config", [dynamic(residual_diff_threshold=0.0), static("FFFF"), static("FFFF", Bn_compute_blocks=1)]
)
def test_with_every_step_computed_outputs_are_those_of_the_plain_model_bit_for_bit(form: str, config: Any) -> None:
    model = Toy(form)
    inputs = stream_inputs(model)
    expected = frozen_run(model, inputs, 4)
    cache_dit.enable_cache(model.adapter(), config)
    assert same(frozen_run(model, inputs, 4), expected)
    assert line(model) == "FFFF"


@pytest.mark.parametrize("front", [0, 1])
def test_under_inference_mode(front: int) -> None:
    model = Toy("0")
    inputs = stream_inputs()
    expected = model(*inputs)
    cache_dit.enable_cache(model.adapter(), static(LINE, Fn_compute_blocks=front))
    with torch.inference_mode():
        outputs = [model(*inputs) for _ in LINE]
    assert close(outputs, expected)


def test_the_toys_notice_a_missing_prediction() -> None:
    model = Toy("0")
    inputs = stream_inputs()
    expected = model(*inputs)
    model.blocks = model.blocks[:1]  # all that a skipped step would give without one
    assert unlike(frozen_run(model, inputs, 1), expected, by=0.1)
