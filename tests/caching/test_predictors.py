"""Predictors: exact where they must be, and never more than weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.caching import predictors
from cache_dit.caching.predictors import (
    Predictor,
    make_predictor,
    register_predictor,
    reuse,
    taylor,
)
from cache_dit.config import CalibratorConfig, TaylorSeerCalibratorConfig
from cache_dit.errors import ConfigError

ORDERS = range(5)
GAPS = st.lists(st.integers(1, 6), min_size=0, max_size=7)


def times_of(gaps: list[int], start: int = 3) -> list[float]:
    times = [float(start)]
    for gap in gaps:
        times.append(times[-1] + gap)
    return times


def predict(predictor: Predictor, times: list[float], values: list[float], target: float) -> float:
    return sum(c * value for c, value in zip(predictor.coefficients(times, target), values, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@given(data=st.data())
def test_order_n_is_exact_on_polynomials_of_degree_n_at_uneven_steps(order: int, data: st.DataObject) -> None:
    gaps = data.draw(st.lists(st.integers(1, 6), min_size=order, max_size=order + 3))
    coefficients = data.draw(st.lists(st.floats(-1, 1), min_size=order + 1, max_size=order + 1))
    times = times_of(gaps)
    target = times[-1] + data.draw(st.integers(1, 6))

    def polynomial(time: float) -> float:
        return sum(c * (time / 10) ** power for power, c in enumerate(coefficients))

    values = [polynomial(time) for time in times]
    weights = taylor(order).coefficients(times, target)
    # Rounding grows with the terms of the sum, not with its result: a few units in the last place of their magnitudes.
    scale = 1 + sum(abs(weight * value) for weight, value in zip(weights, values, strict=True))
    assert predict(taylor(order), times, values, target) == pytest.approx(polynomial(target), rel=0, abs=1e-13 * scale)


@pytest.mark.parametrize("order", ORDERS)
@given(gaps=GAPS, ahead=st.integers(1, 6))
def test_there_is_one_weight_for_each_value_and_they_add_up_to_one(order: int, gaps: list[int], ahead: int) -> None:
    times = times_of(gaps)
    weights = taylor(order).coefficients(times, times[-1] + ahead)
    assert len(weights) == len(times)
    assert all(weight == 0 for weight in weights[: -taylor(order).history])
    assert sum(weights) == pytest.approx(1, rel=0, abs=1e-14 * sum(map(abs, weights)))


@pytest.mark.parametrize("order", ORDERS)
@given(gaps=GAPS)
def test_a_predictor_gives_back_the_steps_it_was_given(order: int, gaps: list[int]) -> None:
    times = times_of(gaps)
    for index in range(max(0, len(times) - taylor(order).history), len(times)):
        weights = taylor(order).coefficients(times, times[index])
        assert weights == [float(position == index) for position in range(len(times))]


@given(gaps=GAPS, ahead=st.integers(1, 6))
def test_with_fewer_values_the_order_is_lower(gaps: list[int], ahead: int) -> None:
    times = times_of(gaps)
    target = times[-1] + ahead
    assert taylor(9).coefficients(times, target) == taylor(len(times) - 1).coefficients(times, target)


@given(values=st.lists(st.floats(-10, 10), min_size=2, max_size=6), interval=st.integers(1, 8), ahead=st.integers(1, 8))
def test_order_one_at_even_gaps_is_taylorseer(values: list[float], interval: int, ahead: int) -> None:
    times = [float(interval * index) for index in range(len(values))]
    difference = values[-1] - values[-2]
    textbook = values[-1] + difference / interval * ahead
    ours = predict(taylor(1), times, values, times[-1] + ahead)
    assert ours == pytest.approx(textbook, rel=0, abs=1e-12)


def test_a_straight_line_through_uneven_steps_goes_on_straight() -> None:
    times = [0.0, 1.0, 4.0, 7.0]
    for order in (1, 2, 3):
        assert predict(taylor(order), times, times, 10.0) == pytest.approx(10.0, abs=1e-12)


def test_reuse_is_the_last_value() -> None:
    assert reuse.history == 1
    assert reuse.coefficients([0.0, 1.0, 5.0], 7.0) == [0.0, 0.0, 1.0]
    assert taylor(0).coefficients([0.0, 1.0], 7.0) == [0.0, 1.0]


@pytest.mark.parametrize("order", ORDERS)
def test_order_n_wants_n_plus_one_values(order: int) -> None:
    assert taylor(order).history == order + 1


@pytest.mark.parametrize("times", [[], [1.0, 1.0], [2.0, 1.0], [0.0, 3.0, 3.0]])
def test_times_must_ascend(times: list[float]) -> None:
    for predictor in (reuse, taylor(2)):
        with pytest.raises(ConfigError, match="expected at least one, each later than the one before"):
            predictor.coefficients(times, 5.0)


@pytest.mark.parametrize("order", [-1, 1.5, True])
def test_an_order_is_an_integer_of_at_least_zero(order: int) -> None:
    with pytest.raises(ConfigError, match="order="):
        taylor(order)


def test_each_stream_has_its_own_switch() -> None:
    config = TaylorSeerCalibratorConfig(enable_encoder_calibrator=False, taylorseer_order=2)
    assert make_predictor(config).history == 3
    assert make_predictor(config, encoder=True) is reuse
    assert make_predictor(CalibratorConfig()) is reuse
    assert make_predictor(None) is reuse


def test_the_plain_configuration_names_a_predictor_and_its_arguments() -> None:
    config = CalibratorConfig(enable_calibrator=True, calibrator_kwargs={"n_derivatives": 3})
    assert make_predictor(config).history == 4
    assert make_predictor(CalibratorConfig(enable_calibrator=True)).history == 2


def test_unknown_predictors_and_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'taylor'; did you mean 'taylorseer'"):
        make_predictor(CalibratorConfig(enable_calibrator=True, calibrator_type="taylor"))
    with pytest.raises(ConfigError, match="unknown key 'order'; known are n_derivatives"):
        make_predictor(CalibratorConfig(enable_calibrator=True, calibrator_kwargs={"order": 3}))


def test_a_registered_predictor_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "_factories", {})
    mean = Predictor("mean", 2, lambda times, target: [1 / len(times)] * len(times))
    register_predictor(name="mean", factory=lambda config: mean)
    assert make_predictor(CalibratorConfig(enable_calibrator=True, calibrator_type="mean")) is mean


@pytest.mark.parametrize("name", ["", "Mean", "a b", "2nd", None, "taylorseer"])
def test_bad_and_taken_names_are_refused_with_an_example(name: str) -> None:
    with pytest.raises(ConfigError, match=r"e\.g\. register_predictor\(name='hermite'"):
        register_predictor(name=name, factory=lambda config: reuse)


def test_a_factory_must_be_callable() -> None:
    with pytest.raises(ConfigError, match="expected a function of the calibrator configuration"):
        register_predictor(name="mean", factory=reuse)  # type: ignore[arg-type]
