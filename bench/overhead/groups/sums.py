"""The weighted sum that every prediction is: one compiled kernel against eager torch."""

from functools import partial
from typing import Any

import torch

from bench.common import pairs_of
from bench.findings import Finding, ratio
from bench.overhead.common import Size, interleaved
from cache_dit.engine.state.weighted_sum import Compiled, Kernel, kernel_for, plain

WEIGHTS = (1.0, -3.0, 3.0)


def sums(size: Size) -> list[Finding]:
    """anchor + Σ c·s over 1 to 3 snapshots kept as float32 and as bfloat16: one feature, and one of a large model."""
    tokens = size.image_tokens + size.text_tokens
    shapes = (
        ("a feature", (1, tokens, size.hidden), max(1, size.calls // 10)),
        ("a large feature", (1, 13 * tokens, 4 * size.hidden), max(1, size.calls // 200)),
    )
    kernel = Compiled("eager" if size.quick else "inductor")
    return [
        _compare(
            f"sum of {count} in {str(dtype).removeprefix('torch.')}, {name}", shape, count, dtype, kernel, size, calls
        )
        for name, shape, calls in shapes
        for dtype in (torch.float32, torch.bfloat16)
        for count in (1, 2, 3)
    ]


def _compare(
    name: str, shape: tuple[int, ...], count: int, dtype: torch.dtype, kernel: Compiled, size: Size, calls: int
) -> Finding:
    generator = torch.Generator().manual_seed(count)
    anchor, *parts = (torch.randn(shape, generator=generator) for _ in range(count + 1))
    parts = [part.to(dtype) for part in parts]
    kernels: dict[str, Kernel] = {"eager": plain, "compiled": kernel}
    results = {which: torch.empty(shape) for which in kernels}
    sums_of = {
        which: partial(run, results[which], parts, WEIGHTS[:count], anchor=anchor) for which, run in kernels.items()
    }
    times = interleaved(sums_of, [{}] * calls, size.runs, "sums", size.clock)
    chosen: Any = kernel_for("cpu")
    return ratio(
        f"{name}, {'eager' if kernel.broken else 'compiled'} ÷ eager",
        pairs_of(times, "compiled", "eager"),
        shape=shape,
        backend=kernel.backend,
        compiler_failed=kernel.broken,
        chosen_on_cpu=getattr(chosen, "__name__", type(chosen).__name__),
        largest_difference=(results["eager"] - results["compiled"]).abs().max().item(),
    )
