"""What the engine does on CUDA alone, with its parts together: streams, pinned memory, CUDA graphs, and no waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import apply_group_offloading

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.engine.sessions.request import Request
from cache_dit.engine.state.weighted_sum import Compiled, kernel_for, plain
from tests.kit.equality import close, same

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores for float32 matrix multiplication:UserWarning"),
]

STEPS = 8
MASK = [1, 1, 0, 1, 0, 0, 1, 0]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def make_transformer(dtype: torch.dtype = torch.float32) -> Any:
    """Two double-stream blocks and three single-stream ones, the same weights each time."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 12, 12),
    )
    return model.eval().requires_grad_(False).to("cuda", dtype)


def make_inputs(dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """The arguments of each step, on the device before the run begins."""
    generator = torch.Generator().manual_seed(0)
    state, drift = (torch.randn(1, 256, 16, generator=generator) for _ in range(2))
    fixed = {
        "encoder_hidden_states": torch.randn(1, 32, 64, generator=generator).to("cuda", dtype),
        "pooled_projections": torch.randn(1, 64, generator=generator).to("cuda", dtype),
        "img_ids": torch.zeros(256, 3, device="cuda"),
        "txt_ids": torch.zeros(32, 3, device="cuda"),
        "return_dict": False,
    }
    states = [(state + 0.02 * step * drift).to("cuda", dtype) for step in range(STEPS)]
    times = torch.linspace(0.1, 0.09, STEPS).to("cuda").view(STEPS, 1)
    return [{"hidden_states": states[step], "timestep": times[step], **fixed} for step in range(STEPS)]


def static(**options: Any) -> DBCacheConfig:
    """A plan: nothing has to be measured, and nothing to be waited for."""
    given = {"Fn_compute_blocks": 0, "Bn_compute_blocks": 0, "num_inference_steps": STEPS, **options}
    return DBCacheConfig(steps_computation_mask=MASK, steps_computation_policy="static", **given)


def measured(**options: Any) -> DBCacheConfig:
    """A threshold that is met, and measured at each step that may skip."""
    given = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "num_inference_steps": STEPS, **options}
    return DBCacheConfig(max_warmup_steps=1, residual_diff_threshold=0.99, **given)


@torch.no_grad()
def run(model: Any, inputs: list[dict[str, Any]], before: Callable[[], None] | None = None) -> list[torch.Tensor]:
    """The outputs of one request, called as a pipeline calls it; copies, since CUDA graphs use their memory again."""
    outputs = []
    for arguments in inputs:
        if before is not None:
            before()
        with model.cache_context("cond"):
            outputs.append(model(**arguments)[0].clone())
    return outputs


def line(model: Any) -> str:
    return "".join(cache_dit.summary(model, logging=False)[0].steps_line.values())


def of_mask() -> str:
    return "".join("CF"[computed] for computed in MASK)


@contextmanager
def no_waits() -> Iterator[None]:
    """Every wait of the host for the device is an error inside."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(call: Callable[[], Any]) -> int:
    """How often the host waited for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


# -- waits of the host


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("calibrator", [None, TaylorSeerCalibratorConfig(taylorseer_order=2)], ids=["reuse", "taylor"])
@pytest.mark.parametrize(
    "options",
    [{}, {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1}, {"cache_device": "cpu"}, {"cache_dtype": "float8_e4m3fn"}],
    ids=["", "F and B", "pinned", "float8"],
)
def test_with_a_static_plan_the_host_waits_for_nothing(
    options: dict[str, Any], calibrator: Any, dtype: torch.dtype
) -> None:
    inputs = make_inputs(dtype)
    model = cache_dit.enable_cache(make_transformer(dtype), static(**options), calibrator)
    first = run(model, inputs)  # compiles kernels, pins memory, checks the blocks once
    with no_waits():
        second = run(model, inputs)
    assert line(model) == of_mask()
    assert same(second, first)


def waits_of_measured_steps(request: Request) -> list[int]:
    """By how many waits each step of a request exceeds the same step without a cache; it skips all but the first."""
    inputs = make_inputs()
    bare, model = make_transformer(), cache_dit.enable_cache(make_transformer(), measured())
    run(bare, inputs), run(model, inputs)
    with request:
        found = [waits(partial(run, model, [arguments])) for arguments in inputs]
    assert line(model) == "F" + "C" * (STEPS - 1)
    return [count - waits(partial(run, bare, [arguments])) for count, arguments in zip(found, inputs, strict=True)]


def test_a_measured_step_of_a_bare_transformer_waits_for_its_timestep_and_its_decision() -> None:
    """By its timestep alone it is known that a run was given up and another began."""
    assert waits_of_measured_steps(Request("bare", STEPS)) == [1] + [2] * (STEPS - 1)


