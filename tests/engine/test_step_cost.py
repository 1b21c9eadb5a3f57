"""What a step costs beside the bare model: Python calls and operators, counted, so that no load disturbs it.

The model is FLUX's own of 2 + 4 tiny blocks. Calls are ``sys.setprofile`` events, operators are what a dispatch mode
sees; the sixth step of a request is looked at, inside ``cache_context``. Comprehensions are calls up to Python 3.11.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode

import cache_dit
from cache_dit import DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig

STEPS = 28
MASK = [1, 1, 0, 1, 0, 0, 0] + [1] * (STEPS - 7)
pytestmark = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the counts are those of Python 3.11")


class Operators(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def flux(double: int = 2, single: int = 4) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
    ).eval()


def step(model: Any, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    inputs = {
        "hidden_states": torch.randn(1, 16, 4, generator=generator),
        "encoder_hidden_states": torch.ones(1, 6, 16),
        "pooled_projections": torch.ones(1, 16),
        "timestep": torch.tensor([1 - number / STEPS]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }
    calls: Counter[str] = Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        calls[event] += 1

    with torch.no_grad(), model.cache_context("cond"):
        if number == 5:
            sys.setprofile(profile)
        try:
            model(**inputs, return_dict=False)
        finally:
            sys.setprofile(None)
    model.calls = calls["call"]


def cost(model: Any) -> tuple[int, int]:
    """(Python calls, operators) of the sixth step, each counted in a run of its own."""
    for number in range(6):
        step(model, number)
    calls: int = model.calls
    cache_dit.refresh_context(model)
    for number in range(5):
        step(model, number)
    with Operators() as operators:
        step(model, 5)
    sys.setprofile(None)
    return calls, sum(operators.seen.values())


def beside(model: Any, bare: Any) -> tuple[int, int]:
    """How many more calls and operators one model has than another."""
    (calls, operators), (fewer, less) = cost(model), cost(bare)
    return calls - fewer, operators - less


def test_a_measured_step_that_skips_nothing() -> None:
    model = flux()
    config = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1e-9, num_inference_steps=STEPS
    )
    calls, operators = beside(cache_dit.enable_cache(model, config), flux())
    assert cache_dit.summary(model, logging=False)[0].cached_steps == []
    assert len(cache_dit.summary(model, logging=False)[0].residual_diffs) == 5, "every step but the first is measured"
    assert calls <= 60
    assert operators <= 10


def test_a_cached_step_of_a_mask_beside_the_blocks_that_it_computes() -> None:
    model = flux()
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        steps_computation_mask=MASK,
        steps_computation_policy="static",
        num_inference_steps=STEPS,
    )
    calls, operators = beside(cache_dit.enable_cache(model, config), flux(1, 0))
    assert cache_dit.summary(model, logging=False)[0].cached_steps == [2, 4, 5]
    assert calls <= 44
    assert operators <= 1, "one sum adds to both streams"


def test_a_cached_step_of_a_mask_that_extrapolates_and_computes_no_block() -> None:
    model = flux()
    config = DBCacheConfig(
        Fn_compute_blocks=0,
        steps_computation_mask=MASK,
        steps_computation_policy="static",
        num_inference_steps=STEPS,
    )
    cached = cache_dit.enable_cache(model, config, calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1))
    calls, operators = beside(cached, flux(0, 0))
    assert cache_dit.summary(model, logging=False)[0].cached_steps == [2, 4, 5]
    assert calls <= 45
    assert operators <= 4, (
        "a sum for each of two snapshots, and a copy of each stream that the model's loop may write into"
    )


@pytest.mark.parametrize(("decision", "called", "most"), [("block", 211, 50), ("previous", 224, 52)])
def test_a_step_of_dbprune_that_prunes_nothing(decision: str, called: int, most: int) -> None:
    model = flux()
    config = DBPruneConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        residual_diff_threshold=1e-9,
        num_inference_steps=STEPS,
        prune_decision=decision,
    )
    calls, operators = beside(cache_dit.enable_cache(model, config), flux())
    assert cache_dit.summary(model, logging=False)[0].cached_steps == []
    assert calls <= called
    assert operators <= most, "ten for each of five blocks, or nine and six for all that is read at once"
