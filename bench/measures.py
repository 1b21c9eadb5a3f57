"""What a cache costs a transformer: the same lines measure ours, diffusers' own, and packages in other environments.

It imports torch and diffusers, and the package that is measured when it is asked for. ``run`` takes and gives plain
data: a worker answers with it (bench/peers/worker.py).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.counting import executed_blocks, most_alive, reads_by_step
from bench.models import Size, blocks_of, drifting, make_transformer, named, twin, with_blocks
from bench.timer import Call, HostClock, interleaved

Row = dict[str, Any]


@dataclass(frozen=True)
class Cache:
    """A cache that is on a transformer: what ends a request, and what takes it off."""

    end: Callable[[], None]
    off: Callable[[], None]


#: Puts a cache on a transformer, for runs of so many steps.
PutOn = Callable[[Any, int], Cache]


def by_name(method: str, options: dict[str, Any]) -> PutOn:
    """A cache by its name.

    Args:
        method: ``"cache_dit"``: the package of that name, whichever is installed, by names that all of its versions
            have; else the name of a configuration of diffusers.
        options: the fields of the configuration; for ``"cache_dit"`` see `configured`.
    """

    def cache_dit_on(model: Any, steps: int) -> Cache:
        import cache_dit

        common = {"num_inference_steps": steps, "Bn_compute_blocks": 0, "max_warmup_steps": 1}
        config, calibrator = configured({**common, **options}, steps)
        adapter = cache_dit.get_adapter(model)
        cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)
        return Cache(end=lambda: cache_dit.refresh_context(model), off=lambda: cache_dit.disable_cache(adapter))

    def diffusers_on(model: Any, steps: int) -> Cache:
        import diffusers

        config = getattr(diffusers, method)
        given = dict(options)
        if "num_inference_steps" in inspect.signature(config).parameters:
            given = {"num_inference_steps": steps, **options}
        model.enable_cache(config(**given))
        return Cache(end=model._reset_stateful_cache, off=model.disable_cache)

    return cache_dit_on if method == "cache_dit" else diffusers_on


def configured(options: Mapping[str, Any], steps: int) -> tuple[Any, Any]:
    """A cache configuration and a calibrator's of the package named ``cache_dit``, from plain data.

    Args:
        options: the fields of a ``DBCacheConfig``, or of the one that ``"config"`` names; ``"calibrator"`` has the name
            of another one and its fields, ``"taylor"`` is the order of a Taylor polynomial, and ``"mask"`` holds
            arguments of ``steps_mask``.
        steps: of a run.
    """
    import cache_dit

    given = dict(options)
    if "mask" in given:
        given["steps_computation_mask"] = cache_dit.steps_mask(total_steps=steps, **given.pop("mask"))
    if order := given.pop("taylor", None):
        given["calibrator"] = ("TaylorSeerCalibratorConfig", {"taylorseer_order": order})
    name, fields = given.pop("calibrator", None) or ("", {})
    calibrator = getattr(cache_dit, name)(**fields) if name else None
    return getattr(cache_dit, given.pop("config", "DBCacheConfig"))(**given), calibrator


@contextlib.contextmanager
def putting(put_on: PutOn | None, model: Any, steps: int) -> Iterator[Cache]:
    """A cache that is on inside; None: nothing is."""
    cache = put_on(model, steps) if put_on else Cache(lambda: None, lambda: None)
    try:
        yield cache
    finally:
        cache.off()


# -- the measures


@dataclass
class Subject:
    """A bare transformer, the arguments of each step, and how it is called and timed.

    ``runs``: of all steps, beside the one that warms up; ``feature_bytes``: of one feature, what a block hands on.
    """

    model: Any
    inputs: Sequence[dict[str, Any]]
    clock: HostClock
    runs: int = 3
    feature_bytes: int = 1
    called: Callable[[Any], Callable[..., Any]] = named

    @classmethod
    def of(cls, size: Size, clock: str = "processor", runs: int = 3) -> Subject:
        """A FLUX."""
        return cls(make_transformer(size), drifting(size), HostClock(clock), runs, size.feature_bytes)

    def call(self, model: Any) -> Call:
        """A model, called with the number of a step."""
        called = self.called(model)
        return lambda step: called(**self.inputs[step])

    def run(self, model: Any) -> list[Any]:
        """The outputs of a whole run."""
        return [self.call(model)(step) for step in range(len(self.inputs))]


def time_of(subject: Subject, caches: Mapping[str, PutOn | None], *, watched: Any = iter) -> Row:
    """Seconds of each step, in turn: bare, with each cache, and of models that have only the blocks that one runs.

    The row has the ``times``; and by cache the calls of ``blocks`` in each step, and, where anything is skipped, the
    model that has only the ``rest``. A cache that is None is another instance of the bare model.
    """
    bare, steps = subject.model, len(subject.inputs)
    models, row, ends = {"bare": bare}, {"times": {}, "blocks": {}, "rest": {}}, []
    with contextlib.ExitStack() as stack:
        for name, put_on in caches.items():
            model = models[name] = twin(bare)
            cache = stack.enter_context(putting(put_on, model, steps))
            row["blocks"][name], kept = executed_blocks(model, subject.called(model), subject.inputs)
            cache.end()
            ends.append(cache.end)
            if len(kept) < len(blocks_of(bare)):
                rest = row["rest"][name] = f"blocks {kept}"
                models.setdefault(rest, with_blocks(bare, kept))
        calls = {name: subject.call(model) for name, model in models.items()}
        ended = lambda: [end() for end in ends]  # noqa: E731
        row["times"] = interleaved(calls, steps, subject.runs, subject.clock, ended=ended, watched=watched)
    return row


def state_of(subject: Subject, put_on: PutOn | None) -> Row:
    """The most bytes that are alive between two steps of a request because of the cache."""
    wrapped = twin(subject.model)
    of_the_model = most_alive(subject.called(subject.model), subject.inputs[:2])
    with putting(put_on, wrapped, len(subject.inputs)):
        alive = most_alive(subject.called(wrapped), subject.inputs)
    return {"bytes": alive - of_the_model, "feature_bytes": subject.feature_bytes}


def reads_of(subject: Subject, put_on: PutOn | None) -> Row:
    """The host reads of each step of a second request, and all of the first; None: without a cache.

    What a cache looks at once in its life belongs to the first.
    """
    model = twin(subject.model)
    call = subject.called(model)
    with putting(put_on, model, len(subject.inputs)) as cache:
        first = reads_by_step(model, call, subject.inputs)
        cache.end()
        return {"model_reads": reads_by_step(model, call, subject.inputs), "first_request": sum(first)}


def run(
    *,
    measure: str,
    size: dict[str, int],
    method: str | None = None,
    options: dict[str, Any] | None = None,
    runs: int = 3,
    clock: str = "processor",
    threads: int = 1,
) -> Row:
    """Measure ``"time"``, ``"state"`` or ``"reads"``; what comes in and goes out is plain data.

    Args:
        measure: which of them.
        size: the fields of a ``Size``.
        method, options: as for ``by_name``; None: no cache, for reads.
        runs, clock: of times; ``threads``: that torch computes with.
    """
    subject, put_on = Subject.of(Size(**size), clock, runs), method and by_name(method, options or {})
    measures: dict[str, Callable[[], Row]] = {
        "time": lambda: time_of(subject, {"wrapped": put_on}),
        "state": lambda: state_of(subject, put_on),
        "reads": lambda: reads_of(subject, put_on),
    }
    torch.set_num_threads(threads)
    with torch.no_grad():
        return measures[measure]()
