"""What the tests mean by "equal", and that they say it in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from tests.kit.equality import close, same, unlike

TESTS = Path(__file__).parents[1]

#: Comparisons with a tolerance that none states here but the kit, or as a bound with its reason beside it.
OWN_TOLERANCES = {"allclose", "isclose", "assert_close", "assert_allclose", "assert_almost_equal"}

KIT = TESTS / "kit" / "equality.py"


def own_tolerances(source: str) -> list[str]:
    """The names of such comparisons in a source text, each with its line."""
    names = [
        (node.lineno, node.attr if isinstance(node, ast.Attribute) else node.id)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute | ast.Name)
    ]
    return [f"{line}: {name}" for line, name in names if name in OWN_TOLERANCES]


def test_no_test_states_a_tolerance_for_results_of_kernels() -> None:
    found = {str(file): own_tolerances(file.read_text()) for file in TESTS.rglob("*.py") if file != KIT}
    assert {file: lines for file, lines in found.items() if lines} == {}, "use `same` or `close` of tests/kit/equality"
    assert own_tolerances("assert all(map(torch.allclose, a, b))") == ["1: allclose"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_what_differs_by_so_many_roundings_is_close_and_what_differs_by_more_is_not(
    dtype: torch.dtype, size: float
) -> None:
    expected = (size * torch.ones(4, 5)).to(dtype)
    eps = torch.finfo(dtype).eps
    for depth in (2, 8):
        assert close(expected + size * depth * eps, expected, depth=depth)
        off = close(expected + 3 * size * depth * eps, expected, depth=depth)
        assert not off
        assert off.share == pytest.approx(1.5, rel=0.2)  # of an allowance of its own size and that of its neighbours
        assert close(expected + 3 * size * depth * eps, expected, depth=depth, growth=2)


def test_small_numbers_beside_large_ones_are_rounded_as_those_are() -> None:
    expected = torch.tensor([0.0, 0.0, 0.0, 2000.0])
    off = torch.tensor([1e-4, 0.0, 0.0, 0.0])
    assert close(expected + off, expected, depth=1)
    assert not close(off[:3], expected[:3], depth=80)


def test_the_coarsest_dtype_on_the_way_counts() -> None:
    assert not close(torch.ones(3) + 0.01, torch.ones(3), depth=1)
    assert close(torch.ones(3) + 0.01, torch.ones(3), depth=1, dtype=torch.bfloat16)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_close_to_nothing_else(bad: float) -> None:
    finite, broken = torch.ones(2), torch.tensor([1.0, bad])
    assert not close(broken, finite)
    assert not close(finite, broken)
    assert bool(close(broken, broken)) is (bad == bad)
    assert close(broken, broken, equal_nan=True)


def test_lists_are_compared_one_by_one_or_all_with_one() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    assert close([one, two], [one, two]) and same([one, two], [one, two])
    assert not close([one, two], one) and not same([one, two], [two, one]) and not same([one], [one, two])
    assert close([one, one], one) and same(one, one.clone()) and not same(one, one + 1e-7)
    assert unlike(one, two, by=0.5) and not unlike(one, two, by=1)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        close([one], [one, two])


def test_nothing_another_shape_or_another_dtype_is_no_comparison() -> None:
    with pytest.raises(AssertionError, match="nothing"):
        close([], torch.ones(1))
    with pytest.raises(AssertionError, match=r"\(1, 2\) of torch.float32 beside \(2,\)"):
        close(torch.ones(1, 2), torch.ones(2))
    with pytest.raises(AssertionError, match="float64"):
        close(torch.ones(2), torch.ones(2).double())
