"""What a cache costs, by the code that measures everyone: that it counts what it says. Its times are not tested."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench import measures as cost
from bench.counting import most_alive
from bench.measures import Cache, Subject
from bench.models import Size, drifting, make_transformer, twin, with_blocks
from bench.timer import EventClock, HostClock, clock_for, interleaved

TINY = Size(hidden=64, double=1, single=2, image_tokens=8, text_tokens=4, steps=4)
SIZE = {"hidden": 64, "double": 1, "single": 2, "image_tokens": 8, "text_tokens": 4, "steps": 4}
HALF = {"steps_computation_mask": [1, 0, 1, 0], "steps_computation_policy": "static"}
MEASURED = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.99, "max_continuous_cached_steps": 1}
ALTERNATING = {"mag_ratios": [1.0], "retention_ratio": 0.0, "max_skip_steps": 1, "threshold": 1.0}
LITE = {"disable_cache_before_step": 1, "cache_interval": 2, "use_lite_mode": True}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def hooked(act: Callable[..., Any], *, steps: list[str] | None = None) -> cost.PutOn:
    """A "cache" that does something after each forward of the transformer."""

    def put_on(model: Any, count: int) -> Cache:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            act(kwargs, output)

        handle = model.register_forward_hook(hook, with_kwargs=True)
        said = steps if steps is not None else []
        return Cache(end=lambda: said.append("end"), off=lambda: (said.append("off"), handle.remove()))

    return put_on


# -- the models


def test_a_twin_shares_all_weights_and_no_module():
    model = make_transformer(TINY)
    other = twin(model)
    mine, others = (dict(m.named_parameters()) for m in (model, other))
    assert all(mine[name] is others[name] for name in mine)
    assert not set(model.modules()) & set(other.modules())


def test_a_model_with_some_blocks_runs_these_and_the_rest():
    model = make_transformer(TINY)
    hollow = with_blocks(model, [0, 2])  # of 1 + 2
    assert cost.executed_blocks(hollow, hollow, drifting(TINY)[:1]) == ([2], [0, 1])
    kept = dict(hollow.single_transformer_blocks[0].named_parameters())
    assert all(kept[name] is value for name, value in model.single_transformer_blocks[1].named_parameters())
    assert len(model.single_transformer_blocks) == TINY.single


def test_each_sample_of_a_batch_drifts_at_its_own_speed():
    first, *_, last = (step["hidden_states"] for step in drifting(TINY, [0.0, 1.0, 3.0]))
    moved = (last - first).abs().mean((1, 2))
    assert moved[0] == 0
    assert 2 < moved[2] / moved[1] < 4


# -- time


def test_every_model_makes_a_step_before_any_makes_the_next():
    seen: list[tuple[str, int]] = []
    calls = {name: lambda step, name=name: seen.append((name, step)) for name in "ab"}
    times = interleaved(calls, 3, 2, HostClock(), warm_up=1)
    assert [step for _, step in seen] == [0, 0, 1, 1, 2, 2] * 3
    assert all({name for name, _ in seen[at : at + 2]} == {"a", "b"} for at in range(0, len(seen), 2))
    assert {name: (len(runs), len(runs[0])) for name, runs in times.items()} == {"a": (2, 3), "b": (2, 3)}


def test_the_clock_is_the_devices():
    assert isinstance(clock_for(torch.device("cuda")), EventClock)
    host = clock_for(torch.device("cpu"), "processor")
    assert (type(host), host.name) == (HostClock, "processor")


@pytest.mark.parametrize(
    ("method", "options", "blocks"),
    [
        ("cache_dit", {"Fn_compute_blocks": 1, "residual_diff_threshold": 1e-9}, [3, 3, 3, 3]),
        ("cache_dit", {"Fn_compute_blocks": 1, **HALF}, [3, 1, 3, 1]),
        ("cache_dit", {"Fn_compute_blocks": 0, **HALF}, [3, 0, 3, 0]),
        ("cache_dit", MEASURED, [3, 1, 3, 1]),
        ("FirstBlockCacheConfig", {"threshold": -1.0}, [3, 3, 3, 3]),
        ("FirstBlockCacheConfig", {"threshold": 1e9}, [3, 1, 1, 1]),
        ("MagCacheConfig", ALTERNATING, [3, 0, 3, 0]),
        ("MagCacheConfig", {**ALTERNATING, "threshold": -1.0}, [3, 3, 3, 3]),
        ("TaylorSeerCacheConfig", LITE, [3, 0, 3, 0]),
    ],
)
def test_the_blocks_that_ran_are_counted_and_timed_beside_a_model_that_has_no_others(
    method: str, options: dict[str, Any], blocks: list[int]
):
    found = cost.run(measure="time", size=SIZE, method=method, options=options, runs=2)
    assert found["blocks"] == {"wrapped": blocks}
    rest = {"wrapped": f"blocks {list(range(min(blocks)))}"} if min(blocks) < 3 else {}
    assert found["rest"] == rest
    assert set(found["times"]) == {"bare", "wrapped", *rest.values()}
    for rows in found["times"].values():
        assert [len(row) for row in rows] == [4, 4]


def test_a_request_ends_after_each_run_and_the_cache_comes_off():
    said: list[str] = []
    cost.time_of(Subject.of(TINY, runs=2), {"wrapped": hooked(lambda *_: None, steps=said)})
    assert said == ["end", "end", "end", "end", "off"]  # the blocks counted, one run that warms up, two


# -- state


def test_state_is_what_stays_alive_because_of_the_cache():
    kept: list[torch.Tensor] = []

    def keep_two(kwargs: Any, output: Any) -> None:
        kept[:] = [*kept[-1:], torch.zeros(1000)]

    found = cost.state_of(Subject.of(TINY), hooked(keep_two))
    assert found == {"bytes": 8000, "feature_bytes": 12 * 64 * 4}


def test_what_a_compiler_left_behind_is_not_alive():
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode().from_tensor(torch.zeros(10))
    assert any(one is fake for one in gc.get_objects())
    assert most_alive(lambda: None, [{}]) == 0


@pytest.mark.parametrize(
    ("method", "options", "features"),
    [
        ("cache_dit", {"Fn_compute_blocks": 0, **HALF}, 1.0),
        ("cache_dit", {"Fn_compute_blocks": 0, **HALF, "taylor": 1}, 2.0),
        ("TaylorSeerCacheConfig", {**LITE, "max_order": 1, "taylor_factors_dtype": torch.float32}, 2 * 8 / 12),
    ],
)
def test_state_of_caches_in_features(method: str, options: dict[str, Any], features: float):
    found = cost.state_of(Subject.of(TINY), cost.by_name(method, options))
    assert found["bytes"] / found["feature_bytes"] == pytest.approx(features, abs=0.01)


# -- host reads


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.mean().item(),
        lambda tensor: bool(tensor.mean() > 0),
        lambda tensor: float(tensor.mean()),
        lambda tensor: int(tensor.mean()),
        lambda tensor: tensor.mean().tolist(),
        lambda tensor: tensor.mean().cpu(),
        lambda tensor: tensor.mean().numpy(),
        lambda tensor: torch.is_nonzero(tensor.mean()),
        lambda tensor: torch.equal(tensor, tensor + 1),
    ],
)
def test_each_way_to_read_a_number_counts_once(read: Callable[[torch.Tensor], Any]):
    found = cost.reads_of(Subject.of(TINY), hooked(lambda kwargs, output: read(output[0])))
    assert found["model_reads"] == [1, 1, 1, 1]
    assert found["first_request"] == 4


def test_numbers_of_the_timestep_and_of_the_cache_itself_do_not_count():
    own = torch.ones(3)

    def read(kwargs: Any, output: Any) -> None:
        (own * 2).sum().item()
        (kwargs["timestep"] * 1000)[0].item()
        (kwargs["hidden_states"].mean() + kwargs["timestep"] + own.sum()).item()

    found = cost.reads_of(Subject.of(TINY), hooked(read))
    assert found["model_reads"] == [1] * 4


@pytest.mark.parametrize(
    ("method", "options", "reads"),
    [
        (None, {}, [0, 0, 0, 0]),
        ("cache_dit", {"Fn_compute_blocks": 1, **HALF}, [0, 0, 0, 0]),
        ("cache_dit", MEASURED, [0, 1, 0, 1]),
        ("FirstBlockCacheConfig", {"threshold": 1e9}, [0, 1, 1, 1]),
        ("MagCacheConfig", ALTERNATING, [0, 0, 0, 0]),
    ],
)
def test_host_reads_of_caches(method: str | None, options: dict[str, Any], reads: list[int]):
    assert cost.run(measure="reads", size=SIZE, method=method, options=options)["model_reads"] == reads
