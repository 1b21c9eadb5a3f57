"""Where snapshots are kept and as what: the outputs that follow, and the bytes that `summary` tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit import ConfigError, DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from cache_dit.engine.state import history as history_module
from cache_dit.engine.subclass import state_of
from tests.kit.tiny_flux import denoise as denoise_flux
from tests.kit.tiny_flux import flux_inputs, tiny_transformer
from tests.kit.toys import TEXT, TOKENS, WIDTH, Toy, dynamic, line, static, stream_inputs

LINE = "FFFCFCCC"
STEPS = len(LINE)

#: One snapshot of both streams of a toy, in float32.
SNAPSHOT = 4 * WIDTH * (TOKENS + TEXT)

#: The most by which a value of each type differs from the number that it is for, relative to the largest of a tensor.
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


@torch.no_grad()
def run(model: Toy, *, steps: int = STEPS, batch: int = 1) -> list[Tensor]:
    """The outputs of as many steps with inputs that drift."""
    hidden, encoder = stream_inputs(model, batch=batch)
    return [model(hidden * (1 + 0.05 * step), encoder * (1 - 0.05 * step)) for step in range(steps)]


def cached(config: DBCacheConfig, order: int | None = 1, *, batch: int = 1) -> tuple[Toy, list[Tensor]]:
    """A toy, and its outputs under a configuration."""
    model = Toy("0")
    calibrator = None if order is None else TaylorSeerCalibratorConfig(taylorseer_order=order)
    cache_dit.enable_cache(model.adapter(), config, calibrator)
    return model, run(model, batch=batch)


def stats(model: Any) -> cache_dit.CacheStats:
    """What happened on the one chain."""
    return cache_dit.summary(model, logging=False)[0]


# -- as what


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("order", [None, 1, 2])
def test_a_narrow_type_changes_a_skipped_step_by_its_rounding_and_no_computed_one(
    order: int | None, dtype: str
) -> None:
    _, full = cached(static(LINE), order)
    model, narrow = cached(static(LINE, cache_dtype=dtype), order)
    assert line(model) == LINE
    amplified = {None: 1, 1: 4, 2: 19}[order]  # the sum of the weights' magnitudes at the last step
    largest = 2 * 4 * 0.5  # what two streams get from 4 middle blocks, each half of a tanh
    for step, letter in enumerate(LINE):
        error = float((narrow[step] - full[step]).abs().max())
        assert (error == 0) if letter == "F" else (0 < error <= amplified * ROUNDING[dtype] * largest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_torch_dtype_is_as_good_as_its_name(dtype: torch.dtype) -> None:
    named = cached(static(LINE, cache_dtype=str(dtype).removeprefix("torch.")))[1]
    assert all(map(torch.equal, cached(static(LINE, cache_dtype=dtype))[1], named))


@pytest.mark.parametrize("dtype", [None, *WIDTHS])
@pytest.mark.parametrize(("order", "kept"), [(None, 1), (1, 2), (2, 3)])
def test_summary_tells_the_bytes_of_what_is_kept(order: int | None, kept: int, dtype: str | None) -> None:
    model, _ = cached(static(LINE, cache_dtype=dtype), order)
    width = WIDTHS[dtype or "float32"]
    scales = 2 * 4 if dtype in ("float16", "float8_e4m3fn", "float8_e5m2") else 0  # one number for each stream
    assert stats(model).peak_bytes == kept * (SNAPSHOT * width // 4 + scales)
    assert stats(model).bytes_by_device == {"cpu": stats(model).peak_bytes}


def test_what_decisions_are_made_by_counts_as_live_and_is_no_snapshot() -> None:
    model, _ = cached(dynamic(cache_dtype="bfloat16"), None)
    assert stats(model).bytes_by_device == {"cpu": SNAPSHOT // 2}
    assert stats(model).peak_bytes == SNAPSHOT // 2 + 4 * WIDTH * TOKENS


def test_bytes_are_those_of_all_samples_blocks_and_branches() -> None:
    model, _ = cached(dynamic(decision="sample"), 1, batch=3)
    computed = [min(plan.count("F"), 2) for plan in stats(model).steps_line.values()]
    assert len(computed) == 3 and stats(model).bytes_by_device == {"cpu": sum(computed) * SNAPSHOT}
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2))
    run(model)
    assert stats(model).bytes_by_device == {"cpu": 4 * SNAPSHOT}
    assert stats(model).peak_bytes == 4 * (SNAPSHOT + 4 * WIDTH * TOKENS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("kind", ["sample", "prune", "measured"])
def test_every_kind_of_lane_keeps_narrow_snapshots(kind: str, dtype: str) -> None:
    configs = {
        "sample": lambda **options: dynamic(decision="sample", **options),
        "prune": lambda **options: DBPruneConfig(
            Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.5, **options
        ),
        "measured": dynamic,
    }
    model, narrow = cached(configs[kind](cache_dtype=dtype), batch=2)
    full_model, full = cached(configs[kind](), batch=2)
    assert stats(model).cached_steps == stats(full_model).cached_steps != []
    assert sum(stats(model).bytes_by_device.values()) < 0.6 * sum(stats(full_model).bytes_by_device.values())
    errors = [float((a - b).abs().max()) for a, b in zip(narrow, full, strict=True)]
    assert 0 < max(errors) < 16 * ROUNDING[dtype]


def test_a_real_model_in_half_precision_keeps_float8() -> None:
    model = tiny_transformer().to(torch.bfloat16)
    inputs = {name: value.to(torch.bfloat16) for name, value in flux_inputs().items()}
    outputs = {}
    for dtype in (None, "bfloat16", "float8_e4m3fn"):
        cache_dit.enable_cache(model, static(LINE, cache_dtype=dtype), TaylorSeerCalibratorConfig())
        outputs[dtype] = denoise_flux(model, steps=STEPS, inputs=inputs)
        assert line(model) == LINE
    assert all(map(torch.equal, outputs[None], outputs["bfloat16"]))  # what it is anyway
    assert all(output.dtype == torch.bfloat16 and output.isfinite().all() for output in outputs["float8_e4m3fn"])
    assert not torch.equal(outputs["float8_e4m3fn"][3], outputs[None][3])


# -- where


@pytest.mark.parametrize("order", [None, 2])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_processor_may_be_named_on_the_processor(order: int | None, dtype: str | None) -> None:
    there = cached(static(LINE, cache_dtype=dtype), order)[1]
    named = cached(static(LINE, cache_dtype=dtype, cache_device=torch.device("cpu")), order)[1]
    assert all(map(torch.equal, there, named))


@pytest.mark.parametrize("device", ["cuda", "cuda:97", "cpu:3", "gpu", "meta"])
def test_a_device_that_is_not_there_is_an_error_when_the_cache_is_put_on(device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    model = Toy("0")
    with pytest.raises(ConfigError, match=f"cache_device.*{device}"):
        cache_dit.enable_cache(model.adapter(), static(LINE, cache_device=device))
    assert type(model) is Toy
    cache_dit.enable_cache(model.adapter(), static(LINE))
    with pytest.raises(ConfigError, match="cache_device"):
        cache_dit.refresh_context(model, cache_device=device)
    run(model)
    assert line(model) == LINE


class Carrier:
    """A courier without a device: it copies at once, and writes down what was asked of it."""

    log: ClassVar[list[tuple[str, int]]] = []

    def buffer(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        self.log.append(("buffer", 1))
        return torch.empty_like(like, dtype=dtype)

    def send(self, tensor: Tensor, buffer: Tensor) -> None:
        self.log.append(("send", 1))
        buffer.copy_(tensor)

    def start(self, buffers: Sequence[Tensor]) -> None:
        self.log.append(("start", len(buffers)))

    def fetch(self, buffers: Sequence[Tensor]) -> list[Tensor]:
        self.log.append(("fetch", len(buffers)))
        return [buffer.clone() for buffer in buffers]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Snapshots are kept as if they had come from another device."""
    Carrier.log = []
    monkeypatch.setattr(history_module, "_place", lambda home, wanted: home if wanted is None else torch.device("meta"))
    monkeypatch.setattr(history_module, "_transfer", lambda home, place: Carrier() if place != home else None)
    return Carrier.log


