import numpy as np
import pytest

from bench.quality.fidelity import CEILING
from bench.quality.statistics import RESAMPLINGS, decibels, difference, fifth_percentile, mean, spread


def test_a_spread_is_mean_fifth_percentile_and_minimum():
    samples = [float(value) for value in range(21)]  # 0 … 20: a twentieth of the way is exactly 1

    found = spread(samples[::-1])

    assert (found.mean, found.p5, found.minimum, found.equal) == (10, 1, 0, 0)


def test_equal_pictures_count_as_the_ceiling_and_are_told():
    found = spread([None, 30.0, CEILING + 20])

    assert found.mean == pytest.approx((CEILING + 30 + CEILING) / 3)
    assert found.equal == 1


def test_a_difference_has_no_spread_where_one_is_the_other_plus_a_constant():
    first = np.random.default_rng(1).normal(30, 5, size=64)

    assert difference(first + 2, first, mean) == pytest.approx((2, 2, 2))
    assert difference(first + 2, first, fifth_percentile) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("statistic", [mean, fifth_percentile])
def test_the_interval_is_that_of_pictures_drawn_in_pairs_with_replacement(statistic):
    generator = np.random.default_rng(2)
    first, second = generator.normal(35, 6, size=40), generator.normal(33, 6, size=40)

    value, low, high = difference(first, second, statistic, seed=5)

    draws = np.random.default_rng(5).integers(40, size=(RESAMPLINGS, 40))
    wanted = sorted(float(statistic(first[draw]) - statistic(second[draw])) for draw in draws)
    assert value == pytest.approx(float(statistic(first) - statistic(second)))
    assert low == pytest.approx(wanted[249], abs=0.05)
    assert high == pytest.approx(wanted[9749], abs=0.05)
    assert low < value < high


def test_pictures_of_one_caption_are_drawn_together():
    first = np.repeat(np.random.default_rng(3).normal(30, 5, size=16), 4)

    together = difference(first, np.zeros(64), mean, per_caption=4)
    apart = difference(first, np.zeros(64), mean)

    assert together[2] - together[1] > 1.5 * (apart[2] - apart[1])  # four times as few independent pictures: twice


def test_decibels_are_capped():
    assert decibels([None, 12.5, 1000.0]).tolist() == [CEILING, 12.5, CEILING]
