"""What a cache costs: the same lines measure ours, diffusers' own, and packages in environments of their own.

Imports torch and diffusers, and the package that is measured when it is asked for: the worker of another environment
loads this file by its path. ``run`` takes and gives plain data.
"""

import contextlib
import copy
import gc
import inspect
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

HEAD = 64
#: Wall time is what a user waits. Processor time, with one thread, tells more on a machine that others use too.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
LISTS = ("transformer_blocks", "single_transformer_blocks")

#: Seconds of each model's every step in every run.
Times = dict[str, list[list[float]]]
Model = Callable[..., Any]


# -- the model


@dataclass(frozen=True)
class Size:
    """A FLUX transformer and its input."""

    hidden: int = 512
    double: int = 4
    single: int = 8
    image_tokens: int = 256
    text_tokens: int = 64
    steps: int = 20

    @property
    def blocks(self) -> int:
        return self.double + self.single

    @property
    def feature_bytes(self) -> int:
        """One feature: what a block hands on, image and text tokens, in float32."""
        return (self.image_tokens + self.text_tokens) * self.hidden * 4


def make_transformer(size: Size) -> FluxTransformer2DModel:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=size.double,
        num_single_layers=size.single,
        attention_head_dim=HEAD,
        num_attention_heads=size.hidden // HEAD,
        joint_attention_dim=256,
        pooled_projection_dim=256,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    return model.eval().requires_grad_(False)


def twin(model: torch.nn.Module) -> Any:
    """Another instance of a model with the very same weights."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def with_blocks(model: Any, kept: Iterable[int] = ()) -> Any:
    """A twin that has only some of the blocks, numbered over both lists: what a step costs that runs no others."""
    kept = set(kept)
    hollow = twin(model)
    first = len(hollow.transformer_blocks)
    for name, start in zip(LISTS, (0, first), strict=True):
        blocks = enumerate(getattr(hollow, name), start=start)
        setattr(hollow, name, torch.nn.ModuleList(block for number, block in blocks if number in kept))
    return hollow


def make_inputs(size: Size) -> list[dict[str, Any]]:
    """The arguments of each step: a state that drifts slowly, as in a denoising loop."""
    return drifting(size, [1.0])


def drifting(size: Size, speeds: Sequence[float], *, seed: int = 0) -> list[dict[str, Any]]:
    """The arguments of each step: a batch of different samples, each of which drifts at a speed of its own."""
    batch = len(speeds)
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(batch, size.image_tokens, 64, generator=generator)
    drift = torch.randn(state.shape, generator=generator) / size.steps
    drift = drift * torch.tensor(speeds).view(-1, 1, 1)
    fixed = {
        "encoder_hidden_states": torch.randn(batch, size.text_tokens, 256, generator=generator),
        "pooled_projections": torch.randn(batch, 256, generator=generator),
        "img_ids": torch.zeros(size.image_tokens, 3),
        "txt_ids": torch.zeros(size.text_tokens, 3),
        "return_dict": False,
    }
    return [
        {"hidden_states": state + step * drift, "timestep": torch.full((batch,), 1 - step / size.steps), **fixed}
        for step in range(size.steps)
    ]


def named(model: Any) -> Model:
    """A model called as diffusers' pipelines call it, cached or not: the branch has a name."""

    def call(**arguments: Any) -> Any:
        with model.cache_context("cond"):
            return model(**arguments)

    return call


# -- putting a cache on


@dataclass(frozen=True)
class Cache:
    """A cache that is on a transformer: what ends a request, and what takes it off."""

    end: Callable[[], None]
    off: Callable[[], None]


PutOn = Callable[[Any, Size], Cache]


