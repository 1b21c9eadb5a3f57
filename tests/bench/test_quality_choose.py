import numpy as np
import pytest

from bench.findings import bootstrap
from bench.quality.choose import (
    CEILING,
    best_of,
    best_of_families,
    chosen,
    decibels,
    difference,
    entries,
    fifth_percentile,
    hopeful,
    key_of,
    mean,
)


def rows_of(method, tried, *, owner="ours", results=()):
    """Rows of a method: for each candidate its speed-up and PSNRs."""
    found = {f"method/{method}": {"owner": owner, "family": method, "candidates": [one for one, _, _ in tried]}}
    for parameters, speedup, psnr in tried:
        row = {"method": method, "parameters": parameters, "speedup": speedup, "psnr": psnr}
        found[key_of("search", method, parameters)] = row
        if parameters in results:
            found[key_of("result", method, parameters)] = row
    return found


CAREFUL, MIDDLE, FAST = {"n": 1}, {"n": 2}, {"n": 3}


@pytest.mark.parametrize(("budget", "wanted"), [(1.5, CAREFUL), (2.0, MIDDLE), (3.0, FAST), (4.0, None)])
def test_the_best_mean_among_those_that_reach_the_budget_is_chosen(budget, wanted):
    rows = rows_of("m", [(CAREFUL, 1.6, [50, 40]), (MIDDLE, 2.5, [40, 38]), (FAST, 3.0, [45, 20])])

    assert chosen(rows, "m", budget) == wanted


def test_two_hundredths_below_the_budget_reach_it_and_three_do_not():
    rows = rows_of("m", [(CAREFUL, 1.96, [40]), (MIDDLE, 1.94, [50])])

    assert chosen(rows, "m", 2.0) == CAREFUL


def test_settings_that_are_candidates_no_more_and_those_that_failed_are_not_chosen():
    rows = rows_of("m", [(CAREFUL, 2.0, [30]), (MIDDLE, 2.0, [40]), (FAST, 2.0, [50])])
    rows["method/m"]["candidates"] = [CAREFUL, FAST]
    rows[key_of("search", "m", FAST)] = {"failed": "ValueError: no"}

    assert chosen(rows, "m", 2.0) == CAREFUL


def test_a_setting_is_chosen_by_its_mean_over_the_pictures_where_equal_ones_count_as_the_ceiling():
    rows = rows_of("m", [(CAREFUL, 2.0, [60, 60]), (MIDDLE, 2.0, [None, 30])])

    assert chosen(rows, "m", 2.0) == MIDDLE


def test_a_method_stands_at_every_budget_that_it_reaches_with_its_result_where_there_is_one():
    rows = rows_of("m", [(CAREFUL, 2.0, [40]), (FAST, 3.0, [30])], results=[FAST])

    found = entries(rows, (1.5, 2.0, 3.0, 4.0))

    assert [(one.budget, one.parameters, one.result is None) for one in found] == [
        (1.5, CAREFUL, True),
        (2.0, CAREFUL, True),
        (3.0, FAST, False),
    ]


def test_of_a_family_the_best_of_the_search_goes_on_at_each_budget():
    rows = rows_of("one", [(CAREFUL, 2.0, [50]), (FAST, 3.0, [30])])
    rows |= rows_of("two", [(CAREFUL, 2.0, [40]), (FAST, 3.0, [35])])
    rows["method/two"]["family"] = "one"
    rows |= rows_of("other", [(FAST, 3.0, [10])])

    found = best_of_families(entries(rows, (2.0, 3.0)))

    assert {(one.method, one.budget) for one in found} == {("one", 2.0), ("two", 3.0), ("other", 2.0), ("other", 3.0)}


def test_the_best_of_an_owner_is_the_best_of_the_search_not_of_the_result():
    rows = rows_of("lucky", [(FAST, 2.0, [30])], results=[FAST])
    rows |= rows_of("good", [(FAST, 2.0, [40])], results=[FAST])
    rows |= rows_of("theirs", [(FAST, 2.0, [50])], owner="peer", results=[FAST])
    rows[key_of("result", "lucky", FAST)] = {**rows[key_of("result", "lucky", FAST)], "psnr": [60]}

    found = best_of(entries(rows, (2.0,)), 2.0, "ours")

    assert found is not None
    assert found.method == "good"


def test_a_family_far_behind_in_the_search_is_not_drawn_but_fewer_steps_are():
    rows = {}
    for name, owner, psnr in (
        ("our best", "ours", 60),
        ("our near one", "ours", 56),
        ("our far one", "ours", 54),
        ("their best", "peer", 40),
        ("their far one", "peer", 34),
        ("none", "baseline", 20),
    ):
        rows |= rows_of(name, [(MIDDLE, 2.0, [psnr])], owner=owner)

    drawn = {entry.method for entry in hopeful(entries(rows, (2.0,)))}
    assert drawn == {"our best", "our near one", "their best", "none"}, "however far ahead ours is"


# -- how sure a difference is


def test_equal_pictures_and_all_above_the_ceiling_count_as_the_ceiling():
    assert decibels([None, 12.5, 1000.0]).tolist() == [CEILING, 12.5, CEILING]


def test_a_difference_has_no_spread_where_one_is_the_other_plus_a_constant():
    first = np.random.default_rng(1).normal(30, 5, size=64)
    for statistic in (mean, fifth_percentile):
        found = difference("x", first + 2, first, statistic, "> 0")
        assert (found.value, found.low, found.high, found.reached) == (*[pytest.approx(2)] * 3, True)


@pytest.mark.parametrize("statistic", [mean, fifth_percentile])
def test_the_interval_is_that_of_pictures_drawn_in_pairs_with_replacement(statistic):
    generator = np.random.default_rng(2)
    first, second = generator.normal(35, 6, size=40), generator.normal(33, 6, size=40)

    found = difference("x", first, second, statistic, "> 0")

    draws = np.random.default_rng(0).integers(40, size=(10_000, 40))
    wanted = sorted(float(statistic(first[draw]) - statistic(second[draw])) for draw in draws)
    assert found.value == pytest.approx(float(statistic(first) - statistic(second)))
    assert found.low == pytest.approx(wanted[249], abs=0.05)
    assert found.high == pytest.approx(wanted[9749], abs=0.05)
    assert found.low < found.value < found.high


def test_pictures_of_one_caption_are_drawn_together():
    values = np.repeat(np.random.default_rng(3).normal(30, 5, size=16), 4)

    together = bootstrap(values, mean, draws=10_000, together=4)
    apart = bootstrap(values, mean, draws=10_000)

    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])  # four times as few independent pictures: twice
