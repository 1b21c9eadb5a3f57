"""Requests: each run of the denoising loop gives what it gives alone, whatever ran before it or beside it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit import DBCacheConfig, DBPruneConfig, SessionError, TaylorSeerCalibratorConfig
from cache_dit.engine.forward import branch_cache
from cache_dit.engine.forward.chain import _Current
from cache_dit.engine.forward.stepwise_forward import StepwiseForward
from cache_dit.engine.sessions import call_reader as calls
from cache_dit.engine.sessions.call_reader import CallReader
from cache_dit.engine.sessions.request import Request
from cache_dit.engine.state import measure
from cache_dit.engine.subclass import state_of
from tests.kit.equality import close, same
from tests.kit.threads import in_threads
from tests.kit.toys import OptionalToy, Toy, counted, denoise, dynamic, line, lines, loop, static, stream_inputs

STEPS = 8
TAYLOR = TaylorSeerCalibratorConfig()

CONFIGS: dict[str, Callable[..., DBCacheConfig]] = {
    "measured": lambda **options: dynamic(residual_diff_threshold=0.2, Bn_compute_blocks=1, **options),
    "static": lambda **options: static("FFCCFCCF", **options),
    "unmeasured": lambda **options: dynamic(residual_diff_threshold=1.0, max_continuous_cached_steps=2, **options),
}


def cached(config: DBCacheConfig | None = None, form: str = "0") -> Toy:
    """A toy with the cache on."""
    model = Toy(form)
    cache_dit.enable_cache(model.adapter(), config or CONFIGS["measured"](), TAYLOR)
    return model


def alone(config: DBCacheConfig, *, seed: int = 0, steps: int = STEPS, **shape: int) -> list[Tensor]:
    """What a first run gives on a model of its own."""
    return denoise(cached(config), loop(steps), seed=seed, **shape)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> DBCacheConfig:
    """One of the ways to decide."""
    return CONFIGS[request.param]()


@pytest.fixture(params=[None, STEPS], ids=["open end", "steps known"])
def ended(request: pytest.FixtureRequest, config: DBCacheConfig) -> DBCacheConfig:
    """One of the ways to decide, with the number of steps known or not."""
    return config if request.param is None else config.update(num_inference_steps=request.param)


def test_the_runs_of_these_tests_hit(config: DBCacheConfig) -> None:
    model = cached(config)
    denoise(model, loop(STEPS))
    assert set(line(model)) == {"F", "C"}


# -- one run after the other


def test_runs_with_other_inputs_follow_each_other(ended: DBCacheConfig) -> None:
    model = cached(ended)
    for seed in (0, 1, 2, 0):
        assert same(denoise(model, loop(STEPS), seed=seed), alone(ended, seed=seed))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("done", range(1, STEPS))
def test_a_run_after_one_that_was_aborted_between_steps(done: int, known: bool) -> None:
    config = CONFIGS["measured"](num_inference_steps=STEPS if known else None)
    model = cached(config)
    denoise(model, loop(STEPS), seed=2)
    denoise(model, loop(STEPS)[:done], seed=1)
    assert same(denoise(model, loop(STEPS)), alone(config))


@pytest.mark.parametrize("done", range(2, STEPS))
def test_a_run_after_a_very_first_one_that_was_aborted_between_steps(done: int) -> None:
    config = CONFIGS["measured"]()
    model = cached(config)
    denoise(model, loop(STEPS)[:done], seed=1)
    assert same(denoise(model, loop(STEPS)), alone(config))


def test_runs_after_a_single_call_that_was_none() -> None:
    config = CONFIGS["measured"]()
    model = cached(config)
    denoise(model, [0.5], seed=1)  # to compile the model, say
    denoise(model, loop(STEPS))
    for _ in range(2):  # that timesteps seemed to rise once is forgotten
        assert same(denoise(model, loop(STEPS)), alone(config))


def test_a_run_of_rising_timesteps_after_one_that_was_aborted() -> None:
    rising = [1 - timestep for timestep in loop(STEPS)]
    config = CONFIGS["measured"]()
    expected = denoise(cached(config), rising)
    model = cached(config)
    denoise(model, rising[:5], seed=1)
    assert same(denoise(model, rising), expected)


@pytest.mark.parametrize("place", [0, 1, 2, 4])
@pytest.mark.parametrize("failing", range(STEPS))
def test_a_run_after_one_in_which_a_block_raised(failing: int, place: int) -> None:
    config = static("FFCCFCCF", num_inference_steps=STEPS)
    model = cached(config)
    calls = itertools.count()

    def fail(module: Any, args: Any) -> None:
        if next(calls) == failing:
            raise KeyboardInterrupt

    hook = model.blocks[place].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt) if place == 0 else _perhaps_raises():
        denoise(model, loop(STEPS), seed=1)
    hook.remove()
    assert all(chain.current.forward is None for chain, _ in state_of(model).chains)
    assert same(denoise(model, loop(STEPS)), alone(config))


class _perhaps_raises:
    """A skipped block does not raise."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, value: Any, trace: Any) -> bool:
        return kind in (KeyboardInterrupt, None)


