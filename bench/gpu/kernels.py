"""What the engine does on CUDA alone: the weighted sum as one compiled kernel, and snapshots in pinned memory."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from bench.gpu.clock import interleaved
from bench.gpu.stage import Stage
from bench.gpu.steps import waits
from cache_dit.engine.state.history import History
from cache_dit.engine.state.weighted_sum import Compiled, Kernel, plain

Row = dict[str, Any]
WEIGHTS = (1.0, -3.0, 3.0)

#: Snapshots by turns, so that the cache of a GPU holds none of them.
SETS = 4


def weighted_sum(stage: Stage, count: int) -> Row:
    """anchor + Σ c·s over ``count`` snapshots, one compiled kernel beside eager torch: time, bandwidth, and error."""
    shape, calls = stage.size.feature, stage.size.calls
    torch.manual_seed(count)
    sets = [[torch.randn(shape, device=stage.device, dtype=stage.dtype) for _ in range(count + 1)] for _ in range(SETS)]
    kernel = Compiled("inductor" if stage.cuda else "eager")
    kernels: dict[str, Kernel] = {"eager": plain, "compiled": kernel}
    outs = {name: torch.empty(shape, device=stage.device, dtype=stage.dtype) for name in kernels}

    def run(name: str, call: int) -> None:
        anchor, *parts = sets[call % SETS]
        kernels[name](outs[name], parts, WEIGHTS[:count], anchor=anchor)

    times = interleaved({name: partial(run, name) for name in kernels}, calls, 3, stage.clock, what="weighted sums")
    anchor, *parts = (tensor.double() for tensor in sets[0])
    exact = anchor + sum(weight * part for weight, part in zip(WEIGHTS, parts, strict=False))
    errors = {}
    for name in kernels:
        run(name, 0)
        errors[name] = ((outs[name].double() - exact).abs().max() / exact.abs().max()).item()
    return {
        "shape": list(shape),
        "count": count,
        "bytes": (count + 2) * outs["eager"].nbytes,
        "times": times,
        "errors": errors,
        "differ": bool((outs["eager"] != outs["compiled"]).any()),
        "compiler_failed": kernel.broken,
    }


def pinned(stage: Stage) -> Row:
    """A step that keeps a snapshot and predicts from two, in the device's memory and in the host's, beside a product.

    Time in the device's stream, host seconds of a step, and waits of the host; results are compared.
    """
    if not stage.cuda:
        return {"skipped": "needs CUDA"}
    shape, calls = stage.size.feature, stage.size.calls
    torch.manual_seed(0)
    snapshots = [torch.randn(shape, device=stage.device, dtype=stage.dtype) for _ in range(SETS)]
    weight = torch.randn(shape[-1], shape[-1], device=stage.device, dtype=stage.dtype) * shape[-1] ** -0.5
    histories = {"device": History(2), "pinned": History(2, device="cpu")}
    results: dict[str, torch.Tensor] = {}

    def step(name: str, number: int) -> torch.Tensor:
        history, snapshot = histories[name], snapshots[number % SETS]
        history.append(number, snapshot)
        history.prefetch(2)
        product = snapshot @ weight  # what a device computes while snapshots travel
        known = len(history)
        results[name] = history.predict([-1.0, 2.0][-known:], product)
        return results[name]

    run = {name: partial(step, name) for name in histories}
    times = interleaved(run, calls, 3, stage.clock, what="pinned memory")
    for history in histories.values():
        history.clear()
    row: Row = {"bytes": snapshots[0].nbytes, "times": times, "waits": {}, "host": {}}
    for name, call in run.items():
        for number in range(3):
            call(number)
        row["waits"][name] = waits(stage, call, 3)
        stage.clock.wait()
        start = time.perf_counter()
        call(4)
        row["host"][name] = time.perf_counter() - start
    stage.clock.wait()
    row["same"] = bool(torch.equal(results["device"], results["pinned"]))
    return row
