"""With torch.compile: what changes from step to step is decided outside of the graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import cache_dit
from tests.interplay.test_copies import is_plain
from tests.kit.equality import close, same
from tests.kit.threads import in_threads
from tests.kit.tiny_flux import generate, static_config, tiny_pipeline, tiny_transformer

STEPS = 8
MASK = [1, 1, 0, 1, 0, 0, 1, 0]
Enabled = Callable[[torch.nn.Module], torch.nn.Module]


def make_transformer() -> FluxTransformer2DModel:
    """Two blocks of each kind, always the same: one in front, then the first, an inner and the last to skip."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def run(transformer: Callable[..., object]) -> list[torch.Tensor]:
    """The outputs of one request of STEPS steps."""
    with torch.no_grad():
        return [transformer(**inputs(step), return_dict=False)[0] for step in range(STEPS)]  # type: ignore[index]


def inputs(step: int) -> dict[str, torch.Tensor]:
    """What the transformer is called with at a step: noise, text and a falling timestep."""
    generator = torch.Generator().manual_seed(step)
    return {
        "hidden_states": torch.randn(1, 16, 4, generator=generator),
        "encoder_hidden_states": torch.randn(1, 6, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "timestep": torch.tensor([1 - step / STEPS]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }


def static(front: int) -> Enabled:
    """A static plan: half of the steps cached, with the Taylor weights another at every one."""
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=front,
        steps_computation_mask=MASK,
        steps_computation_policy="static",
        num_inference_steps=STEPS,
    )
    return lambda module: cache_dit.enable_cache(module, config, cache_dit.TaylorSeerCalibratorConfig())


def measured(module: torch.nn.Module) -> torch.nn.Module:
    """Decisions by measurement: at most two cached steps in a row."""
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        residual_diff_threshold=0.9,
        max_continuous_cached_steps=2,
        num_inference_steps=STEPS,
    )
    return cache_dit.enable_cache(module, config)


@dataclass
class Compiled:
    """What compiling did in a run: its outputs, the graphs made in the first and in the second request, the breaks."""

    outputs: list[torch.Tensor]
    graphs: int
    graphs_of_second_run: int
    breaks: int


