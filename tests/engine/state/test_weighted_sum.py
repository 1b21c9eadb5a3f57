"""The kernels behind a prediction: which one is chosen, and that both give the same."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from cache_dit.engine.state.history import History
from cache_dit.engine.state.weighted_sum import Compiled, Kernel, kernel_for, pieces, plain

pytestmark = pytest.mark.numeric

WEIGHTS = [3.0, -12.5, 0.75, -7.0, 2.0, 1.5]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    kernel_for.cache_clear()
    yield
    torch._dynamo.reset()
    kernel_for.cache_clear()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def values(count: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def assert_same(kernel: Kernel, parts: list[torch.Tensor], weights: list[float], **options: Any) -> None:
    dtype = options.pop("dtype", parts[0].dtype)
    expected, found = (torch.full_like(parts[0], torch.nan, dtype=dtype) for _ in range(2))
    plain(expected, parts, weights, **options)
    kernel(found, parts, weights, **options)
    # the compiler may multiply and add in one: the last digit of float32 differs, and seldom that of half precision
    rtol = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert bool(((found - expected).abs() <= rtol * expected.abs() + 1e-5).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_traced_sum_is_that_of_eager_torch(count: int, anchored: bool, dtype: torch.dtype) -> None:
    anchor, *parts = values(count + 1, (2, 5, 8), dtype)
    kernel = Compiled("aot_eager")
    assert_same(kernel, parts, WEIGHTS[:count], anchor=anchor if anchored else None)
    assert graphs() == 1 and not kernel.broken


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("anchored", [True, False])
def test_the_compiled_sum_is_that_of_eager_torch(anchored: bool, dtype: torch.dtype) -> None:
    kernel = Compiled()
    for count in range(1, 7):
        anchor, *parts = values(count + 1, (2, 37, 24), dtype)
        assert_same(kernel, parts, WEIGHTS[:count], anchor=anchor if anchored else None)
    assert graphs() == 6 and not kernel.broken


@pytest.mark.slow
def test_the_compiled_sum_reads_strided_anchors_and_scaled_snapshots() -> None:
    kernel = Compiled()
    anchor, *parts = values(4, (2, 37, 24), torch.float32)
    strided = values(1, (2, 50, 24), torch.float32)[0][:, 13:]
    assert_same(kernel, parts, WEIGHTS[:3], anchor=strided)
    assert_same(kernel, parts, WEIGHTS[:3], anchor=anchor)
    small = [part.to(torch.float8_e4m3fn) for part in parts]
    scales = [torch.tensor(scale) for scale in (0.5, 3.0, 1e-3)]
    assert_same(kernel, small, WEIGHTS[:3], anchor=anchor, scales=scales, dtype=torch.float32)
    assert_same(kernel, small, WEIGHTS[:3], anchor=strided, scales=scales, dtype=torch.float32)
    assert not kernel.broken


def test_neither_steps_nor_sizes_compile_anew() -> None:
    kernel = Compiled("aot_eager")
    for step, tokens in enumerate((5, 5, 5, 9, 30, 257)):
        anchor, *parts = values(4, (2, tokens, 8), torch.float32, seed=step)
        assert_same(kernel, parts, [weight + step for weight in WEIGHTS[:3]], anchor=anchor)
    assert graphs() == 1
    for step, tokens in enumerate((5, 5, 9, 30, 257)):
        longer, *parts = values(4, (2, tokens, 8), torch.float32, seed=step)
        strided = torch.cat([longer, longer], dim=1)[:, tokens:]
        assert_same(kernel, parts, [weight + step for weight in WEIGHTS[:3]], anchor=strided)
    assert graphs() == 2


def test_no_number_of_variants_reaches_the_compilers_limit() -> None:
    kernel = Compiled("aot_eager")
    for count in (1, 2, 3):
        for dtype in DTYPES:
            anchor, *parts = values(count + 1, (2, 5, 8), dtype)
            assert_same(kernel, parts, WEIGHTS[:count], anchor=anchor)
    assert graphs() == 9 > torch._dynamo.config.recompile_limit
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            assert_same(kernel, parts, WEIGHTS[:3], anchor=anchor)
    assert graphs() <= 10 and not kernel.broken


@pytest.mark.parametrize("shape", [(), (0, 3), (40,), (3, 10, 4), (3, 4, 10), (1, 1, 120)])
def test_pieces_are_views_of_at_most_the_size_that_cover_everything(shape: tuple[int, ...]) -> None:
    whole, other = torch.zeros(shape), torch.ones(shape)
    found = list(pieces([whole, other], size=12))
    for piece, beside in found:
        assert piece.numel() <= 12 and bool((piece == 0).all())
        piece += beside
    assert torch.equal(whole, other)
    assert len(found) <= 1 + 2 * whole.numel() / 12


def test_a_compiler_that_fails_is_named_once_and_eager_torch_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        calls.append(graph)
        raise RuntimeError("no such compiler")

    kernel = Compiled(backend)
    anchor, *parts = values(3, (2, 5, 8), torch.float32)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert_same(kernel, parts, WEIGHTS[:2], anchor=anchor)
    assert len(calls) == 1
    assert len(caplog.messages) == 1 and "summed by eager torch" in caplog.messages[0]


def test_a_callers_mistake_is_raised_and_not_laid_to_the_compiler() -> None:
    kernel = Compiled("aot_eager")
    with pytest.raises(RuntimeError):
        kernel(torch.empty(3), [torch.ones(4), torch.ones(4)], [1.0, 2.0], anchor=torch.ones(3))
    assert not kernel.broken


def test_cuda_gets_the_compiler_where_triton_is_and_every_other_device_eager_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert kernel_for("cpu") is kernel_for("mps") is plain
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert isinstance(kernel_for("cuda"), Compiled) and kernel_for("cuda") is kernel_for("cuda")
    kernel_for.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert kernel_for("cuda") is kernel_for("cuda") is plain
    assert len(caplog.messages) == 1 and "Triton" in caplog.messages[0]


def test_a_prediction_inside_a_compiled_function_is_part_of_it() -> None:
    anchor, *parts = values(3, (5, 8), torch.bfloat16)
    history = History(2)
    for time, part in enumerate(parts):
        history.append(time, part)

    def step(anchor: torch.Tensor) -> torch.Tensor:
        return history.predict([-1.0, 2.0], anchor) * 2

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(anchor), step(anchor))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_cuda_the_compiled_sum_is_that_of_eager_torch_and_waits_for_nothing(dtype: torch.dtype) -> None:
    kernel = kernel_for("cuda")
    anchor, *parts = (value.cuda() for value in values(4, (2, 300, 64), dtype))
    assert_same(kernel, parts, WEIGHTS[:3], anchor=anchor)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel(torch.empty_like(anchor), parts, WEIGHTS[1:4], anchor=anchor)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(kernel, Compiled) and not kernel.broken
