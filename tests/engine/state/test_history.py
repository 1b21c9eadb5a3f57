"""The snapshots of one stream: where and as what they are kept, and what is predicted from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.engine.state.history import History, _place, alike
from cache_dit.errors import ConfigError

pytestmark = pytest.mark.numeric

NARROW = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def filled(values: Sequence[torch.Tensor], **options: object) -> History:
    history = History(len(values), **options)  # type: ignore[arg-type]
    for time, value in enumerate(values):
        history.append(time, value)
    return history


def kept(history: History) -> list[torch.Tensor]:
    """What is kept, snapshot by snapshot."""
    basis = range(len(history))
    return [history.predict([float(i == j) for i in basis]) for j in basis]


def rounding(value: torch.Tensor, dtype: torch.dtype, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
    """The most that rounding float64 values to multiples of ``scale`` in a format can change."""
    info = torch.finfo(dtype)
    return value.abs() * info.eps / 2 + scale * info.smallest_normal * info.eps / 2


def test_the_newest_snapshots_are_kept() -> None:
    history = History(2)
    for time in range(4):
        history.append(time, torch.full((3,), float(time)))
    assert history.times == [2, 3]
    assert [snapshot[0].item() for snapshot in kept(history)] == [2, 3]
    assert (len(history), history.nbytes, history.bytes_by_device) == (2, 2 * 3 * 4, {"cpu": 2 * 3 * 4})
    history.clear()
    assert (len(history), history.nbytes, history.bytes_by_device, history.times) == (0, 0, {}, [])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    "other", [torch.zeros(4), torch.zeros(3, dtype=torch.float16), torch.zeros(3, device="meta"), torch.zeros(1, 3)]
)
def test_another_shape_dtype_or_device_drops_what_was_kept(other: torch.Tensor, dtype: str | None) -> None:
    history = filled([torch.zeros(3), torch.zeros(3)], dtype=dtype)
    assert history.fits(torch.ones(3)) and not history.fits(other) and not history.fits(None)
    history.append(2, other)
    assert history.times == [2]
    assert history.fits(other) and not history.fits(torch.zeros(3))
    assert alike(history.predict([1.0]), other)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float8_e4m3fn"])
def test_a_snapshot_takes_the_place_of_one_of_the_same_time(dtype: str | None) -> None:
    history, expected = (History(3, dtype=dtype) for _ in range(2))
    values = [torch.full((4,), float(value)) for value in (1, 2, 4, 8)]
    for time, value in zip((0, 1, 2, 2), values, strict=True):
        history.append(time, value)
        history.gram()  # its rows are kept from call to call
    for time, value in zip((0, 1, 2), (*values[:2], values[3]), strict=True):
        expected.append(time, value)
    assert history.times == expected.times == [0, 1, 2] and len(history) == 3
    assert history.gram() == expected.gram()
    assert history.nbytes == expected.nbytes == sum(history.bytes_by_device.values())
    assert torch.equal(history.predict([1.0, 1.0, 1.0]), expected.predict([1.0, 1.0, 1.0]))


def test_nothing_fits_only_nothing() -> None:
    history = History(1)
    assert history.fits(None) and not history.fits(torch.zeros(1))
    assert alike(None, None) and not alike(None, torch.zeros(1))
    history.append(0, torch.zeros(1))
    history.clear()
    assert history.fits(None) and not history.fits(torch.zeros(1))


@pytest.mark.parametrize("coefficients", [[1.0], [0.0], [0.0, 0.0], [0.0, 1.0], [-0.5, 1.5], [0.3, 0.0, -2.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_histories_at_once_give_what_each_gives(coefficients: list[float], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 4), (2, 3, 4))
    histories = [filled([torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]) for shape in shapes]
    anchors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    before = [anchor.clone() for anchor in anchors]
    alone = [one.predict(coefficients, anchor) for one, anchor in zip(histories, anchors, strict=True)]
    both = histories[0].predict_with(histories[1], coefficients, *anchors)
    assert histories[0].plain and histories[1].plain
    assert all(map(torch.equal, both, alone)), "the same kernel adds up the same numbers in the same order"
    assert all(map(torch.equal, anchors, before))
    assert all(found.data_ptr() != anchor.data_ptr() for found, anchor in zip(both, anchors, strict=True))


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (torch.zeros(3, dtype=torch.bfloat16), {}),
        (torch.zeros(3), {"dtype": "bfloat16"}),
        (torch.zeros(3), {"device": "meta"}),
    ],
)
def test_what_is_converted_or_narrow_or_away_is_not_plain(value: torch.Tensor, options: dict[str, str]) -> None:
    history = filled([value], **options)
    assert not history.plain
    assert filled([torch.zeros(3)]).plain


@given(data=st.data())
def test_a_prediction_is_what_float64_arithmetic_gives_rounded_once(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.sampled_from([(), (0, 2), (1,), (3, 5), (2, 3, 4)]))
    held = data.draw(st.integers(1, 6))
    coefficients = data.draw(st.lists(st.floats(-40, 40, width=16), min_size=1, max_size=held))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    values = [torch.randn(shape, generator=generator).to(dtype) for _ in range(held + 1)]
    anchor = data.draw(st.sampled_from([None, values.pop(0)]))
    if anchor is not None and anchor.dim() > 1 and data.draw(st.booleans()):
        anchor = torch.stack([anchor, anchor], -1)[..., 0]
    out = data.draw(st.sampled_from([None, torch.full((2, *shape), torch.nan, dtype=dtype)[1]]))
    history = filled(values)
    before = [value.clone() for value in values]

    result = history.predict(coefficients, anchor, out)

    terms = [value.double() * c for value, c in zip(values[-len(coefficients) :], coefficients, strict=True)]
    terms += [] if anchor is None else [anchor.double()]
    exact, size = sum(terms, torch.zeros(shape)), sum((term.abs() for term in terms), torch.zeros(shape))
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    bound = rounding(exact, dtype) + size * wide.eps * (len(terms) + 2)
    assert alike(result, values[0]) and (out is None or result is out)
    assert bool(((result.double() - exact).abs() <= bound).all())
    assert all(torch.equal(value, copy) for value, copy in zip(values, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("coefficients", [[0.3], [-2.5, 3.7], [36.0, -80.0, 45.0]])
@pytest.mark.parametrize("anchored", [True, False])
def test_half_precision_is_summed_in_single(
    dtype: torch.dtype, coefficients: list[float], anchored: bool, generator: torch.Generator
) -> None:
    anchor, *values = (torch.randn(500, generator=generator).to(dtype) for _ in range(1 + len(coefficients)))
    exact = sum(c * value.double() for c, value in zip(coefficients, values, strict=True)) + anchored * anchor.double()
    result = filled(values).predict(coefficients, anchor if anchored else None)
    assert bool(((result.double() - exact).abs() <= rounding(exact, dtype) + 1e-4 * torch.finfo(dtype).eps).all())


def test_large_tensors_are_summed_alike(generator: torch.Generator) -> None:
    values = [torch.randn(3, 2100, 400, generator=generator, dtype=torch.float32).to(torch.bfloat16) for _ in range(3)]
    anchor = torch.randn(3, 2200, 400, generator=generator).to(torch.bfloat16)[
        :, 100:
    ]  # strided: tokens of a longer one
    result = filled(values).predict([0.5, -1.5, 2.0], anchor)
    exact = anchor.float() + 0.5 * values[0].float() - 1.5 * values[1].float() + 2 * values[2].float()
    assert torch.equal(result, exact.to(torch.bfloat16))


def test_a_snapshot_whose_coefficient_is_0_is_not_read() -> None:
    history = filled([torch.full((2,), torch.nan), torch.ones(2)])
    assert history.predict([0.0, 3.0]).tolist() == [3.0, 3.0]
    assert history.predict([0.0], torch.ones(2)).tolist() == [1.0, 1.0]
    assert history.predict([0.0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_reuse_hands_out_the_kept_tensor_itself_or_adds_it(dtype: torch.dtype) -> None:
    value, anchor = torch.randn(7).to(dtype), torch.randn(7).to(dtype)
    history = filled([torch.zeros(7, dtype=dtype), value])
    assert history.predict([1.0]).data_ptr() == history.predict([0.0, 1.0]).data_ptr() == value.data_ptr()
    assert torch.equal(history.predict([1.0], anchor), anchor + value)
    out = torch.empty_like(value)
    assert history.predict([1.0], out=out) is out and torch.equal(out, value)


@pytest.mark.parametrize("coefficients", [[], [1.0, 2.0, 3.0]])
def test_there_is_one_coefficient_for_each_of_some_snapshots(coefficients: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"coefficients=.*expected 1 to 2 numbers"):
        filled([torch.ones(1), torch.ones(1)]).predict(coefficients)
    with pytest.raises(ConfigError, match="coefficients"):
        History(3).predict(coefficients)


def test_snapshots_and_predictions_hold_no_graph() -> None:
    history = filled([torch.ones(2, requires_grad=True) * 2] * 2)
    assert not history.predict([1.0]).requires_grad
    assert not history.predict([-1.0, 2.0], torch.ones(2, requires_grad=True)).requires_grad


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_a_narrow_dtype_keeps_what_its_mantissa_holds_at_any_magnitude(
    narrow: str, dtype: torch.dtype, magnitude: float, generator: torch.Generator
) -> None:
    value = (torch.randn(50, 40, generator=generator, dtype=torch.float64) * magnitude).to(dtype)
    stored = getattr(torch, narrow)
    history = filled([value], dtype=narrow)
    back = history.predict([1.0])
    scaled = narrow != "bfloat16"
    scale = value.abs().max().double() / torch.finfo(stored).max if scaled else 0.0
    bound = rounding(value.double(), stored, scale) * 1.0001 + rounding(value.double(), dtype)
    assert alike(back, value)
    assert bool(((back.double() - value.double()).abs() <= bound).all())
    if stored == dtype:
        assert history.nbytes == value.nbytes
    else:
        assert history.nbytes == value.numel() * stored.itemsize + scaled * (8 if dtype == torch.float64 else 4)


@pytest.mark.parametrize("narrow", NARROW)
def test_a_prediction_from_narrow_snapshots_is_rounded_once(narrow: str, generator: torch.Generator) -> None:
    values = [torch.randn(600, generator=generator) * 10**power for power in (-3, 0, 3)]
    anchor = torch.randn(600, generator=generator)
    history = filled(values, dtype=narrow)
    back = [snapshot.double() for snapshot in kept(history)]
    exact = anchor.double() + 3.0 * back[0] - 3.0 * back[1] + 0.5 * back[2]
    for weights, wanted in (([3.0, -3.0, 0.5], exact), ([-3.0, 0.5], exact - 3.0 * back[0])):
        error = (history.predict(weights, anchor).double() - wanted).abs()
        assert bool((error <= 1e-6 * wanted.abs() + 1e-4).all())  # terms of 1000 are summed in float32


@pytest.mark.parametrize("narrow", NARROW)
def test_zeros_stay_zeros_and_an_empty_snapshot_is_one(narrow: str) -> None:
    assert filled([torch.zeros(5)], dtype=narrow).predict([2.0]).tolist() == [0.0] * 5
    assert filled([torch.zeros(0, 3)], dtype=narrow).predict([2.0]).shape == (0, 3)


@pytest.mark.parametrize("narrow", [*NARROW, None])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(narrow: str | None, bad: float) -> None:
    history = filled([torch.tensor([1.0, bad])], dtype=narrow)
    assert not history.predict([1.0])[1].isfinite()


def test_a_converted_snapshot_is_written_where_the_oldest_was() -> None:
    history = History(2, dtype="bfloat16")
    places = []
    for time in range(6):
        with torch.inference_mode(time < 2):  # a request may go on outside of where it began
            history.append(time, torch.full((4,), float(time)))
        places.append(history._tensors[-1].data_ptr())
    assert len(set(places)) == 2
    assert [snapshot[0].item() for snapshot in kept(history)] == [4, 5]


@pytest.mark.parametrize("dtype", ["bfloat", "int8", torch.int32, 16])
def test_only_floating_dtypes_keep_snapshots(dtype: object) -> None:
    with pytest.raises(ConfigError, match=r"dtype=.*floating"):
        History(1, dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="capacity=0"):
        History(0)


@pytest.mark.parametrize("narrow", [None, "float8_e4m3fn"])
def test_the_gram_matrix_is_that_of_what_is_kept(narrow: str | None, generator: torch.Generator) -> None:
    history = History(3, dtype=narrow)
    for time in range(6):
        history.append(time, torch.randn(4, 50, generator=generator))
        if time == 1:
            continue  # two rows are new at the next
        flat = torch.stack([snapshot.double().flatten() for snapshot in kept(history)])
        for row, expected in zip(history.gram(), (flat @ flat.T).tolist(), strict=True):
            assert row == pytest.approx(expected, rel=1e-6, abs=1e-6)
    history.append(6, torch.ones(2))
    assert history.gram() == [[pytest.approx(2.0)]]
    assert History(2).gram() == []


def test_inner_products_are_summed_in_double(generator: torch.Generator) -> None:
    value = torch.full((1500, 900), 0.1)  # more than one piece
    assert filled([value]).gram()[0][0] == pytest.approx(1500 * 900 * float(value[0, 0].double() ** 2), rel=1e-10)


def test_the_gram_matrix_costs_one_read_for_new_snapshots_and_none_without(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = itertools.count()
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: [next(reads), *tolist(tensor)][1:])
    history = filled([torch.ones(2), torch.ones(2), torch.ones(2)])
    first = history.gram()
    assert history.gram() == first and next(reads) == 1
    first[0][0] = 7.0  # the caller's own
    history.append(3, torch.full((2,), 2.0))
    assert history.gram() == [[2, 2, 4], [2, 2, 4], [4, 4, 8]] and next(reads) == 3


@pytest.mark.parametrize(
    ("home", "wanted", "place"),
    [
        ("cuda:1", None, "cuda:1"),
        ("cuda:1", "cuda", "cuda:1"),
        ("cuda:1", "cuda:0", "cuda:0"),
        ("cuda:1", "cpu", "cpu"),
        ("cpu", "cuda", "cuda"),
    ],
)
def test_a_device_without_a_number_is_any_of_its_type(home: str, wanted: str | None, place: str) -> None:
    assert _place(torch.device(home), None if wanted is None else torch.device(wanted)) == torch.device(place)


def test_snapshots_kept_on_another_device_come_back_to_where_they_were() -> None:
    history = filled([torch.ones(3, device="meta"), torch.ones(3, device="meta")], device="meta")
    assert history.predict([-1.0, 2.0], torch.ones(3, device="meta")).device.type == "meta"
    value = torch.ones(3)
    assert filled([value], device="cpu").predict([1.0]).data_ptr() == value.data_ptr(), "it is there: no copy"
    away = filled([value], device=torch.device("meta"))
    assert away.bytes_by_device == {"meta": 12} and away.fits(torch.ones(3))
