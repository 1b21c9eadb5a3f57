"""Long service: however many requests a model has served, and however often its cache was put on, nothing grows."""

from __future__ import annotations

import functools
import gc
import logging
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import DBPruneConfig, TaylorSeerCalibratorConfig
from cache_dit.engine import subclass as attach
from cache_dit.engine.subclass import state_of
from tests.kit.equality import same
from tests.kit.toys import Toy, dynamic
from tests.kit.walks import Walk, Walked, nbytes, walked

STEPS = 4
CONFIG = dynamic(residual_diff_threshold=0.4)
TAYLOR = TaylorSeerCalibratorConfig()

# -- what is looked at


class Census(NamedTuple):
    """What there is at one moment."""

    tensors: int
    held: int
    """Entries of all containers that can be reached from the model's cache and from the package's modules."""
    requests: int
    nbytes: int
    blocks: int
    """Blocks of memory that Python holds. (`tracemalloc` does not see all of PyTorch's tensors go.)"""


def tensors_alive() -> int:
    """How many tensors there are."""
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def entries(roots: Iterable[object]) -> int:
    """How many entries the containers have that can be reached from somewhere, through the package's own objects."""
    seen: set[int] = set()
    waiting, total = list(roots), 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, (str, bytes, int, float, type, types.ModuleType, Tensor, nn.Module)):
            continue
        seen.add(id(item))
        inner: list[object] = []
        if isinstance(item, (dict, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)):
            inner = [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset, weakref.WeakSet)):
            inner = list(item)
        elif isinstance(item, functools.partial):
            inner = [item.args, item.keywords]
        elif isinstance(item, types.MethodType):
            inner = [item.__self__]
        elif type(item).__module__.startswith("cache_dit"):
            inner = [getattr(item, "__dict__", {}), *gc.get_referents(item)]
        total += len(inner)
        waiting += inner
    return total


