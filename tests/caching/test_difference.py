"""How much the first blocks' part changed: the number that decides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cache_dit.caching.shards import relative_l1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_relative_difference(dtype: torch.dtype) -> None:
    previous, current = torch.tensor([1.0, -3.0], dtype=dtype), torch.tensor([2.0, -3.0], dtype=dtype)
    assert relative_l1(previous, current) == 0.25
    assert relative_l1(current, previous) == pytest.approx(0.2)


def test_the_relative_difference_of_large_halves_does_not_overflow() -> None:
    large = torch.full((4096,), 60000.0, dtype=torch.float16)
    assert relative_l1(large, -large) == 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_gives_a_difference_that_is_not(bad: float) -> None:
    broken = torch.tensor([1.0, bad])
    assert not math.isfinite(relative_l1(torch.ones(2), broken))
    assert not math.isfinite(relative_l1(broken, broken))
    assert not math.isfinite(relative_l1(torch.zeros(2), torch.zeros(2)))


def test_a_difference_is_not_measured_below_single_precision() -> None:
    previous = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert relative_l1(previous, previous + 1e-12) == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(1, 2), torch.ones(2, device="meta"), None])
def test_what_cannot_be_compared_gives_none(other: torch.Tensor | None) -> None:
    assert relative_l1(torch.ones(2), other) is None
    assert relative_l1(other, torch.ones(2)) is None


@pytest.fixture(params=["alone", "in a group"])
def group(request: pytest.FixtureRequest) -> Iterator[Any]:
    """None, or a group of this process."""
    if request.param == "alone":
        yield None
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sick_snapshot_gives_a_difference_that_is_not_finite(group: Any, bad: float) -> None:
    previous, current = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -3.0])
    assert relative_l1(previous, current, group) == 0.25
    assert relative_l1(previous, current, group, health=torch.tensor(7.0)) == 0.25
    assert not math.isfinite(relative_l1(previous, current, group, health=torch.tensor(bad)))


def test_what_cannot_be_compared_gives_none_whatever_its_health(group: Any) -> None:
    assert relative_l1(None, torch.ones(2), group, health=None) is None
    assert relative_l1(torch.ones(3), torch.ones(2), group, health=torch.tensor(math.nan)) is None
