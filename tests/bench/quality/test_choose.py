import pytest

from bench.quality.choose import (
    best_of,
    best_of_families,
    chosen,
    entries,
    evaluation_key,
    hopeful,
    method_key,
    search_key,
)


def rows_of(method, tried, *, owner="ours", results=()):
    """Rows of a method: for each candidate its speed-up and PSNRs."""
    found = {method_key(method): {"owner": owner, "family": method, "candidates": [one for one, _, _ in tried]}}
    for parameters, speedup, psnr in tried:
        row = {"method": method, "parameters": parameters, "speedup": speedup, "psnr": psnr}
        found[search_key(method, parameters)] = row
        if parameters in results:
            found[evaluation_key(method, parameters)] = row
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
    rows[method_key("m")]["candidates"] = [CAREFUL, FAST]
    rows[search_key("m", FAST)] = {"failed": "ValueError: no"}

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
    rows[method_key("two")]["family"] = "one"
    rows |= rows_of("other", [(FAST, 3.0, [10])])

    found = best_of_families(entries(rows, (2.0, 3.0)))

    assert {(one.method, one.budget) for one in found} == {("one", 2.0), ("two", 3.0), ("other", 2.0), ("other", 3.0)}


def test_the_best_of_an_owner_is_the_best_of_the_search_not_of_the_result():
    rows = rows_of("lucky", [(FAST, 2.0, [30])], results=[FAST])
    rows |= rows_of("good", [(FAST, 2.0, [40])], results=[FAST])
    rows |= rows_of("theirs", [(FAST, 2.0, [50])], owner="peer", results=[FAST])
    rows[evaluation_key("lucky", FAST)] = {**rows[evaluation_key("lucky", FAST)], "psnr": [60]}

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
