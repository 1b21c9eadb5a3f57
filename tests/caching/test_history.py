"""The snapshots of one stream, and their weighted sum."""

from __future__ import annotations

import pytest
import torch

from cache_dit.caching.history import History, alike


def test_the_newest_snapshots_are_kept() -> None:
    history = History(2)
    for time in range(4):
        history.append(time, torch.full((3,), float(time)))
    assert history.times == [2, 3]
    assert [snapshot[0].item() for snapshot in history.snapshots] == [2, 3]
    assert history.nbytes == 2 * 3 * 4
    history.clear()
    assert (len(history), history.nbytes, history.times) == (0, 0, [])


@pytest.mark.parametrize(
    "other", [torch.zeros(4), torch.zeros(3, dtype=torch.float16), torch.zeros(3, device="meta"), torch.zeros(1, 3)]
)
def test_another_shape_dtype_or_device_drops_what_was_kept(other: torch.Tensor) -> None:
    history = History(3)
    history.append(0, torch.zeros(3))
    history.append(1, torch.zeros(3))
    history.append(2, other)
    assert history.times == [2]
    assert history.snapshots[0] is not None and alike(history.snapshots[0], other)
    assert not alike(torch.zeros(3), other)


def test_the_weighted_sum_is_that_of_the_newest_snapshots() -> None:
    history = History(3)
    for time, value in enumerate((1.0, 10.0, 100.0)):
        history.append(time, torch.full((2,), value))
    assert history.weighted_sum([1.0, 2.0, 3.0]).tolist() == [321.0, 321.0]
    assert history.weighted_sum([-1.0, 2.0]).tolist() == [190.0, 190.0]
    assert history.weighted_sum([0.5]).tolist() == [50.0, 50.0]
    assert [snapshot[0].item() for snapshot in history.snapshots] == [1, 10, 100]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    history = History(3)
    for time, value in enumerate((1.0, 1.0078125, 1.015625)):
        history.append(time, torch.full((2,), value, dtype=dtype))
    total = history.weighted_sum([36.0, -80.0, 45.0])
    assert total.dtype == dtype
    exact = 36 * 1.0 - 80 * 1.0078125 + 45 * 1.015625
    assert total[0].item() == torch.tensor(exact, dtype=dtype).item()


def test_snapshots_hold_no_graph() -> None:
    history = History(1)
    history.append(0, torch.ones(2, requires_grad=True) * 2)
    assert not history.snapshots[0].requires_grad


def test_nothing_is_alike_only_to_nothing() -> None:
    assert alike(None, None)
    assert not alike(None, torch.zeros(1))