def cache_dit_on(options: dict[str, Any]) -> PutOn:
    """The package named ``cache_dit``, whichever is installed, by names that all of its versions have.

    Args:
        options: the fields of a ``DBCacheConfig``; ``"taylor"``: the order of a Taylor polynomial instead of reuse.
    """

    def put_on(model: Any, size: Size) -> Cache:
        import cache_dit

        given = {"num_inference_steps": size.steps, "Bn_compute_blocks": 0, "max_warmup_steps": 1, **options}
        order = given.pop("taylor", None)
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
        adapter = cache_dit.get_adapter(model)
        cache_dit.enable_cache(adapter, cache_config=cache_dit.DBCacheConfig(**given), calibrator_config=calibrator)
        return Cache(end=lambda: cache_dit.refresh_context(model), off=lambda: cache_dit.disable_cache(adapter))

    return put_on


def diffusers_on(name: str, options: dict[str, Any]) -> PutOn:
    """One of diffusers' own caches, by the name of its configuration."""

    def put_on(model: Any, size: Size) -> Cache:
        import diffusers

        config = getattr(diffusers, name)
        steps = (
            {"num_inference_steps": size.steps} if "num_inference_steps" in inspect.signature(config).parameters else {}
        )
        model.enable_cache(config(**steps, **options))
        return Cache(end=model._reset_stateful_cache, off=model.disable_cache)

    return put_on


def by_name(method: str, options: dict[str, Any]) -> PutOn:
    """``"cache_dit"``, or the name of a configuration of diffusers."""
    return cache_dit_on(options) if method == "cache_dit" else diffusers_on(method, options)


@contextlib.contextmanager
def putting(put_on: PutOn, model: Any, size: Size) -> Iterator[Cache]:
    """A cache that is on inside."""
    cache = put_on(model, size)
    try:
        yield cache
    finally:
        cache.off()


# -- time


