"""With torch.compile: what changes from step to step is decided outside of the graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import cache_dit

STEPS = 8
MASK = [1, 1, 0, 1, 0, 0, 1, 0]
Enabled = Callable[[torch.nn.Module], torch.nn.Module]


def make_transformer() -> FluxTransformer2DModel:
    """Two double-stream blocks and three single-stream ones, the same weights each time."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
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
    assert all(map(torch.equal, seen.outputs, eager(enable)))


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
    assert all(map(torch.equal, seen.outputs, eager(static(front))))


@pytest.mark.parametrize("enabled_first", [True, False])
def test_a_compiled_wrapper_with_a_static_plan_is_two_graphs(enabled_first: bool) -> None:
    def cached(backend: CompileCounterWithBackend) -> Callable[..., object]:
        transformer = make_transformer()
        if enabled_first:
            return torch.compile(static(1)(transformer), backend=backend)
        return static(1)(torch.compile(transformer, backend=backend))

    seen = count(cached)
    assert (seen.graphs, seen.graphs_of_second_run, seen.breaks) == (2, 0, 0)
    assert all(map(torch.equal, seen.outputs, eager(static(1))))


def test_a_compiled_wrapper_breaks_once_per_measured_decision_and_never_recompiles_by_step() -> None:
    def cached(backend: CompileCounterWithBackend) -> Callable[..., object]:
        return torch.compile(measured(make_transformer()), backend=backend)

    seen = count(cached)
    assert seen.graphs_of_second_run == 0
    assert all(map(torch.equal, seen.outputs, eager(measured)))
    reasons = list(counters["graph_break"])
    assert all("decide" in reason for reason in reasons), reasons


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