def test_a_measured_step_of_a_pipelines_call_waits_for_its_decision_alone() -> None:
    """The call is a request, begun and ended by the pipeline, which names its branches."""
    assert waits_of_measured_steps(Request(object(), STEPS, counts_down=False)) == [0] + [1] * (STEPS - 1)


# -- the weighted sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_predictions_are_those_of_eager_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, calibrator = make_inputs(dtype), TaylorSeerCalibratorConfig(taylorseer_order=2)
    found = run(cache_dit.enable_cache(make_transformer(dtype), static(), calibrator), inputs)
    kernel = kernel_for("cuda")
    assert isinstance(kernel, Compiled) and not kernel.broken
    monkeypatch.setattr("cache_dit.engine.state.weighted_sum.kernel_for", lambda device_type: plain)
    expected = run(cache_dit.enable_cache(make_transformer(dtype), static(), calibrator), inputs)
    # the sum is one rounding, and blocks and the way out follow
    assert close(found, expected, depth=3 if dtype == torch.bfloat16 else 20)


# -- memory


def test_snapshots_in_pinned_memory_change_no_output_and_leave_the_device() -> None:
    inputs = make_inputs()
    here = cache_dit.enable_cache(make_transformer(), static())
    there = cache_dit.enable_cache(make_transformer(), static(cache_device="cpu"))
    for _ in range(2):
        assert same(run(there, inputs), run(here, inputs))
    assert set(cache_dit.summary(there, logging=False)[0].bytes_by_device) == {"cpu"}
    assert set(cache_dit.summary(here, logging=False)[0].bytes_by_device) == {"cuda:0"}


def test_another_stream_than_the_default_gives_the_same() -> None:
    inputs = make_inputs()
    model = cache_dit.enable_cache(make_transformer(), static(cache_device="cpu"))
    expected = run(model, inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = run(model, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    assert same(found, expected)


# -- torch.compile


@pytest.mark.parametrize("mode", ["regional", "whole", "graphs"])
def test_compiled_with_a_static_plan_it_skips_the_same_and_gives_the_same(mode: str) -> None:
    inputs = make_inputs()
    expected = run(cache_dit.enable_cache(make_transformer(), static(), TaylorSeerCalibratorConfig()), inputs)
    model = cache_dit.enable_cache(make_transformer(), static(), TaylorSeerCalibratorConfig())
    if mode == "regional":
        model.compile_repeated_blocks(fullgraph=True)
    else:
        model.compile(**({"mode": "reduce-overhead"} if mode == "graphs" else {}))
    mark = torch.compiler.cudagraph_mark_step_begin if mode == "graphs" else None
    for _ in range(4):  # CUDA graphs are warmed up, recorded, and replayed
        found = run(model, inputs, mark)
        assert line(model) == of_mask()
        assert close(found, expected, growth=10)  # a compiler for GPUs approximates exp and rsqrt


def test_cuda_graphs_replay_with_a_static_plan_without_a_wait() -> None:
    inputs = make_inputs()
    model = cache_dit.enable_cache(make_transformer(), static())
    model.compile(mode="reduce-overhead")
    for _ in range(4):
        expected = run(model, inputs, torch.compiler.cudagraph_mark_step_begin)
    with no_waits():
        found = run(model, inputs, torch.compiler.cudagraph_mark_step_begin)
    assert same(found, expected)


@pytest.mark.parametrize("mode", ["regional", "graphs"])
def test_compiled_blocks_and_graphs_obey_a_measured_decision(mode: str) -> None:
    inputs = make_inputs()
    model = cache_dit.enable_cache(make_transformer(), measured(max_continuous_cached_steps=2))
    expected, skipped = run(model, inputs), line(model)
    cache_dit.disable_cache(model)
    model = cache_dit.enable_cache(model, measured(max_continuous_cached_steps=2))
    if mode == "regional":
        model.compile_repeated_blocks(fullgraph=True)
    else:
        model.compile(mode="reduce-overhead")
    mark = torch.compiler.cudagraph_mark_step_begin if mode == "graphs" else None
    for _ in range(4):
        found = run(model, inputs, mark)
        assert line(model) == skipped
        assert close(found, expected, growth=10)  # a compiler for GPUs approximates exp and rsqrt


# -- offloading


def test_offloading_by_streams_with_a_cache_in_pinned_memory_gives_the_same() -> None:
    inputs = make_inputs()
    plan = static(Fn_compute_blocks=1, cache_device="cpu")
    expected = run(cache_dit.enable_cache(make_transformer(), plan), inputs)
    plain_outputs = run(make_transformer(), inputs)
    model = cache_dit.enable_cache(make_transformer().cpu(), plan)
    apply_group_offloading(
        model,
        onload_device=torch.device("cuda"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=True,
    )
    for _ in range(2):
        found = run(model, inputs)
        refused = cache_dit.summary(model, logging=False)[0].reason is not None
        assert close(found, plain_outputs if refused else expected)