def count(prepare: Callable[[CompileCounterWithBackend], Callable[..., object]]) -> Compiled:
    """Run two requests on what ``prepare`` compiles."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("eager")
    callable_module = prepare(counter)
    outputs = run(callable_module)
    graphs = counter.frame_count
    again = run(callable_module)
    assert all(map(torch.equal, outputs, again))
    return Compiled(outputs, graphs, counter.frame_count - graphs, sum(counters["graph_break"].values()))


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def eager(enable: Enabled) -> list[torch.Tensor]:
    """The outputs of the cached, uncompiled transformer."""
    return run(enable(make_transformer()))


@pytest.mark.parametrize("enabled_first", [True, False])
@pytest.mark.parametrize("enable", [static(0), measured], ids=["static", "measured"])
def test_repeated_blocks_compile_without_a_break_and_without_more_graphs(enable: Enabled, enabled_first: bool) -> None:
    def plain(backend: CompileCounterWithBackend) -> Callable[..., object]:
        transformer = make_transformer()
        transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
        return transformer

    def cached(backend: CompileCounterWithBackend) -> Callable[..., object]:
        transformer = make_transformer()
        if enabled_first:
            enable(transformer)
        transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
        return transformer if enabled_first else enable(transformer)

    seen = count(cached)
    assert seen.graphs == count(plain).graphs
    assert (seen.graphs_of_second_run, seen.breaks) == (0, 0)
    assert close(seen.outputs, eager(enable))


@pytest.mark.parametrize("front", [0, 1])
@pytest.mark.parametrize("enabled_first", [True, False])
def test_a_whole_transformer_with_a_static_plan_is_two_graphs(front: int, enabled_first: bool) -> None:
    def cached(backend: CompileCounterWithBackend) -> Callable[..., object]:
        transformer = make_transformer()
        if enabled_first:
            static(front)(transformer)
        transformer.compile(fullgraph=True, backend=backend)
        return transformer if enabled_first else static(front)(transformer)

    seen = count(cached)
    assert (seen.graphs, seen.graphs_of_second_run, seen.breaks) == (2, 0, 0)
    assert close(seen.outputs, eager(static(front)))


@pytest.mark.parametrize("enabled_first", [True, False])
def test_a_compiled_wrapper_with_a_static_plan_is_two_graphs(enabled_first: bool) -> None:
    def cached(backend: CompileCounterWithBackend) -> Callable[..., object]:
        transformer = make_transformer()
        if enabled_first:
            return torch.compile(static(1)(transformer), backend=backend)
        return static(1)(torch.compile(transformer, backend=backend))

    seen = count(cached)
    assert (seen.graphs, seen.graphs_of_second_run, seen.breaks) == (2, 0, 0)
    assert close(seen.outputs, eager(static(1)))


@pytest.mark.parametrize("enabled_first", [True, False])
def test_a_compiled_wrapper_breaks_at_measured_decisions_alone_and_never_recompiles_by_step(
    enabled_first: bool,
) -> None:
    wrappers: list[torch.nn.Module] = []

    def cached(backend: CompileCounterWithBackend) -> Callable[..., object]:
        transformer = make_transformer()
        if enabled_first:
            wrappers.append(torch.compile(measured(transformer), backend=backend))
        else:
            wrappers.append(measured(torch.compile(transformer, backend=backend)))
        return wrappers[0]

    seen = count(cached)
    assert seen.graphs_of_second_run == 0
    assert close(seen.outputs, eager(measured))
    reasons = list(counters["graph_break"])
    assert all("decide" in reason for reason in reasons), reasons
    counting = wrappers[0]._orig_mod if enabled_first else wrappers[0]
    decisions = len(cache_dit.summary(counting, logging=False)[0].residual_diffs)
    assert 0 < seen.breaks <= decisions


def test_toggling_a_compiled_transformer_makes_no_new_graphs() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    transformer = static(1)(make_transformer())
    transformer.compile(fullgraph=True, backend=counter)  # type: ignore[no-untyped-call]
    run(transformer)
    cache_dit.disable_cache(transformer)
    plain = run(transformer)
    known = counter.frame_count
    static(1)(transformer)
    run(transformer)
    cache_dit.disable_cache(transformer)
    assert all(map(torch.equal, run(transformer), plain))
    assert counter.frame_count == known


def test_cfg_branches_share_the_graphs() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    transformer = static(1)(make_transformer())
    transformer.compile(fullgraph=True, backend=counter)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for step in range(STEPS):
            for branch in ("cond", "uncond"):
                with transformer.cache_context(branch):
                    transformer(**inputs(step), return_dict=False)
    assert counter.frame_count == 2
    lines = cache_dit.summary(transformer, logging=False)[0].steps_line
    assert lines == {"cond": "FFCFCCFC", "uncond": "FFCFCCFC"}


# -- a module and its compiled wrapper


@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_pipeline_whose_transformer_is_compiled_counts_each_step_once(compiled_first: bool) -> None:
    def made() -> FluxPipeline:
        return tiny_pipeline(transformer=tiny_transformer(double=1, single=2))

    expected = generate(cache_dit.enable_cache(made(), static_config()))
    pipe = made()
    inner = pipe.transformer
    if not compiled_first:
        cache_dit.enable_cache(pipe, static_config())
    wrapper = pipe.transformer = torch.compile(inner, backend="eager")
    if compiled_first:
        cache_dit.enable_cache(pipe, static_config())
    for _ in range(2):
        assert same(generate(pipe), expected)
        stats = cache_dit.summary(pipe, logging=False)[0]
        assert stats.steps_line == {"cond": "FFCFCC"}
        assert (stats.executed_blocks, stats.possible_blocks) == (3 * 3 + 3, 6 * 3)
    cache_dit.disable_cache(pipe)
    assert is_plain(pipe) and is_plain(wrapper) and is_plain(inner)
    assert same(generate(pipe), generate(made()))


@pytest.mark.parametrize("last", ["module", "wrapper"])
def test_of_a_module_and_its_wrapper_the_one_that_was_enabled_last_counts(last: str) -> None:
    transformer = make_transformer()
    if last == "wrapper":
        static(0)(transformer)
    wrapper = torch.compile(transformer, backend="eager")
    if last == "module":
        static(0)(wrapper)
    counting = static(1)(transformer if last == "module" else wrapper)
    assert close(run(counting), eager(static(1)))
    stats = cache_dit.summary(counting, logging=False)[0]
    assert list(stats.steps_line.values()) == ["FFCFCCFC"]
    assert (stats.executed_blocks, stats.possible_blocks) == (4 * 4 + 4, STEPS * 4)
    cache_dit.disable_cache(counting)
    assert is_plain(wrapper) and is_plain(transformer)


def test_a_wrapper_that_was_made_while_the_cache_was_on_outlives_it() -> None:
    transformer = static(0)(make_transformer())
    wrapper = torch.compile(transformer, backend="eager")
    assert close(run(wrapper), eager(static(0)))
    cache_dit.disable_cache(transformer)
    assert same(run(wrapper), run(make_transformer()))


def test_a_wrapper_s_cache_is_renewed_and_taken_off_by_its_module() -> None:
    transformer = make_transformer()
    wrapper = static(1)(torch.compile(transformer, backend="eager"))
    run(wrapper)
    cache_dit.refresh_context(transformer, steps_computation_mask=[1, 0] * 4)
    run(wrapper)
    for holder in (wrapper, transformer):
        assert list(cache_dit.summary(holder, logging=False)[0].steps_line.values()) == ["FCFCFCFC"]
    cache_dit.disable_cache(transformer)
    assert is_plain(wrapper) and is_plain(transformer)
    assert same(run(wrapper), run(make_transformer()))


# -- threads


@pytest.mark.parametrize("how", ["repeated blocks", "whole"])
def test_threads_on_one_compiled_transformer_give_what_each_gives_alone(how: str) -> None:
    count = 3
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")

    def compiled() -> torch.nn.Module:
        transformer = static(1)(make_transformer())
        if how == "whole":
            transformer.compile(fullgraph=True, backend=counter)  # type: ignore[no-untyped-call]
        else:
            transformer.compile_repeated_blocks(fullgraph=True, backend=counter)  # type: ignore[operator]
        return transformer

    transformer = compiled()
    barrier = threading.Barrier(count, timeout=60)
    outputs: dict[int, list[torch.Tensor]] = {}

    def work(number: int) -> None:
        results = []
        for step in range(STEPS):
            with torch.no_grad(), cache_dit.session(f"request {number}"):
                given = {**inputs(step), "hidden_states": inputs(100 * number + step)["hidden_states"]}
                results.append(transformer(**given, return_dict=False)[0])
            barrier.wait()  # all threads are in mid-run at the same time
        outputs[number] = results

    lonely = compiled()

    def alone(number: int) -> list[torch.Tensor]:
        cache_dit.refresh_context(lonely)
        with torch.no_grad():
            return [
                lonely(**{**inputs(step), "hidden_states": inputs(100 * number + step)["hidden_states"]})[0]
                for step in range(STEPS)
            ]

    run(transformer)
    graphs = counter.frame_count
    in_threads(work, count)
    assert counter.frame_count == graphs
    assert all(same(outputs[number], alone(number)) for number in range(count))
    assert how == "repeated blocks" or graphs == 2
