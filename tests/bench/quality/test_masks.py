import itertools

from hypothesis import given
from hypothesis import strategies as st

from bench.quality.masks import even_mask


@st.composite
def masks(draw):
    steps = draw(st.integers(1, 60))
    full = draw(st.integers(1, steps))
    shape = {
        "warmup": draw(st.integers(1, full)),
        "bend": draw(st.floats(0.5, 3)),
        "last": draw(st.booleans()),
    }
    return steps, full, shape, even_mask(steps, full, **shape)


@given(masks())
def test_a_mask_has_as_many_computed_steps_as_asked_for_and_begins_with_its_warmup(made):
    steps, full, shape, mask = made

    assert len(mask) == steps
    assert sum(mask) == full
    assert all(mask[: shape["warmup"]])


@given(masks())
def test_the_last_step_is_computed_if_asked_for(made):
    _, full, shape, mask = made

    assert mask[-1] or not shape["last"] or full == shape["warmup"]


@given(st.integers(10, 60), st.integers(2, 9), st.booleans())
def test_without_a_bend_gaps_differ_by_one_at_most(steps, full, last):
    ones = [step for step, bit in enumerate(even_mask(steps, full, last=last)) if bit] + [steps] * (not last)
    gaps = [after - before for before, after in itertools.pairwise(ones)]

    assert max(gaps) - min(gaps) <= 1


def test_a_bend_above_1_computes_more_at_the_beginning():
    assert "".join(map(str, even_mask(28, 5, bend=1.3, last=False))) == "1001000001000010000001000000"
