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

from bench.counting import ORIGINS, executed_blocks, most_alive, reads_by_step
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
    """What is measured, and how.

    Args:
        model: the bare transformer.
        inputs: the arguments of each step.
        clock: reads the times.
        runs: of all steps, beside the one that warms up.
        feature_bytes: one feature: what a block hands on.
        called: how a model is called.
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


def state_of(subject: Subject, put_on: PutOn) -> Row:
    """The most bytes that are alive between two steps of a request because of the cache."""
    wrapped = twin(subject.model)
    of_the_model = most_alive(subject.called(subject.model), subject.inputs[:2])
    with putting(put_on, wrapped, len(subject.inputs)):
        alive = most_alive(subject.called(wrapped), subject.inputs)
    return {"bytes": alive - of_the_model, "feature_bytes": subject.feature_bytes}


def reads_of(subject: Subject, put_on: PutOn | None) -> Row:
    """The host reads of each step of a second request by origin, and all of the first; None: without a cache.

    What a cache looks at once in its life belongs to the first.
    """
    model = twin(subject.model)
    call = subject.called(model)
    with putting(put_on, model, len(subject.inputs)) as cache:
        first = reads_by_step(model, call, subject.inputs)
        cache.end()
        steps = reads_by_step(model, call, subject.inputs)
    counts: Row = {f"{origin}_reads": [step[origin] for step in steps] for origin in ORIGINS}
    return {**counts, "first_request": {origin: sum(step[origin] for step in first) for origin in ORIGINS}}


#: The ways to compile: a model becomes what is called.
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "repeated blocks": lambda model, backend: model.compile_repeated_blocks(backend=backend) or model,
    "whole model": lambda model, backend: model.compile(backend=backend) or model,
    "wrapper": lambda model, backend: torch.compile(model, backend=backend),
}


def compile_of(subject: Subject, put_on: PutOn | None, way: str) -> Row:
    """Graphs, breaks and recompiles of two requests, and how far the first one's outputs are from those of plain code.

    The backend runs each graph as it is: what is counted depends on what dynamo sees, not on the code that is made.
    """
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

    steps, model, other = len(subject.inputs), twin(subject.model), twin(subject.model)
    with putting(put_on, other, steps):
        expected = subject.run(other)
    torch._dynamo.reset()
    counters.clear()
    clear_compilation_metrics()
    counter = CompileCounterWithBackend("eager")
    found: Row = {"error": None, "graphs_by_request": [], "difference": None}
    with putting(put_on, model, steps) as cache:
        try:
            compiled = WAYS[way](model, counter)
            for request in range(2):
                outputs = subject.run(compiled)
                if not request:
                    pairs = zip(outputs, expected, strict=True)
                    found["difference"] = max(float((a - b).abs().max() / b.abs().max()) for (a,), (b,) in pairs)
                cache.end()
                found["graphs_by_request"].append(counter.frame_count - sum(found["graphs_by_request"]))
        except Exception as error:  # noqa: BLE001 - whatever a peer does under the compiler is a result
            found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    recompiles = sum(_is_recompile(one) for one in get_compilation_metrics())
    found |= {"graphs": counter.frame_count, "breaks": sum(counters["graph_break"].values()), "recompiles": recompiles}
    torch._dynamo.reset()
    return found


def _is_recompile(metrics: Any) -> bool:
    """Whether a compilation is another one of a frame that was compiled before: ``frame/compilation`` is its name."""
    number = str(metrics.compile_id).rpartition("/")[2].partition("_")[0]
    return number.isdigit() and int(number) > 0


def run(
    *,
    measure: str,
    size: dict[str, int],
    method: str | None = None,
    options: dict[str, Any] | None = None,
    runs: int = 3,
    clock: str = "processor",
    way: str = "whole model",
    threads: int = 1,
) -> Row:
    """Measure ``"time"``, ``"state"``, ``"reads"`` or ``"compile"``; what comes in and goes out is plain data.

    Args:
        measure: which of them.
        size: the fields of a ``Size``.
        method, options: as for ``by_name``; None: no cache, for reads and compiling.
        runs, clock: of times; ``way``: of compiling; ``threads``: that torch computes with.
    """
    subject = Subject.of(Size(**size), clock, runs)
    put_on = None if method is None else by_name(method, options or {})
    measures: dict[str, Callable[[], Row]] = {
        "reads": lambda: reads_of(subject, put_on),
        "compile": lambda: compile_of(subject, put_on, way),
    }
    if put_on is not None:
        measures["time"] = lambda: time_of(subject, {"wrapped": put_on})
        measures["state"] = lambda: state_of(subject, put_on)
    if measure not in measures:
        raise ValueError(f"cannot measure {measure!r} with the method {method!r}: it is one of {', '.join(measures)}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return measures[measure]()
    finally:
        torch.set_num_threads(before)
