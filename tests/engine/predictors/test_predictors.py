"""Predictors: exact where they must be, and never more than weights."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.hermite import hermval

from cache_dit.config import CalibratorConfig, TaylorSeerCalibratorConfig
from cache_dit.config.calibrator import (
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
)
from cache_dit.engine.predictors import registry as predictors
from cache_dit.engine.predictors.base import Predictor, reuse
from cache_dit.engine.predictors.dmd import dmd
from cache_dit.engine.predictors.foca import foca
from cache_dit.engine.predictors.hermite import hermite
from cache_dit.engine.predictors.polynomial import taylor
from cache_dit.engine.predictors.registry import make_predictor, register_predictor
from cache_dit.errors import ConfigError

ORDERS = range(5)
GAPS = st.lists(st.integers(1, 6), min_size=0, max_size=7)
BY_TIMES = [
    reuse,
    *map(taylor, ORDERS),
    taylor(2, 0.3),
    *map(hermite, ORDERS),
    foca(),
]  # all but DMD, which wants inner products too
every_predictor = pytest.mark.parametrize("predictor", BY_TIMES, ids=lambda predictor: predictor.name)


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


@every_predictor
@given(gaps=GAPS, ahead=st.integers(1, 6))
def test_there_is_one_weight_for_each_value_and_they_add_up_to_one(
    predictor: Predictor, gaps: list[int], ahead: int
) -> None:
    times = times_of(gaps)
    weights = predictor.coefficients(times, times[-1] + ahead)
    assert len(weights) == len(times)
    assert all(weight == 0 for weight in weights[: -predictor.history])
    assert sum(weights) == pytest.approx(1, rel=0, abs=1e-14 * (1 + sum(map(abs, weights))))


@every_predictor
@given(gaps=GAPS)
def test_a_predictor_gives_back_the_steps_it_was_given(predictor: Predictor, gaps: list[int]) -> None:
    times = times_of(gaps)
    for index in range(max(0, len(times) - predictor.history), len(times)):
        weights = predictor.coefficients(times, times[index])
        assert weights == [float(position == index) for position in range(len(times))]


@every_predictor
@given(gaps=GAPS, ahead=st.integers(1, 6))
def test_values_older_than_a_predictor_wants_change_nothing(predictor: Predictor, gaps: list[int], ahead: int) -> None:
    times = times_of(gaps)
    wanted = times[-predictor.history :]
    weights = predictor.coefficients(times, times[-1] + ahead)
    assert weights[-len(wanted) :] == predictor.coefficients(wanted, times[-1] + ahead)


@every_predictor
def test_with_one_value_every_predictor_reuses_it(predictor: Predictor) -> None:
    assert predictor.coefficients([3.0], 5.0) == [1.0]


@every_predictor
@given(
    times=st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=6, unique=True).map(sorted),
    ahead=st.floats(0, 1e308) | st.floats(0, 100),
)
def test_weights_are_finite_at_any_times(predictor: Predictor, times: list[float], ahead: float) -> None:
    target = min(times[-1] + ahead, 1.7e308)
    assert all(map(math.isfinite, predictor.coefficients(times, target)))


def test_what_overflows_gives_way_to_reuse_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert taylor(2).coefficients([0.0, 1e-200, 2e-200], 1e200) == [0.0, 0.0, 1.0]
    assert "the last value is reused" in caplog.text


@pytest.mark.parametrize("start", [-1000.0, 0.0, 2.0**30])
@every_predictor
def test_only_distances_in_time_matter(predictor: Predictor, start: float) -> None:
    times, target = [0.0, 1.0, 4.0, 6.0, 7.0], 9.0
    moved = predictor.coefficients([start + time for time in times], start + target)
    assert moved == predictor.coefficients(times, target)


@given(gaps=GAPS, ahead=st.integers(1, 6))
def test_with_fewer_values_the_order_is_lower(gaps: list[int], ahead: int) -> None:
    times = times_of(gaps)
    target = times[-1] + ahead
    assert taylor(9).coefficients(times, target) == taylor(len(times) - 1).coefficients(times, target)


SERIES = st.lists(st.tuples(st.integers(1, 6), st.floats(-10, 10)), min_size=1, max_size=7)
"""Values and how long after the one before each of them was computed."""


def split(series: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return times_of([gap for gap, _ in series[1:]]), [value for _, value in series]


@pytest.mark.parametrize("order", [0, 1])
@given(series=SERIES, ahead=st.integers(1, 8))
def test_up_to_order_one_it_is_taylorseers_ladder_of_differences(
    order: int, series: list[tuple[int, float]], ahead: int
) -> None:
    times, values = split(series)
    ladder: list[float] = []
    for index, value in enumerate(values):
        rungs = [value]
        for rung in ladder[:order]:
            rungs.append((rungs[-1] - rung) / (times[index] - times[index - 1]))
        ladder = rungs
    textbook = sum(rung * ahead**power / math.factorial(power) for power, rung in enumerate(ladder))
    assert predict(taylor(order), times, values, times[-1] + ahead) == pytest.approx(textbook, rel=0, abs=1e-10)


@pytest.mark.parametrize("order", ORDERS)
@given(series=SERIES, ahead=st.integers(1, 8))
def test_newtons_form_by_divided_differences_is_the_same_polynomial(
    order: int, series: list[tuple[int, float]], ahead: int
) -> None:
    times, values = split(series)
    target = times[-1] + ahead
    nodes, column = times[-order - 1 :][::-1], values[-order - 1 :][::-1]
    textbook, basis = 0.0, 1.0
    for width in range(len(nodes)):
        textbook += column[0] * basis
        basis *= target - nodes[width]
        gaps = [nodes[index + width + 1] - nodes[index] for index in range(len(nodes) - width - 1)]
        column = [(right - left) / gap for (left, right), gap in zip(pairwise(column), gaps, strict=True)]
    newton = make_predictor(NewtonCalibratorConfig(newton_order=order))
    scale = 1 + sum(map(abs, newton.coefficients(times, target))) * 10
    assert predict(newton, times, values, target) == pytest.approx(textbook, rel=0, abs=1e-12 * scale)


def test_a_straight_line_through_uneven_steps_goes_on_straight() -> None:
    times = [0.0, 1.0, 4.0, 7.0]
    for predictor in (*map(taylor, (1, 2, 3)), foca(), hermite(1, scale=math.sqrt(0.5))):
        assert predict(predictor, times, times, 10.0) == pytest.approx(10.0, abs=1e-12)


def test_reuse_is_the_last_value() -> None:
    assert reuse.history == 1
    assert reuse.coefficients([0.0, 1.0, 5.0], 7.0) == [0.0, 0.0, 1.0]
    assert taylor(0).coefficients([0.0, 1.0], 7.0) == [0.0, 1.0]


@pytest.mark.parametrize("order", ORDERS)
def test_order_n_wants_n_plus_one_values(order: int) -> None:
    assert taylor(order).history == order + 1


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("order", ORDERS)
@given(values=st.lists(st.floats(-1, 1), min_size=5, max_size=7), interval=st.integers(1, 8), ahead=st.integers(1, 8))
def test_hermite_at_even_gaps_is_hicache_by_finite_differences(
    order: int, scale: float, values: list[float], interval: int, ahead: int
) -> None:
    times = [float(interval * index) for index in range(len(values))]
    differences, textbook, size = values, values[-1], 1.0
    for degree in range(1, order + 1):
        differences = [(later - earlier) / interval for earlier, later in pairwise(differences)]
        polynomial = scale**degree * hermval(scale * ahead, [0] * degree + [1])
        textbook += differences[-1] / math.factorial(degree) * polynomial
        size += abs(polynomial) * 2**degree
    ours = predict(hermite(order, scale), times, values, times[-1] + ahead)
    assert ours == pytest.approx(textbook, rel=0, abs=1e-13 * size)


@given(gaps=st.lists(st.integers(1, 6), min_size=2, max_size=4), ahead=st.integers(1, 6))
def test_hermites_derivatives_are_exact_at_uneven_gaps(gaps: list[int], ahead: int) -> None:
    # (t - last)(t - the one before) has a known first divided difference, 0, and a second derivative of 2.
    times = times_of(gaps)
    values = [(time - times[-1]) * (time - times[-2]) for time in times]
    x = 0.5 * ahead
    expected = 2 / 2 * 0.5**2 * (4 * x**2 - 2)
    assert predict(hermite(2, 0.5), times, values, times[-1] + ahead) == pytest.approx(expected, abs=1e-9)


class StatefulFoCa:
    """FoCa as its docstring says it, step by step, with every difference divided by its time."""

    def __init__(self) -> None:
        self.full: list[tuple[float, float]] = []
        self.window: list[tuple[float, float]] = []
        self.farthest = 0.0

    @staticmethod
    def slope(points: list[tuple[float, float]]) -> float:
        return (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])

    def computed(self, time: float, value: float) -> None:
        self.full.append((time, value))
        self.window.append((time, value))

    def forecast(self, time: float) -> float:
        last, value = self.full[-1]
        ahead = time - last
        if len(self.full) < 2:
            return value
        if ahead > 3:
            return value + 3 / ahead * (self.farthest - value)
        self.farthest = value + ahead / 2 * (self.slope(self.full) + self.slope(self.window))
        self.window.append((time, self.farthest))
        return self.farthest


@given(series=SERIES.map(lambda series: series[:4]), ahead=st.integers(1, 9))
def test_foca_is_its_recursion_step_by_step(series: list[tuple[int, float]], ahead: int) -> None:
    times, values = split(series)
    textbook = StatefulFoCa()
    known = dict(zip(times, values, strict=True))
    forecast = math.nan
    for step in range(int(times[0]), int(times[-1]) + ahead + 1):
        if step in known:
            textbook.computed(step, known[step])
        else:
            forecast = textbook.forecast(step)
    assert predict(foca(), times, values, times[-1] + ahead) == pytest.approx(forecast, rel=0, abs=1e-10)


@given(gaps=GAPS.filter(bool), ahead=st.floats(0.25, 3))
def test_foca_continues_a_straight_line_for_three_steps(gaps: list[int], ahead: float) -> None:
    times = times_of(gaps)
    assert predict(foca(), times, times, times[-1] + ahead) == pytest.approx(times[-1] + ahead, abs=1e-9)


def test_foca_calibrates_by_its_own_forecasts() -> None:
    # 0, 1 and 16 at steps 0, 1 and 4: the forecasts at 2 and 3 are 2 and 3, so the window rises by 13 in one step and
    # the computed values by 5: 16 + (5 + 13) / 2.
    assert predict(foca(), [0.0, 1.0, 4.0], [0.0, 1.0, 16.0], 5.0) == pytest.approx(25.0)


def test_foca_goes_back_to_the_last_value_beyond_three_steps() -> None:
    times = [0.0, 2.0]
    ahead = [predict(foca(), times, [0.0, 2.0], 2.0 + steps) - 2 for steps in (3, 4, 6, 9, 900)]
    assert ahead == pytest.approx([3, 9 / 4, 9 / 6, 1, 0.01])


def test_foca_and_dmd_look_ahead_only() -> None:
    with pytest.raises(ConfigError, match="expected a time after the last one, 4"):
        foca().coefficients([0.0, 1.0, 4.0], 2.0)
    with pytest.raises(ConfigError, match="expected a time after the last one, 4"):
        dmd().coefficients([0.0, 1.0, 4.0], 2.0, [[1.0] * 3] * 3)


@pytest.mark.parametrize("times", [[], [1.0, 1.0], [2.0, 1.0], [0.0, 3.0, 3.0]])
def test_times_must_ascend(times: list[float]) -> None:
    for predictor in BY_TIMES:
        with pytest.raises(ConfigError, match="expected at least one, each later than the one before"):
            predictor.coefficients(times, 5.0)


@pytest.mark.parametrize(
    ("times", "target"), [([0.0, math.nan], 2.0), ([-math.inf, 0.0], 2.0), ([0.0, 1.0], math.inf), ([0.0], math.nan)]
)
@every_predictor
def test_times_must_be_finite(predictor: Predictor, times: list[float], target: float) -> None:
    with pytest.raises(ConfigError, match="expected finite numbers"):
        predictor.coefficients(times, target)


@pytest.mark.parametrize("order", [-1, 1.5, True])
def test_an_order_is_an_integer_of_at_least_zero(order: int) -> None:
    for family in (taylor, hermite):
        with pytest.raises(ConfigError, match="order="):
            family(order)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "wide"])
def test_hermites_scale_is_a_finite_number_above_zero(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale="):
        hermite(2, scale)


@pytest.mark.parametrize("damping", [-0.1, 1.1, math.nan, "half"])
def test_a_damping_is_a_number_from_zero_to_one(damping: object) -> None:
    with pytest.raises(ConfigError, match="damping"):
        taylor(1, damping)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="damping"):
        TaylorSeerCalibratorConfig(damping=damping)  # type: ignore[arg-type]


@given(gaps=GAPS, ahead=st.integers(1, 6), damping=st.floats(0, 1))
def test_a_damped_polynomial_lies_between_reuse_and_the_polynomial(gaps: list[int], ahead: int, damping: float) -> None:
    times = times_of(gaps)
    target = times[-1] + ahead
    found = taylor(2, damping).coefficients(times, target)
    whole = taylor(2).coefficients(times, target)
    last = reuse.coefficients(times, target)
    assert found == pytest.approx([(1 - damping) * a + damping * b for a, b in zip(last, whole, strict=True)])


def test_the_damping_reaches_the_predictor_from_its_configuration() -> None:
    made = make_predictor(TaylorSeerCalibratorConfig(taylorseer_order=1, damping=0.25))
    assert made.coefficients([0.0, 2.0], 4.0) == [-0.25, 1.25]
    assert TaylorSeerCalibratorConfig(damping=0.25).strify() == "T1O1D0.25"


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


def test_each_calibrator_configuration_makes_its_predictor() -> None:
    times, target = [0.0, 1.0, 3.0, 6.0], 7.0
    for config, predictor in (
        (NewtonCalibratorConfig(newton_order=3), taylor(3)),
        (HermiteCalibratorConfig(hermite_order=1, hermite_scale=0.25), hermite(1, 0.25)),
        (FoCaCalibratorConfig(), foca()),
        (CalibratorConfig(enable_calibrator=True, calibrator_type="hermite"), hermite(2, 0.5)),
        (CalibratorConfig(enable_calibrator=True, calibrator_type="newton"), taylor(2)),
    ):
        made = make_predictor(config)
        assert (made.name, made.history, made.needs_gram) == (predictor.name, predictor.history, False)
        assert made.coefficients(times, target) == predictor.coefficients(times, target)
    made = make_predictor(DMDCalibratorConfig(dmd_history=5))
    assert (made.history, made.needs_gram) == (5, True)


@pytest.mark.parametrize("coordinate", ["timestep", "sigma"])
def test_only_polynomials_are_defined_in_other_coordinates_than_steps(coordinate: str) -> None:
    assert make_predictor(TaylorSeerCalibratorConfig(coordinate=coordinate)).history == 2
    assert make_predictor(NewtonCalibratorConfig(coordinate=coordinate)).history == 3
    for family in (FoCaCalibratorConfig, DMDCalibratorConfig, HermiteCalibratorConfig):
        assert make_predictor(family()) is not reuse
        with pytest.raises(ConfigError, match=f"coordinate='{coordinate}' is not valid: expected 'step'"):
            make_predictor(family(coordinate=coordinate))


def test_unknown_predictors_and_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'taylor'; did you mean 'taylorseer'"):
        make_predictor(CalibratorConfig(enable_calibrator=True, calibrator_type="taylor"))
    with pytest.raises(ConfigError, match="unknown key 'order'; known are damping, n_derivatives"):
        make_predictor(CalibratorConfig(enable_calibrator=True, calibrator_kwargs={"order": 3}))
    with pytest.raises(ConfigError, match="calibrator_kwargs of hermite: unknown key 'ordr'; did you mean 'order'"):
        make_predictor(HermiteCalibratorConfig(calibrator_kwargs={"ordr": 3}))
    with pytest.raises(ConfigError, match="foca: unknown key 'order'"):
        make_predictor(FoCaCalibratorConfig(calibrator_kwargs={"order": 3}))


def test_a_registered_predictor_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "_registry", {})
    mean = Predictor("mean", 2, lambda times, target: [1 / len(times)] * len(times))
    register_predictor(name="mean", factory=lambda config: mean)
    config = CalibratorConfig(enable_calibrator=True, calibrator_type="mean")
    assert make_predictor(config) is mean
    with pytest.raises(ConfigError, match="coordinate='sigma'"):
        make_predictor(config.update(coordinate="sigma"))


@pytest.mark.parametrize("name", ["", "Mean", "a b", "2nd", None, "taylorseer"])
def test_bad_and_taken_names_are_refused_with_an_example(name: str) -> None:
    with pytest.raises(ConfigError, match=r"e\.g\. register_predictor\(name='chebyshev'"):
        register_predictor(name=name, factory=lambda config: reuse)


def test_a_factory_must_be_callable() -> None:
    with pytest.raises(ConfigError, match="expected something that can be called"):
        register_predictor(name="mean", factory=reuse)  # type: ignore[arg-type]


@pytest.mark.parametrize("coordinates", [(), ("steps",), "step"])
def test_coordinates_are_known_ones(coordinates: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="expected some of 'step', 'timestep', 'sigma'"):
        register_predictor(name="mean", factory=lambda config: reuse, coordinates=coordinates)


def test_a_factory_must_make_a_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(predictors._registry, "junk", (lambda config: 1, ("step",)))
    with pytest.raises(ConfigError, match="'junk': what its factory made=1 is not valid: expected a Predictor"):
        make_predictor(CalibratorConfig(enable_calibrator=True, calibrator_type="junk"))