def interleaved(
    models: dict[str, Model],
    inputs: Sequence[dict[str, Any]],
    runs: int,
    clock: str,
    *,
    ended: Callable[[], None] = lambda: None,
    watched: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Times:
    """Seconds of each model's every step in every run; all models make a step before any makes the next.

    Args:
        models: by name.
        inputs: the arguments of each step.
        runs: how often, after one run that warms up.
        clock: one of ``CLOCKS``.
        ended: called after each run.
        watched: sees the numbers of the runs go by, for a progress bar.
    """
    order = random.Random(0)
    times: Times = {name: [] for name in models}
    names, now = list(models), CLOCKS[clock]
    for run in watched(range(runs + 1)):
        rows: dict[str, list[float]] = {name: [] for name in names}
        for arguments in inputs:
            order.shuffle(names)
            for name in names:
                start = now()
                models[name](**arguments)
                rows[name].append(now() - start)
        ended()
        if run:  # the first one warms up
            for name, row in rows.items():
                times[name].append(row)
    return times


def executed_blocks(model: Any, inputs: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The blocks that ran in each step of one request, numbered over both lists: those whose first layer was called."""
    ran: list[list[int]] = [[] for _ in inputs]
    step, call = 0, named(model)

    def hook(number: int) -> Callable[..., None]:
        return lambda *_: ran[step].append(number)

    with contextlib.ExitStack() as hooks:
        for number, block in enumerate(block for name in LISTS for block in getattr(model, name)):
            linear = next(layer for layer in block.modules() if isinstance(layer, torch.nn.Linear))
            hooks.callback(linear.register_forward_pre_hook(hook(number)).remove)
        for step, arguments in enumerate(inputs):  # noqa: B007 - the hooks read it
            call(**arguments)
    return ran


def time_of(size: Size, put_on: PutOn, *, runs: int, clock: str = "processor") -> dict[str, Any]:
    """Seconds of each step, bare and wrapped, and where blocks are skipped of a model that has only the others."""
    bare, inputs = make_transformer(size), make_inputs(size)
    wrapped = twin(bare)
    with putting(put_on, wrapped, size) as cache:
        ran = executed_blocks(wrapped, inputs)
        cache.end()
        models = {"bare": named(bare), "wrapped": named(wrapped)}
        kept = min(ran, key=len)
        if len(kept) < size.blocks:
            models["rest"] = named(with_blocks(bare, kept))
        times = interleaved(models, inputs, runs, clock, ended=cache.end)
    return {"times": times, "blocks": [len(blocks) for blocks in ran]}


# -- state


def most_alive(model: Model, inputs: Sequence[dict[str, Any]]) -> int:
    """The most bytes of tensors alive after a step, beyond those alive before the first."""
    most = 0
    gc.collect()
    before = _alive()
    gc.freeze()  # what is there already is not looked at again
    try:
        for arguments in inputs:
            model(**arguments)
            gc.collect()
            alive = _alive()
            most = max(most, sum(alive[pointer] for pointer in alive.keys() - before.keys()))
    finally:
        gc.unfreeze()
    return most


def _alive() -> dict[int, int]:
    """Address and bytes of the memory behind every tensor that the garbage collector knows."""
    found = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    real = [tensor for tensor in found if not isinstance(tensor, FakeTensor)]  # a compiler leaves such behind
    tensors = [tensor for tensor in real if tensor.layout is torch.strided and not tensor.is_meta]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def state_of(size: Size, put_on: PutOn) -> dict[str, Any]:
    """The most bytes that are alive between two steps of a request because of the cache."""
    bare, inputs = make_transformer(size), make_inputs(size)
    wrapped = twin(bare)
    of_the_model = most_alive(named(bare), inputs[:2])
    with putting(put_on, wrapped, size):
        alive = most_alive(named(wrapped), inputs)
    return {"bytes": alive - of_the_model, "feature_bytes": size.feature_bytes}


# -- host reads

#: Methods of a tensor that bring numbers to the host, and operators that do.
_READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__"}
#: Where the numbers come from; see ``HostReads``.
ORIGINS = ("model", "timestep", "own")
_OPERATORS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")


class HostReads:
    """Counts, inside, how often numbers of tensors are read by the host, by where the numbers come from.

    ``"model"``: computed with the model's weights or from its hidden states, so that on an accelerator the host waits;
    ``"timestep"``: computed from the timestep alone; ``"own"``: what a cache made on the host by itself, for which
    nothing waits anywhere.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.count: Counter[str] = Counter()
        self._origin: Any = WeakTensorKeyDictionary()
        self._reading = False
        for tensor in (*model.parameters(), *model.buffers()):
            self._origin[tensor] = "model"

    def mark(self, arguments: dict[str, Any]) -> None:
        """Take note of the arguments of a step."""
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                self._origin[value] = "timestep" if name == "timestep" else "model"

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with _Operators(self), _Functions(self):
            yield

    def origin(self, *values: Any) -> str:
        origins = {self._origin.get(leaf) for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}
        return next((name for name in ORIGINS[:2] if name in origins), "own")

    def read(self, run: Callable[[], Any], *values: Any) -> Any:
        """Run what reads, and count it once, however many operators it is made of."""
        outer, self._reading = self._reading, True
        try:
            if not outer:
                self.count[self.origin(*values)] += 1
            return run()
        finally:
            self._reading = outer

    def passed_on(self, result: Any, *values: Any) -> Any:
        """The result of an operator, with the origin of what it was made of."""
        origin = self.origin(*values)
        if origin != "own":
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._origin[leaf] = origin
        return result


class _Functions(TorchFunctionMode):
    """Sees the methods; some of them never come to the dispatcher."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _READS:
            return self.reads.read(lambda: func(*args, **kwargs), args)
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Sees what methods and functions are made of."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in _OPERATORS:
            return self.reads.read(lambda: func(*args, **kwargs), args, kwargs)
        return self.reads.passed_on(func(*args, **kwargs), args, kwargs)


def reads_of(size: Size, put_on: PutOn | None) -> dict[str, Any]:
    """The host reads of each step of a second request by origin, and all of the first; None: without a cache.

    What a cache looks at once in its life belongs to the first.
    """
    model, inputs = make_transformer(size), make_inputs(size)
    with putting(put_on, model, size) if put_on else contextlib.nullcontext() as cache:
        first = _reads_by_step(model, inputs)
        if cache:
            cache.end()
        steps = _reads_by_step(model, inputs)
    counts: dict[str, Any] = {f"{origin}_reads": [step[origin] for step in steps] for origin in ORIGINS}
    return {**counts, "first_request": {origin: sum(step[origin] for step in first) for origin in ORIGINS}}


def _reads_by_step(model: Any, inputs: Sequence[dict[str, Any]]) -> list[Counter[str]]:
    reads, call = HostReads(model), named(model)
    steps = []
    for arguments in inputs:
        before = reads.count.copy()
        reads.mark(arguments)
        with reads():
            call(**arguments)
        steps.append(reads.count - before)
    return steps


# -- torch.compile


def _repeated_blocks(model: Any, backend: Any) -> Any:
    model.compile_repeated_blocks(backend=backend)
    return model


def _whole(model: Any, backend: Any) -> Any:
    model.compile(backend=backend)
    return model


#: The three ways to compile.
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "repeated blocks": _repeated_blocks,
    "whole model": _whole,
    "wrapper": lambda model, backend: torch.compile(model, backend=backend),
}


def compile_of(size: Size, put_on: PutOn | None, way: str) -> dict[str, Any]:
    """Graphs, breaks and recompiles of two requests, and how far the first one's outputs are from those of plain code.

    The backend runs each graph as it is: what is counted depends on what dynamo sees, not on the code that is made.
    None: the model without a cache.
    """
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics

    model, inputs = make_transformer(size), make_inputs(size)
    other = twin(model)
    with putting(put_on, other, size) if put_on else contextlib.nullcontext():
        call = named(other)
        expected = [call(**arguments)[0] for arguments in inputs]
    torch._dynamo.reset()
    counters.clear()
    clear_compilation_metrics()
    counter = CompileCounterWithBackend("eager")
    found: dict[str, Any] = {"error": None, "graphs_by_request": [], "difference": None}
    with putting(put_on, model, size) if put_on else contextlib.nullcontext() as cache:
        try:
            call = named(WAYS[way](model, counter))
            for request in range(2):
                outputs = [call(**arguments)[0] for arguments in inputs]
                if not request:
                    pairs = zip(outputs, expected, strict=True)
                    found["difference"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
                if cache:
                    cache.end()
                found["graphs_by_request"].append(counter.frame_count - sum(found["graphs_by_request"]))
        except Exception as error:  # noqa: BLE001 - whatever a peer does under the compiler is a result
            found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    found["graphs"] = counter.frame_count
    found["breaks"] = sum(counters["graph_break"].values())
    found["recompiles"] = sum(1 for one in get_compilation_metrics() if _is_recompile(one))
    torch._dynamo.reset()
    return found


def _is_recompile(metrics: Any) -> bool:
    """Whether a compilation is another one of a frame that was compiled before: ``frame/compilation`` is its name."""
    number = str(metrics.compile_id).rpartition("/")[2].partition("_")[0]
    return number.isdigit() and int(number) > 0


# -- requests


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
) -> dict[str, Any]:
    """Measure one thing; what comes in and goes out is plain data.

    Args:
        measure: ``"time"``, ``"state"``, ``"reads"`` or ``"compile"``.
        size: the fields of a ``Size``.
        method: as for ``by_name``; None: no cache, for reads and compiling.
        options: of the method.
        runs: for times, beside the one that warms up.
        clock: one of ``CLOCKS``.
        way: for compiling, one of ``WAYS``.
        threads: that torch computes with.

    Raises:
        ValueError: there is no such measure, or it needs a method.
    """
    model = Size(**size)
    put_on = None if method is None else by_name(method, options or {})
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "reads": lambda: reads_of(model, put_on),
        "compile": lambda: compile_of(model, put_on, way),
    }
    if put_on is not None:
        measures["time"] = lambda: time_of(model, put_on, runs=runs, clock=clock)
        measures["state"] = lambda: state_of(model, put_on)
    if measure not in measures:
        raise ValueError(f"cannot measure {measure!r} with the method {method!r}: it is one of {', '.join(measures)}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return measures[measure]()
    finally:
        torch.set_num_threads(before)