@pytest.mark.parametrize("config", [static("FFFCFCCC"), dynamic()], ids=["static", "measured"])
def test_what_lives_elsewhere_is_sent_once_and_asked_for_before_the_first_block(
    elsewhere: list[tuple[str, int]], config: DBCacheConfig
) -> None:
    _, expected = cached(config, 1)
    assert elsewhere == []  # nothing lives elsewhere: nobody asks
    model = Toy("0")
    config = DBCacheConfig(**{**vars(config), "cache_device": "cpu"})
    cache_dit.enable_cache(model.adapter(), config, TaylorSeerCalibratorConfig())
    model.blocks[0].register_forward_pre_hook(lambda *_: elsewhere.append(("front", 0)))
    model.leave.register_forward_pre_hook(lambda *_: elsewhere.append(("end", 0)))
    outputs = run(model)
    assert all(map(torch.equal, outputs, expected))
    names, plan = [name for name, _ in elsewhere], line(model)
    assert names.count("send") == 2 * plan.count("F")
    assert names.count("buffer") == 2 * min(plan.count("F"), 2)  # two snapshots of each stream, written over
    measured = config.steps_computation_mask is None
    for step, letter in enumerate(plan):
        end = names.index("end")
        now, names = names[:end], names[end + 1 :]
        before = now[: now.index("front")]
        assert before.count("start") == (2 if letter == "C" or (measured and step) else 0)
        assert now.count("fetch") == (2 if letter == "C" else 0)


# -- until when


@pytest.mark.parametrize("config", [static(LINE), dynamic(cache_dtype="float8_e4m3fn")], ids=["static", "measured"])
def test_nothing_is_held_after_the_last_step(config: DBCacheConfig) -> None:
    config.num_inference_steps = STEPS
    model, _ = cached(config, 2)
    assert state_of(model).latest.nbytes == 0
    assert not any(one.bytes_by_device for cache in state_of(model).latest.caches.values() for one in cache.snapshots)
    assert stats(model).peak_bytes > 0