def test_what_a_failed_forward_gathered_is_freed() -> None:
    model = cached(static("FFCC"))
    denoise(model, loop(4)[:2])
    assert live_bytes(model) > 0
    with pytest.raises(RuntimeError), torch.no_grad():
        model(torch.zeros(1, 1, 3), None)
    assert live_bytes(model) == 0


def test_a_forward_that_fails_after_its_last_block_leaves_no_request_open(
    config: DBCacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cached(config)
    denoise(model, loop(STEPS)[:2], seed=1)

    def fail(run: StepwiseForward, output: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(StepwiseForward, "commit", fail)
        denoise(model, loop(STEPS)[2:], seed=1)
    assert not state_of(model).sessions
    assert live_bytes(model) == 0
    assert same(denoise(model, loop(STEPS)), alone(config))


@pytest.mark.parametrize(
    "other",
    [
        {"tokens": 9},
        {"batch": 2},
        {"steps": 5},
        {"steps": 11},
        {"tokens": 4, "batch": 3, "steps": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("aborted", [False, True])
def test_a_run_after_one_of_another_shape_or_length(ended: DBCacheConfig, other: dict[str, int], aborted: bool) -> None:
    model = cached(ended)
    steps = other.pop("steps", STEPS)
    denoise(model, loop(steps)[: 2 if aborted else None], seed=1, **other)
    assert same(denoise(model, loop(STEPS)), alone(ended))
    assert same(denoise(model, loop(STEPS), **other), alone(ended, **other))
    other["steps"] = steps


def test_a_run_after_one_in_another_dtype(ended: DBCacheConfig) -> None:
    def run(model: Toy, dtype: torch.dtype) -> list[Tensor]:
        model.to(dtype)
        hidden, encoder = (stream.to(dtype) for stream in stream_inputs())
        with torch.no_grad():
            return [model(hidden, encoder, timestep) for timestep in loop(STEPS)]

    # The weights of a model that was in bfloat16 stay rounded.
    expected = run(cached(ended).to(torch.bfloat16), torch.float32)
    model = cached(ended)
    first = run(model, torch.bfloat16)
    assert same(run(model, torch.float32), expected)
    assert same(run(model, torch.bfloat16), first)


def test_a_request_is_over_after_its_last_step_and_not_one_later() -> None:
    model = cached(dynamic(num_inference_steps=6, residual_diff_threshold=1.0, max_warmup_steps=2))
    for _ in range(3):
        frozen = [1.0] * 6  # nothing but the number of steps tells where a request ends
        denoise(model, frozen)
        assert line(model) == "FFCCCC"


def test_a_session_may_say_how_many_steps_it_has() -> None:
    model = cached(static("FCCCCC"))
    for steps in (3, 4, 3):
        with cache_dit.session("short", num_inference_steps=steps):
            denoise(model, [1.0] * steps)
            assert line(model) == "FCCCCC"[: steps - 1] + "F"  # the mask is cut, and the last step computes


# -- one run beside the other


def steps_of(model: Toy, *, seed: int, steps: int = STEPS, name: str | None = None) -> Iterator[Tensor]:
    """A run that stops after each step."""
    hidden, encoder = stream_inputs(seed=seed)
    for timestep in loop(steps):
        with torch.no_grad():
            if name is None:
                output = model(hidden, encoder, timestep)
            else:
                with cache_dit.session(name):
                    output = model(hidden, encoder, timestep)
        hidden = hidden + 0.1 * output
        yield output


def by_itself(config: DBCacheConfig, *, seed: int, steps: int = STEPS) -> list[Tensor]:
    """What such a run gives alone."""
    return list(steps_of(cached(config), seed=seed, steps=steps))


@pytest.mark.parametrize("order", ["ab" * STEPS, "a" * 3 + "b" * STEPS + "a" * 5, "abb" * 4 + "a" * 4, "ba" * STEPS])
def test_interleaved_sessions_give_what_each_gives_alone(ended: DBCacheConfig, order: str) -> None:
    model = cached(ended)
    runs = {name: steps_of(model, seed=seed, name=name) for seed, name in enumerate("ab")}
    outputs: dict[str, list[Tensor]] = {"a": [], "b": []}
    for name in order:
        outputs[name].append(next(runs[name]))
    assert same(outputs["a"], by_itself(ended, seed=0))
    assert same(outputs["b"], by_itself(ended, seed=1))


def test_interleaved_sessions_of_unlike_shapes_and_lengths(config: DBCacheConfig) -> None:
    model = cached(config)
    outputs: dict[str, list[Tensor]] = {"a": [], "b": []}
    runs = {"a": steps_of(model, seed=0, name="a"), "b": steps_of(model, seed=1, steps=5, name="b")}
    for name in ("a", "b") * 5 + ("a",) * 3:
        outputs[name].append(next(runs[name]))
    assert same(outputs["a"], by_itself(config, seed=0))
    assert same(outputs["b"], by_itself(config, seed=1, steps=5))


@pytest.mark.parametrize("order", ["wo" * STEPS, "ow" * STEPS, "w" * 3 + "o" * STEPS + "w" * 5])
def test_interleaved_sessions_with_and_without_text_give_what_each_gives_alone(
    ended: DBCacheConfig, order: str
) -> None:
    def steps(model: Toy, name: str) -> Iterator[Tensor]:
        hidden, encoder = stream_inputs(seed=ord(name))
        for timestep in loop(STEPS):
            with torch.no_grad(), cache_dit.session(name):
                output = model(hidden, encoder if name == "w" else None, timestep)
            hidden = hidden + 0.1 * output
            yield output

    def made() -> Toy:
        model = OptionalToy()
        cache_dit.enable_cache(model.adapter(), ended, TAYLOR)
        return model

    model = made()
    runs = {name: steps(model, name) for name in "wo"}
    outputs: dict[str, list[Tensor]] = {"w": [], "o": []}
    for name in order:
        outputs[name].append(next(runs[name]))
    for name in "wo":
        other = made()
        assert same(outputs[name], list(steps(other, name)))
        assert "C" in line(other)


def test_a_run_outside_of_sessions_beside_one_in_a_session(ended: DBCacheConfig) -> None:
    model = cached(ended)
    plain, named = steps_of(model, seed=0), steps_of(model, seed=1, name="a")
    pairs = list(zip(plain, named, strict=True))
    assert same([output for output, _ in pairs], by_itself(ended, seed=0))
    assert same([output for _, output in pairs], by_itself(ended, seed=1))


@pytest.mark.parametrize("named", [False, True], ids=["without sessions", "with sessions"])
def test_threads_give_what_each_gives_alone(ended: DBCacheConfig, named: bool) -> None:
    model = cached(ended)
    count = 3
    barrier = threading.Barrier(count)
    outputs: dict[int, list[Tensor]] = {}

    def work(seed: int) -> None:
        barrier.wait()
        results = []
        for output in steps_of(model, seed=seed, name=str(seed) if named else None):
            results.append(output)
            barrier.wait()  # all threads are in mid-run at the same time
        outputs[seed] = results

    in_threads(work, count)
    for seed in range(count):
        assert same(outputs[seed], by_itself(ended, seed=seed))


def test_threads_inside_one_forward_at_the_same_time() -> None:
    config = static("FFCCFCCF")
    model = cached(config)
    inside = threading.Barrier(2)

    # The first block waits until both threads are in it, so that their forwards overlap for certain.
    def meet(module: Any, args: Any) -> None:
        inside.wait(timeout=30)

    model.blocks[0].register_forward_pre_hook(meet)

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(lambda seed=seed: list(steps_of(model, seed=seed))) for seed in range(2)]
        results = [run.result() for run in runs]
    for seed in range(2):
        assert same(results[seed], by_itself(config, seed=seed))


def test_a_thread_does_not_take_over_the_request_of_one_that_has_ended(config: DBCacheConfig) -> None:
    model = cached(config)

    def in_thread(run: Callable[[], Any]) -> None:  # the system may give a thread the number of one that has ended
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    results: list[list[Tensor]] = []
    late = loop(STEPS, high=0.5)  # as from picture to picture: it begins lower than the other run ended
    in_thread(lambda: denoise(model, loop(STEPS)[:3], seed=1))
    in_thread(lambda: results.append(denoise(model, late)))
    assert same(results[0], denoise(cached(config), late))


def test_the_requests_of_threads_that_have_ended_are_closed() -> None:
    model = cached(static("FFCC"))
    for seed in range(3):
        thread = threading.Thread(target=denoise, args=(model, loop(4)[:2]), kwargs={"seed": seed})
        thread.start()
        thread.join()
    denoise(model, loop(4)[:2])
    assert len(state_of(model).sessions) == 1


def test_tasks_with_sessions_give_what_each_gives_alone(ended: DBCacheConfig) -> None:
    model = cached(ended)

    async def work(seed: int) -> list[Tensor]:
        hidden, encoder = stream_inputs(seed=seed)
        outputs = []
        with cache_dit.session(f"request {seed}"):
            for timestep in loop(STEPS):
                with torch.no_grad():  # not around the await: other tasks run in this thread
                    output = model(hidden, encoder, timestep)
                hidden = hidden + 0.1 * output
                outputs.append(output)
                await asyncio.sleep(0)
        return outputs

    async def both() -> list[list[Tensor]]:
        return list(await asyncio.gather(work(0), work(1), work(2)))

    for seed, outputs in enumerate(asyncio.run(both())):
        assert same(outputs, by_itself(ended, seed=seed))


def test_a_session_reaches_the_worker_threads_of_its_task() -> None:
    config = static("FFCCFCCF")
    model = cached(config)

    async def work(seed: int) -> list[Tensor]:
        hidden, encoder = stream_inputs(seed=seed)
        outputs = []
        with cache_dit.session(f"request {seed}"):
            for timestep in loop(STEPS):
                output = await asyncio.to_thread(torch.no_grad()(model), hidden, encoder, timestep)
                hidden = hidden + 0.1 * output
                outputs.append(output)
        return outputs

    async def both() -> list[list[Tensor]]:
        return list(await asyncio.gather(work(0), work(1)))

    for seed, outputs in enumerate(asyncio.run(both())):
        assert same(outputs, by_itself(config, seed=seed))


def test_sessions_nest() -> None:
    model = cached(static("FCFC"))
    inputs = stream_inputs()
    with torch.no_grad(), cache_dit.session("outer"):
        model(*inputs)
        with cache_dit.session("inner"):
            model(*inputs)
            assert line(model) == "F"
        model(*inputs)
        sessions = state_of(model).sessions
    assert {key[1]: session.clock.step for key, session in sessions.items()} == {"outer": 1, "inner": 0}


@pytest.mark.parametrize("name", [None, [], {}])
def test_a_session_needs_a_name(name: Any) -> None:
    with pytest.raises(SessionError, match="pass a string"), cache_dit.session(name):
        pass


# -- memory


def live_bytes(model: Toy) -> int:
    """Bytes of all tensors that the cache of a model holds."""
    state = state_of(model)
    return sum(session.nbytes for session in {*state.sessions.values(), state.latest})


def test_a_session_that_is_closed_is_freed_on_every_transformer_it_was_seen_on() -> None:
    models = [cached(static("FFCC")) for _ in range(2)]
    with cache_dit.session("kept"):
        denoise(models[0], loop(4)[:2], seed=1)
    kept = live_bytes(models[0])
    with cache_dit.session("given up") as request:
        for model in models:
            denoise(model, loop(4)[:2])
    assert (live_bytes(models[0]), live_bytes(models[1])) == (2 * kept, kept)
    request.close()
    assert (live_bytes(models[0]), live_bytes(models[1])) == (kept, 0)
    assert [key[1] for model in models for key in state_of(model).sessions] == ["kept"]
    with cache_dit.session("given up"):
        denoise(models[0], loop(4))
    assert line(models[0]) == "FFCC"


def test_a_transformer_cached_on_its_own_keeps_nothing_of_a_pipeline_s_calls() -> None:
    class Pipe:
        """A loop over two transformers."""

        def __init__(self) -> None:
            self.transformer, self.other = Toy("0"), Toy("0")

        def __call__(self, num_inference_steps: int = 4) -> None:
            for step in loop(num_inference_steps):
                denoise(self.transformer, [step])
                denoise(self.other, [step])

    pipe = Pipe()
    cache_dit.enable_cache(pipe.transformer.adapter(pipe=pipe), static("FFCC"))
    cache_dit.enable_cache(pipe.other.adapter(), static("FFCC"))
    for _ in range(3):
        pipe()
        assert not state_of(pipe.transformer).sessions
        assert not state_of(pipe.other).sessions
        assert live_bytes(pipe.other) == 0
        assert line(pipe.transformer) == line(pipe.other) == "FFCC"


def tensors_alive() -> int:
    """How many tensors there are, without collecting cycles first."""
    return sum(issubclass(type(item), Tensor) for item in gc.get_objects())


def test_a_request_of_known_length_is_freed_with_its_last_step() -> None:
    model = cached(dynamic(num_inference_steps=4))
    denoise(model, loop(4)[:3])
    assert live_bytes(model) > 0
    denoise(model, loop(4)[3:])
    assert live_bytes(model) == 0
    assert line(model).startswith("F")


def test_one_request_alone_is_open_after_many() -> None:
    model = cached(dynamic(num_inference_steps=4))
    for seed in range(5):
        denoise(model, loop(4), seed=seed)
        assert len(state_of(model).sessions) == 1


MOST_OPEN = DBCacheConfig().max_sessions


def test_the_number_of_open_requests_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    model = cached(static("FFCC"))
    for number in range(MOST_OPEN + 3):
        with cache_dit.session(f"request {number}"):
            denoise(model, loop(4)[:2])
    sessions = state_of(model).sessions
    assert len(sessions) == MOST_OPEN
    assert next(iter(sessions))[1] == "request 3"
    assert sum("requests are open" in record.message for record in caplog.records) == 3
    each = {session.nbytes for session in sessions.values()}
    assert len(each) == 1


def test_the_longest_unused_request_is_closed_first() -> None:
    model = cached(static("FFCC"))
    for number in range(MOST_OPEN):
        with cache_dit.session(number):
            denoise(model, loop(4)[:1])
    with cache_dit.session(0):
        denoise(model, loop(4)[1:2])
    with cache_dit.session("one more"):
        denoise(model, loop(4)[:1])
    keys = [key[1] for key in state_of(model).sessions]
    assert 0 in keys
    assert 1 not in keys


@pytest.mark.parametrize("form", ["0", "4"])
def test_a_step_leaves_no_tensors_behind_for_the_garbage_collector(config: DBCacheConfig, form: str) -> None:
    model = cached(config, form)
    inputs = stream_inputs(model)
    with torch.no_grad():
        for _ in range(STEPS):
            model(*inputs)  # all histories are as full as they get
        gc.collect()
        gc.disable()
        try:
            model(*inputs)
            before = tensors_alive()
            for _ in range(2 * STEPS):
                model(*inputs)
            after = tensors_alive()
        finally:
            gc.enable()
    assert abs(after - before) <= 8  # a snapshot more or less of each stream, not some for each step


def test_memory_is_flat_over_many_requests(ended: DBCacheConfig) -> None:
    model = cached(ended)
    counts, peaks = [], []
    for seed in range(9):
        denoise(model, loop(STEPS), seed=seed)
        peaks.append(cache_dit.summary(model, logging=False)[0].peak_bytes)
        if seed in (1, 8):
            gc.collect()
            counts.append(tensors_alive())
    assert counts[0] == counts[1]
    assert len(set(peaks)) == 1


@pytest.mark.parametrize("disabled", [True, False])
def test_a_model_is_collected_with_its_cache(disabled: bool) -> None:
    model = cached()
    denoise(model, loop(STEPS))
    remains = [weakref.ref(model), weakref.ref(model.blocks[2]), weakref.ref(state_of(model))]
    if disabled:
        cache_dit.disable_cache(model)
    del model
    gc.collect()
    assert [remaining() for remaining in remains] == [None, None, None]


def test_nothing_is_held_after_disabling() -> None:
    model = cached()
    denoise(model, loop(STEPS)[:4])
    gc.collect()
    state = weakref.ref(state_of(model))
    cache_dit.disable_cache(model)
    gc.collect()
    assert state() is None


@pytest.mark.parametrize("when", ["before the first", "in mid-run", "at the end"])
def test_a_block_called_by_itself_acts_plain(when: str) -> None:
    model = cached(static("FCFC"))
    block = model.blocks[2]
    inputs = stream_inputs()
    with torch.no_grad():
        expected = type(block).forward(block, *inputs)
        denoise(model, loop(4)[: {"before the first": 0, "in mid-run": 2, "at the end": 4}[when]])
        with counted(model.blocks) as fired:
            outputs = block(*inputs)
    assert same(outputs, expected)
    assert fired == {2: 1}


def test_a_forward_inside_a_forward_of_the_same_model() -> None:
    """A block that calls the whole model, say for a preview: each forward takes its own steps."""
    config = static("FCFC")
    model = cached(config)
    previews: list[Tensor] = []
    other = stream_inputs(seed=5)

    def preview(module: Any, args: Any) -> None:
        if not previews:
            previews.append(torch.zeros(1))
            with cache_dit.session("preview"):
                previews[0] = model(*other)

    expected, expected_preview = denoise(cached(config), loop(4)), model_output(other)
    hook = model.blocks[2].register_forward_pre_hook(preview)
    outputs = denoise(model, loop(4))
    hook.remove()
    assert same(outputs, expected)
    assert close(previews, expected_preview)
    assert {"default"} == set(lines(model))


@torch.no_grad()
def model_output(inputs: Any) -> Tensor:
    """A plain toy's output."""
    output: Tensor = Toy("0")(*inputs)
    return output


def test_timesteps_that_turn_around_are_followed_after_a_few_steps() -> None:
    model = cached()
    for _ in range(2):
        denoise(model, loop(STEPS))
    rising = [2.0 + step for step in range(12)]
    denoise(model, rising)
    assert "C" in line(model)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (dynamic(num_inference_steps=4), [True, True, True, True]),
        (dynamic(num_inference_steps=4, residual_diff_threshold=1.0), [True, False, False, False]),
        (static("FFCC", num_inference_steps=4), [False, False, False, False]),
        (DBPruneConfig(Fn_compute_blocks=1, num_inference_steps=4, prune_decision="previous"), [True] + [False] * 3),
    ],
)
def test_a_timestep_on_a_device_is_waited_for_only_where_a_step_may_wait_anyway(
    monkeypatch: pytest.MonkeyPatch, config: DBCacheConfig, expected: list[bool]
) -> None:
    model = cached(config)
    waited: list[bool] = []
    read = CallReader.timestep

    def timestep(self: CallReader, given: Any, *, waits: bool) -> float | None:
        waited.append(waits)
        return read(self, given, waits=waits)

    monkeypatch.setattr(CallReader, "timestep", timestep)
    denoise(model, loop(4))
    assert waited == expected


@pytest.mark.parametrize(
    ("request_of_pipeline", "expected"), [(False, [1, 2, 2, 2]), (True, [0, 1, 1, 1])], ids=["bare", "pipeline"]
)
def test_a_measured_step_reads_its_decision_and_a_bare_transformers_its_timestep_too(
    monkeypatch: pytest.MonkeyPatch, request_of_pipeline: bool, expected: list[int]
) -> None:
    model = cached(dynamic(num_inference_steps=4, residual_diff_threshold=0.99))
    denoise(model, loop(4))  # what is checked once is checked
    as_on_a_device(monkeypatch)
    reads = count_reads(monkeypatch)
    request = Request(object(), 4, counts_down=False) if request_of_pipeline else cache_dit.session("bare")
    per_step = []
    for timestep in loop(4):
        before = len(reads)
        with request, state_of(model).router.branch_named("cond"):
            denoise(model, [timestep])
        per_step.append(len(reads) - before)
    request.close()
    assert per_step == expected
    assert set(lines(model)) == {"cond"} and line(model) == "FCCC"


def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timesteps be where the host would have to wait for them."""
    read = CallReader.timestep

    def timestep(self: CallReader, given: Any, *, waits: bool) -> float | None:
        return read(self, given, waits=waits) if waits else None

    monkeypatch.setattr(CallReader, "timestep", timestep)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each read from a device brings, from now on."""
    reads: list[int] = []
    read_back = measure.read_back

    def counting(values: Tensor) -> list[float]:
        reads.append(len(values))
        return read_back(values)

    for module in (measure, calls, branch_cache):
        monkeypatch.setattr(module, "read_back", counting)
    return reads


def test_each_thread_begins_without_a_forward_of_a_chain_and_has_its_own() -> None:
    """The class itself has no such attribute: torch before 2.13 compiles its value in, and no thread's own."""
    assert not hasattr(_Current, "forward")
    current, begun = _Current(), threading.Barrier(2)
    known: dict[str, list[Any]] = {}

    def work(name: Any) -> None:
        known[name] = [current.forward]
        current.forward = name
        begun.wait(timeout=10)
        known[name].append(current.forward)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, "ab"))
    assert known == {"a": [None, "a"], "b": [None, "b"]}
    assert current.forward is None
