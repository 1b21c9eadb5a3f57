"""CUDA snapshots in the host's memory. Without a GPU: its streams by name, to see which copy runs where."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cache_dit.engine.state import history as history_module
from cache_dit.engine.state.history import History
from cache_dit.engine.state.transfer import PinnedTransfer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeCuda(TorchFunctionMode):
    """Writes down what a transfer does, and on which stream; tensors of the device are tensors of the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, ...]] = []
        self.current = "model"
        self.buffers = 0

    def Stream(self, device: Any = None) -> FakeStream:
        return FakeStream(self, "transfer")

    def current_stream(self, device: Any = None) -> FakeStream:
        return FakeStream(self, self.current)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if kwargs.pop("pin_memory", False):
            self.buffers += 1
        if kwargs.get("non_blocking"):
            self.log.append(("sends" if name == "copy_" else "brings", self.current))
            return args[0].clone() if name == "to" else func(*args, **kwargs)
        return func(*args, **kwargs)


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append((self.name, "waits for", other.name))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with FakeCuda() as fake:
        for name in ("Stream", "current_stream", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
        monkeypatch.setattr(history_module, "_transfer", lambda home, device: PinnedTransfer(home))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: fake.log.append(("kept for", stream.name)))
        yield fake


SENT = [("transfer", "waits for", "model"), ("sends", "transfer"), ("kept for", "transfer")]
ARRIVED = [("model", "waits for", "transfer"), ("kept for", "model")]


def test_copies_run_on_a_stream_of_their_own_after_what_they_need(cuda: FakeCuda) -> None:
    history = History(2, device="cpu", dtype="bfloat16")
    history.append(0, torch.ones(3))
    assert cuda.log == SENT
    cuda.log.clear()
    assert history.predict([2.0], torch.ones(3)).tolist() == [3.0, 3.0, 3.0]
    assert cuda.log == [("brings", "transfer"), *ARRIVED]


def test_what_was_asked_for_early_travels_once(cuda: FakeCuda) -> None:
    history = History(2, device="cpu", dtype="bfloat16")
    for time in range(2):
        history.append(time, torch.full((3,), float(time)))
    cuda.log.clear()
    history.prefetch(1)
    history.prefetch(1)
    assert cuda.log == [("brings", "transfer")]
    assert history.predict([2.0]).tolist() == [2.0, 2.0, 2.0]
    assert cuda.log == [("brings", "transfer"), *ARRIVED]


def test_buffers_are_used_again_and_what_is_on_its_way_from_them_is_not(cuda: FakeCuda) -> None:
    history = History(2, device="cpu", dtype="bfloat16")
    for time in range(5):
        history.append(time, torch.full((3,), float(time)))
        history.prefetch(2)
    assert cuda.buffers == 2
    assert history.predict([1.0, 10.0]).tolist() == [43.0, 43.0, 43.0]


@pytest.mark.parametrize("device", [None, "cpu", "meta"])
def test_snapshots_of_the_processor_need_no_transfer(device: str | None) -> None:
    history = History(1, device=device)
    history.append(0, torch.ones(1))
    history.prefetch(1)
    assert history._transfer is None


@needs_cuda
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float8_e4m3fn"])
def test_the_host_waits_for_no_copy_and_the_result_is_that_of_the_device(dtype: str | None) -> None:
    here, there = (History(3, device=device, dtype=dtype) for device in (None, "cpu"))
    anchor = torch.randn(2, 4096, 1024, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for time in range(5):
            snapshot = torch.randn(2, 4096, 1024, device="cuda")
            here.append(time, snapshot)
            there.append(time, snapshot)
            del snapshot
        there.prefetch(3)
        results = [history.predict([0.5, -2.0, 3.0], anchor) for history in (here, there)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(*results)
    assert there.bytes_by_device["cpu"] == 3 * anchor.numel() * there._tensors[0].itemsize
    assert all(tensor.is_pinned() for tensor in there._tensors)
