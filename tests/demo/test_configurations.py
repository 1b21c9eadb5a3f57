"""The table of configurations."""

import pytest

from cache_dit.demo.configurations import configurations


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 28, 50, 100])
def test_they_can_be_made_for_any_number_of_steps(steps: int):
    for configuration in configurations(steps):
        mask = configuration.cache and configuration.cache.steps_computation_mask
        assert mask is None or len(mask) == steps


def test_the_first_is_uncached_and_names_are_unique():
    columns = configurations(28)
    assert columns[0].cache is None
    assert all(configuration.cache is not None for configuration in columns[1:])
    assert len({configuration.name for configuration in columns}) == len(columns)


def test_only_the_one_named_reuse_goes_without_a_predictor():
    columns = configurations(28)[1:]
    assert [c.name for c in columns if c.calibrator is None] == [c.name for c in columns if "reuse" in c.name]


def test_reuse_differs_from_fast_by_the_predictor_alone():
    named = {configuration.name: configuration for configuration in configurations(28)}
    assert named["fast"].cache == named["fast, reuse"].cache
