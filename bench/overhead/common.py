"""The model that is measured, the caches on it, and how its steps are timed."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.progress import track

import cache_dit
from bench.peers import cost
from bench.peers.cost import Times, twin
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

#: Of calls in great numbers, as those of empty blocks, single times are not kept.
MANY_STEPS = 200


@dataclass(frozen=True)
class Size(cost.Size):
    """The model, its input, how often it runs, and by which clock."""

    steps: int = 16
    runs: int = 3
    calls: int = 2000
    clock: str = "processor"
    quick: bool = False

    @property
    def shallow(self) -> "Size":
        """The same with three blocks: where only cached steps count, and how many blocks they skip does not."""
        return replace(self, double=1, single=2)


QUICK = Size(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=6, runs=2, calls=10, quick=True)


def cached(
    model: Any,
    size: Size,
    *,
    order: int | None = None,
    calibrator: Any = None,
    config: Any = DBCacheConfig,
    **options: Any,
) -> Any:
    """A twin of a model with a cache on it; ``order`` asks for a Taylor polynomial."""
    if order is not None:
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order)
    given = {"num_inference_steps": size.steps, "Bn_compute_blocks": 0, "max_warmup_steps": 1, **options}
    return cache_dit.enable_cache(twin(model), config(**given), calibrator)


def half_mask(size: cost.Size) -> list[int]:
    return [1 - step % 2 for step in range(size.steps)]


_kept: list[dict[str, Any]] = []


@contextlib.contextmanager
def keeping_samples() -> Iterator[list[dict[str, Any]]]:
    """Every time that is taken inside, in seconds, by what was run."""
    _kept.clear()
    yield _kept


def interleaved(
    models: dict[str, Callable[..., Any]], inputs: Sequence[dict[str, Any]], runs: int, what: str, clock: str
) -> Times:
    """Seconds of each model's every step in every run; all models make a step before any makes the next."""
    shown = Console().is_terminal
    times = cost.interleaved(
        models,
        inputs,
        runs,
        clock,
        watched=lambda numbers: track(numbers, what, transient=True, refresh_per_second=1, disable=not shown),
    )
    if len(inputs) <= MANY_STEPS:
        rounded = {name: [[round(seconds, 7) for seconds in row] for row in rows] for name, rows in times.items()}
        _kept.append({"what": what, "seconds": rounded})
    return times
