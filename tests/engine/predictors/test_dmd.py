"""Dynamic mode decomposition from inner products: the same as from the snapshots themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.engine.predictors.dmd import dmd
from cache_dit.engine.predictors.polynomial import taylor
from cache_dit.errors import ConfigError

SEEDS = st.integers(0, 2**32 - 1)


def gram_of(snapshots: np.ndarray) -> list[list[float]]:
    return (snapshots.T @ snapshots).tolist()


def noisy(seed: int, count: int, *, size: int = 200, noise: float = 1e-2) -> np.ndarray:
    """Snapshots (columns) of a rotation and a decay, with noise."""
    generator = np.random.default_rng(seed)
    phase = 0.4 * np.arange(count)
    course = np.stack([np.cos(phase), np.sin(phase), 0.95 ** np.arange(count)])
    return generator.normal(size=(size, 3)) @ course + noise * generator.normal(size=(size, count))


def textbook(snapshots: np.ndarray, horizon: float, *, rank: int = 0, ridge: float = 1e-8) -> np.ndarray:
    """Exact DMD by the SVD of the snapshots."""
    before, after = snapshots[:, :-1], snapshots[:, 1:]
    left, singular, right = np.linalg.svd(before, full_matrices=False)
    rank = rank or int((singular > 1e-4 * singular[0]).sum())
    left, singular, right = left[:, :rank], singular[:rank], right[:rank].T
    advanced = after @ right @ np.diag(1 / (singular + ridge))
    values, vectors = np.linalg.eig(left.T @ advanced)
    modes = advanced @ vectors
    amplitudes = np.linalg.lstsq(modes, snapshots[:, -1].astype(modes.dtype), rcond=None)[0]
    return np.real(modes @ (values.astype(complex) ** horizon * amplitudes))


@pytest.mark.parametrize(("rank", "ridge"), [(0, 1e-8), (2, 1e-8), (3, 0.0), (0, 0.5)])
@given(seed=SEEDS, count=st.integers(4, 8), gap=st.integers(1, 4), ahead=st.integers(1, 6))
def test_inner_products_give_what_the_svd_of_the_snapshots_gives(
    rank: int, ridge: float, seed: int, count: int, gap: int, ahead: int
) -> None:
    snapshots = noisy(seed, count)
    times = [float(5 + gap * index) for index in range(count)]
    weights = dmd(8, rank=rank, ridge=ridge).coefficients(times, times[-1] + ahead, gram_of(snapshots))
    expected = textbook(snapshots, ahead / gap, rank=rank, ridge=ridge)
    assert np.abs(snapshots @ weights - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("horizon", [0.5, 1.0, 2.25])
def test_linear_dynamics_go_on_as_they_are_by_fractions_of_the_spacing_too(horizon: float) -> None:
    generator = np.random.default_rng(1)
    modes = generator.normal(size=(50, 3))

    def state(time: float) -> np.ndarray:
        return modes @ [0.9**time, 0.8**time * math.cos(0.7 * time), 0.8**time * math.sin(0.7 * time)]

    snapshots = np.stack([state(index) for index in range(6)], axis=1)
    weights = dmd().coefficients([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 10 + 2 * horizon, gram_of(snapshots))
    assert snapshots @ weights == pytest.approx(state(5 + horizon), abs=1e-6)


@given(value=st.floats(1e-2, 1e6), count=st.integers(1, 7), ahead=st.integers(1, 5))
def test_a_constant_stays(value: float, count: int, ahead: int) -> None:
    times = [float(index) for index in range(count)]
    weights = dmd().coefficients(times, times[-1] + ahead, [[value * value] * count] * count)
    assert sum(weights) == pytest.approx(1, abs=1e-5)


def test_only_the_evenly_spaced_end_is_taken() -> None:
    snapshots = noisy(2, 6)
    times = [0.0, 1.0, 4.0, 6.0, 8.0, 10.0]  # the even end begins at 4
    weights = dmd().coefficients(times, 12.0, gram_of(snapshots))
    assert weights[:2] == [0.0, 0.0]
    assert weights[2:] == dmd().coefficients(times[2:], 12.0, gram_of(snapshots[:, 2:]))
    assert snapshots[:, 2:] @ weights[2:] == pytest.approx(textbook(snapshots[:, 2:], 1.0), abs=1e-9)


@pytest.mark.parametrize("times", [[3.0], [0.0, 2.0], [0.0, 2.0, 4.0], [0.0, 1.0, 2.0, 3.0, 5.0], [0.0, 1.0, 3.0, 5.0]])
def test_with_fewer_than_four_even_ones_it_is_a_straight_line(times: list[float]) -> None:
    gram = gram_of(noisy(3, len(times)))
    assert dmd().coefficients(times, 7.0, gram) == taylor(1).coefficients(times, 7.0)


def test_values_older_than_it_wants_change_nothing() -> None:
    snapshots = noisy(4, 7)
    times = [float(index) for index in range(7)]
    weights = dmd(5).coefficients(times, 8.0, gram_of(snapshots))
    assert weights == [0.0, 0.0, *dmd(5).coefficients(times[2:], 8.0, gram_of(snapshots[:, 2:]))]


def test_it_gives_back_the_steps_it_was_given() -> None:
    gram = gram_of(noisy(5, 5))
    times = [0.0, 1.0, 2.0, 3.0, 4.0]
    for index, time in enumerate(times):
        assert dmd().coefficients(times, time, gram) == [float(position == index) for position in range(5)]


@pytest.mark.parametrize(
    ("gram", "target"),
    [
        ([[math.nan] * 4] * 4, 4.0),
        ([[math.inf] * 4] * 4, 4.0),
        ([[0.0] * 4, [0.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0]], 4.0),  # all but the newest are zero
        ([[4.0 ** (i + j) for j in range(4)] for i in range(4)], 1e6),  # 4 to the power of a million
    ],
    ids=["nan", "infinite", "no dynamics", "overflow"],
)
def test_a_fit_that_fails_gives_way_to_reuse_and_says_so(
    gram: list[list[float]], target: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert dmd().coefficients([0.0, 1.0, 2.0, 3.0], target, gram) == [0.0, 0.0, 0.0, 1.0]
    assert "the last value is reused" in caplog.text


def test_snapshots_of_nothing_but_zeros_are_reused_quietly(caplog: pytest.LogCaptureFixture) -> None:
    assert dmd().coefficients([0.0, 1.0, 2.0, 3.0], 4.0, [[0.0] * 4] * 4) == [0.0, 0.0, 0.0, 1.0]
    assert not caplog.text


def test_all_precisions_give_the_same() -> None:
    gram = gram_of(noisy(6, 5))
    results = [
        dmd(svd_precision=precision).coefficients([0.0, 1.0, 2.0, 3.0, 4.0], 5.0, gram)
        for precision in ("low", "medium", "high")
    ]
    assert results[0] == results[1] == results[2]


def test_more_modes_than_the_values_carry_are_not_made_up() -> None:
    snapshots = np.outer(np.random.default_rng(7).normal(size=50), 0.9 ** np.arange(6))  # one mode
    times, gram = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], gram_of(snapshots)
    weights = dmd(rank=4).coefficients(times, 6.0, gram)
    assert weights == dmd(rank=1).coefficients(times, 6.0, gram)
    assert snapshots @ weights == pytest.approx(snapshots[:, -1] * 0.9, abs=1e-6)


@pytest.mark.parametrize("gram", [[], [[1.0]], [[1.0] * 4] * 3, [[1.0] * 3] * 4])
def test_inner_products_are_one_row_and_column_for_each_time(gram: list[list[float]]) -> None:
    with pytest.raises(ConfigError, match="gram is not valid: expected 4 rows and columns"):
        dmd().coefficients([0.0, 1.0, 2.0, 3.0], 4.0, gram)


@pytest.mark.parametrize("times", [[], [0.0, 1.0, 1.0, 2.0], [0.0, 1.0, math.nan, 2.0]])
def test_times_must_ascend_and_be_finite(times: list[float]) -> None:
    with pytest.raises(ConfigError, match="times="):
        dmd().coefficients(times, 4.0, [[1.0] * len(times)] * len(times))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("history", 3),
        ("history", 4.5),
        ("rank", -1),
        ("ridge", -1e-9),
        ("ridge", math.inf),
        ("ridge", math.nan),
        ("svd_precision", "exact"),
    ],
)
def test_values_that_cannot_work_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}="):
        dmd(**{key: value})  # type: ignore[arg-type]
