"""What all rows share: the device, how much is measured, the one model that is on the device, and caches for it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import cache_dit
from bench.common import twin
from bench.gpu.clock import Clock, clock_for
from bench.gpu.models import Made, Spec, make
from cache_dit import DBCacheConfig
from cache_dit.errors import CacheDitError

#: The model of one step: called with the step's number.
Call = Callable[[int], torch.Tensor]


class NeedsGpuError(CacheDitError, RuntimeError):
    """This measures a CUDA device, and there is none."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        tiny: whether the models are those of a test.
        steps: of a run where single steps are timed.
        runs: of these.
        loops: lengths of the denoising loops.
        rounds: of each loop.
        calls: of each sum.
        feature: what a block of a large model hands on: samples, tokens, width.
    """

    tiny: bool = False
    steps: int = 6
    runs: int = 4
    loops: tuple[int, ...] = (28, 50)
    rounds: int = 2
    calls: int = 50
    feature: tuple[int, ...] = (1, 4608, 3072)


QUICK = Size(steps=3, runs=1, loops=(28,), rounds=1, calls=10)
TINY = Size(tiny=True, steps=3, runs=1, loops=(4,), rounds=1, calls=2, feature=(1, 8, 16))


@dataclass
class Stage:
    """The device with one model on it."""

    device: torch.device
    dtype: torch.dtype
    size: Size
    clock: Clock = field(init=False)
    _made: Made | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.clock = clock_for(self.device)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def model(self, spec: Spec) -> Made:
        """A model with its inputs; the one before it is freed."""
        if self._made is None or self._made.spec is not spec:
            self.clear()
            self._made = make(spec, self.device, self.dtype, tiny=self.size.tiny)
        return self._made

    def clear(self) -> None:
        """Free the model, and what compiling left."""
        self._made = None
        self.tidy()

    def tidy(self) -> None:
        """Free what the row before left on a GPU: caches, graphs, and memory that torch keeps for later."""
        if self.cuda:
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()


def opened(device: str | torch.device, size: Size) -> Stage:
    """The stage on a CUDA device.

    Raises:
        NeedsGpuError: it is no CUDA device, or there is none.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise NeedsGpuError(f"this bench measures a CUDA GPU, and {_seen(device)}: run it on a machine that has one")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise NeedsGpuError(f"there is no {device}, only {torch.cuda.device_count()} CUDA devices: pass --device cuda")
    torch.cuda.set_device(device.index or 0)
    return Stage(torch.device("cuda", device.index or 0), torch.bfloat16, size)


def _seen(device: torch.device) -> str:
    return f"--device is {device}" if device.type != "cuda" else "torch sees none here"


def cached(model: Any, steps: int, **options: Any) -> Any:
    """A twin of a model with a cache on it, for one branch: as a model that is distilled from guidance runs."""
    common = {"num_inference_steps": steps, "Bn_compute_blocks": 0, "max_warmup_steps": 1, "enable_separate_cfg": False}
    return cache_dit.enable_cache(twin(model), DBCacheConfig(**{**common, **options}))


def call_of(model: Any, inputs: Sequence[Mapping[str, Any]]) -> Call:
    """A bare model with its branch named, as pipelines name it; what it is called for is no pipeline's request."""

    def call(step: int) -> torch.Tensor:
        with model.cache_context("cond"):
            output: torch.Tensor = model(**inputs[step])[0]
        return output

    return call


def told(model: Any) -> dict[str, Any]:
    """What the cache says of its latest run: the line of its steps, the ideal speed-up, the state that it held."""
    stats = cache_dit.summary(model, logging=False)[0]
    return {
        "steps_line": "".join(stats.steps_line.values()),
        "ideal_by_blocks": stats.ideal_speedup,
        "state_bytes": stats.peak_bytes,
    }
