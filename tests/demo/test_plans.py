"""The plans that are shipped with the demo model."""

import pytest

from cache_dit.demo.plans import demo_plan, steps_planned


@pytest.mark.parametrize("steps", steps_planned())
def test_a_shipped_plan_promises_by_the_pictures_that_its_figures_are_of(steps: int):
    plan = demo_plan(steps)
    for point in plan.points:
        measured = point.measured
        assert measured is not None and measured.held_out and measured.values is not None
        assert len(measured.values) == measured.pictures == 16
        assert sum(measured.values) / 16 == pytest.approx(measured.mean, abs=1e-3)
        assert min(measured.values) == pytest.approx(measured.minimum, abs=1e-3)
        promised = plan.select(full_steps=point.full_steps).promise(0.9)
        assert sorted(measured.values)[0] == promised  # of 16 the lowest: 16 of 17 reach as much