def module_tables() -> Iterator[object]:
    """The containers that the package's modules hold."""
    kinds = (dict, list, set, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "cache_dit":
            yield from [
                value for key, value in vars(module).items() if isinstance(value, kinds) and key != "__builtins__"
            ]


def census(model: Any) -> Census:
    """What there is now."""
    gc.collect()
    state = state_of(model)
    assert len(state.said) < 20  # a reason is told once, whenever it first comes
    held = entries([state, *module_tables()]) - len(state.said)
    return Census(tensors_alive(), held, len(state.sessions), nbytes(model), sys.getallocatedblocks())


# -- services


class Pipe:
    """A loop over a toy, as a pipeline is one."""

    def __init__(self, model: Walked) -> None:
        self.transformer = model
        cache_dit.enable_cache(model.adapter(pipe=self), CONFIG, TAYLOR)

    def __call__(self, num_inference_steps: int = STEPS, stop: int | None = None, seed: int = 0) -> None:
        Walk(self.transformer, steps=num_inference_steps, seed=seed).go(stop)


def bare(config: Any) -> Callable[[], tuple[Any, Callable[[int], None]]]:
    """Requests that nobody names, each fifth of them given up."""

    def make() -> tuple[Any, Callable[[int], None]]:
        model = walked(config, TAYLOR, depth=2)
        return model, lambda number: void(Walk(model, steps=STEPS, seed=number % 5).go(2 if number % 5 == 3 else None))

    return make


def named(*, closed: bool) -> Callable[[], tuple[Any, Callable[[int], None]]]:
    """Requests in sessions, each with a name of its own and each third with options of its own."""

    def make() -> tuple[Any, Callable[[int], None]]:
        model = walked(dynamic(residual_diff_threshold=0.4, num_inference_steps=STEPS, max_sessions=8), TAYLOR, depth=2)

        def serve(number: int) -> None:
            handle = cache_dit.session(f"request {number:06}")
            if number % 3 == 0:
                handle.update(residual_diff_threshold=0.1 + 0.1 * (number % 5), decision="sample")
            handle.enabled = number % 15 != 4
            Walk(model, handle, steps=STEPS, seed=number % 5).go(2 if closed and number % 5 == 3 else None)
            if closed:
                handle.close()

        return model, serve

    return make


def piped() -> tuple[Any, Callable[[int], None]]:
    """A pipeline's calls, inside a session or not, each fifth of them failing in mid-run."""
    pipe = Pipe(Walked(2))

    def serve(number: int) -> None:
        if number % 5 == 3:
            with pytest.raises(RuntimeError):
                Failing(pipe)(number)
        elif number % 3 == 0:
            with cache_dit.session(number).update(residual_diff_threshold=0.1 * (1 + number % 4)):
                pipe(seed=number % 5)
        else:
            pipe(seed=number % 5)

    return pipe.transformer, serve


class Failing:
    """A call of a pipeline that fails in the forward of its third step."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    def __call__(self, number: int) -> None:
        calls = iter(range(100))

        def fail(module: Any, args: Any) -> None:
            if next(calls) == 2:
                raise RuntimeError

        hook = self.pipe.transformer.leave.register_forward_pre_hook(fail)
        try:
            self.pipe(seed=number % 5)
        finally:
            hook.remove()


def threaded() -> tuple[Any, Callable[[int], None]]:
    """Requests in threads that end with them, each fifth of them given up."""
    model = walked(CONFIG, TAYLOR, depth=2)

    def serve(number: int) -> None:
        walk = Walk(model, steps=STEPS, seed=number % 5)
        thread = threading.Thread(target=walk.go, args=(2 if number % 5 == 3 else None,))
        thread.start()
        thread.join()

    return model, serve


def void(_: object) -> None:
    """Let go of a result."""


SERVICES: dict[str, Callable[[], tuple[Any, Callable[[int], None]]]] = {
    "bare": bare(CONFIG),
    "bare, of known length": bare(dynamic(residual_diff_threshold=0.4, num_inference_steps=STEPS)),
    "DBPrune": bare(DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.4)),
    "sessions, closed": named(closed=True),
    "sessions, left open": named(closed=False),
    "pipeline": piped,
    "threads": threaded,
}


def serve(service: str, first: int, last: int) -> tuple[Census, Census]:
    """What there is after some requests and after many more, at the same place in the round of kinds of requests."""
    model, one = SERVICES[service]()
    at: dict[int, Census] = {}
    for number in range(last):
        one(number)
        if number + 1 in (first, last):
            at[number + 1] = census(model)
    return at[first], at[last]


ROUND = 5 * 3  # after so many requests all kinds of them have come by


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_grows_with_the_requests_that_were_served(service: str) -> None:
    early, late = serve(service, 2 * ROUND, 8 * ROUND)
    assert late.tensors == early.tensors
    assert late.held == early.held
    assert late.requests == early.requests
    assert late.nbytes == early.nbytes


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("service", SERVICES)
def test_memory_is_flat_from_the_first_to_the_ten_thousandth_request(
    service: str, record_property: Callable[[str, object], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="cache_dit")  # what is logged would be kept, by pytest
    first, last = 70 * ROUND, 700 * ROUND
    early, late = serve(service, first, last)
    record_property("early", early)
    record_property("late", late)
    print(f"\n{service}: after {first} {early}, after {last} {late}")
    assert late[:4] == early[:4]
    assert late.blocks - early.blocks < 1000  # of one and a half million; 9,450 requests lie between


# -- on and off


def classes_made() -> int:
    """How many classes of ours there are, with those that only wait for the garbage collector."""
    gc.collect()
    return sum(attach.PLAIN in vars(item) for item in gc.get_objects() if issubclass(type(item), type))


def on_and_off(model: Walked, config: Any = CONFIG) -> None:
    """The cache is put on, used a little, and taken off."""
    cache_dit.enable_cache(model.adapter(), config, TAYLOR)
    Walk(model, steps=2).go()
    Walk(model, cache_dit.session("left open"), steps=3).go(2)
    cache_dit.disable_cache(model)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("config", [CONFIG, dynamic(policy="teacache")], ids=["dbcache", "teacache"])
@pytest.mark.parametrize("times", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_cache_that_goes_on_and_off_leaves_nothing_behind(times: int, config: Any) -> None:
    model = Walked(2)
    expected = Walk(model).go()
    kinds, keys = {name: type(part) for name, part in model.named_modules()}, list(model.state_dict())
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    for _ in range(3):
        on_and_off(model, config)
    before, tensors, tables = classes_made(), tensors_alive(), entries(module_tables())
    for _ in range(times):
        on_and_off(model, config)
    assert {name: type(part) for name, part in model.named_modules()} == kinds
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes
    assert list(model.state_dict()) == keys
    assert (classes_made(), tensors_alive(), entries(module_tables())) == (before, tensors, tables)
    assert same(Walk(model).go(), expected)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [25, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("disabled", [True, False], ids=["disabled", "just dropped"])
def test_models_that_come_and_go_leave_nothing_behind(times: int, disabled: bool) -> None:
    def come_and_go() -> list[weakref.ref[Any]]:
        model = walked(CONFIG, TAYLOR, depth=2)
        Walk(model, steps=2).go()
        remains = [weakref.ref(model), weakref.ref(state_of(model)), weakref.ref(model.blocks[1])]
        if disabled:
            cache_dit.disable_cache(model)
        return remains

    for _ in range(3):
        come_and_go()
    before, tensors, tables = classes_made(), tensors_alive(), entries(module_tables())
    remains = [one for _ in range(times) for one in come_and_go()]
    assert (classes_made(), tensors_alive(), entries(module_tables())) == (before, tensors, tables)
    assert not [one for one in remains if one() is not None]
    assert not gc.garbage


def test_pipelines_that_come_and_go_leave_nothing_behind() -> None:
    def come_and_go(number: int) -> list[weakref.ref[Any]]:
        pipe = Pipe(Walked(2))
        pipe(2)
        remains = [weakref.ref(pipe), weakref.ref(pipe.transformer), weakref.ref(state_of(pipe))]
        if number % 2:
            cache_dit.disable_cache(pipe)
        return remains

    come_and_go(0)
    before, tensors, tables = classes_made(), tensors_alive(), entries(module_tables())
    remains = [one for number in range(25) for one in come_and_go(number)]
    assert (classes_made(), tensors_alive(), entries(module_tables())) == (before, tensors, tables)
    assert not [one for one in remains if one() is not None]


def test_classes_that_come_and_go_leave_nothing_behind() -> None:
    def come_and_go() -> weakref.ref[type]:
        class Local(Toy):
            """A class of its own each time."""

        model = Local("0", (2,))
        cache_dit.enable_cache(model.adapter(), CONFIG)
        with torch.no_grad():
            model(torch.zeros(1, 6, 8), torch.zeros(1, 3, 8), torch.tensor(1.0))
        cache_dit.disable_cache(model)
        return weakref.ref(Local)

    come_and_go()
    before = classes_made()
    remains = [come_and_go() for _ in range(10)]
    assert classes_made() == before
    assert not [one for one in remains if one() is not None]
