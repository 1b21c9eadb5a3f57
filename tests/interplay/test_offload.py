"""Offloading by accelerate and by diffusers: the same outputs, and what is skipped is not loaded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from diffusers.hooks.group_offloading import GroupOffloadingHook, ModuleGroup

import cache_dit
from cache_dit.engine.forward import offload
from tests.kit.equality import close, same
from tests.kit.tiny_flux import (
    BLOCKS,
    DOUBLE,
    MASK,
    STEPS,
    blocks_of,
    cached_reference,
    counted,
    denoise,
    expected_calls,
    flux_inputs,
    generate,
    static_config,
    tiny_pipeline,
    tiny_transformer,
)

accelerate = pytest.importorskip("accelerate")

CPU = torch.device("cpu")
WHEN = pytest.mark.parametrize("when", ["before", "after"])
#: What decides is the change of the hidden states, not a mask: the threshold lets some steps through.
DYNAMIC = cache_dit.DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=1
)


def enabled_with(
    apply: Callable[[Any], Any], when: str, config: cache_dit.DBCacheConfig, transformer: Any = None
) -> Any:
    """A cached transformer with a feature that was applied before or after the cache was put on."""
    transformer = transformer or tiny_transformer()
    if when == "before":
        apply(transformer)
    cache_dit.enable_cache(transformer, config)
    if when == "after":
        apply(transformer)
    return transformer


# -- accelerate


def _with_accelerate_hooks(transformer: torch.nn.Module, folder: Path) -> None:
    for block in blocks_of(transformer):
        accelerate.hooks.add_hook_to_module(block, accelerate.hooks.ModelHook())


def _cpu_offload(transformer: torch.nn.Module, folder: Path) -> None:
    accelerate.cpu_offload(transformer, execution_device=CPU)


def _disk_dispatch(transformer: torch.nn.Module, folder: Path) -> None:
    device_map: dict[str, Any] = {name: "cpu" for name, _ in transformer.named_children()}
    del device_map["transformer_blocks"]
    device_map |= {f"transformer_blocks.{i}": "disk" for i in range(DOUBLE)}
    device_map["single_transformer_blocks"] = "disk"
    accelerate.dispatch_model(transformer, device_map, main_device="cpu", offload_dir=folder, force_hooks=True)


@WHEN
@pytest.mark.parametrize("apply", [_with_accelerate_hooks, _cpu_offload, _disk_dispatch])
@pytest.mark.parametrize("back", [0, 1])
def test_accelerate_hooks_change_no_output_and_no_decision(
    apply: Callable[[Any, Path], None], when: str, back: int, tmp_path: Path
) -> None:
    config = static_config(back=back)
    plain = denoise(tiny_transformer())
    reference = cached_reference(tiny_transformer(), config)
    transformer = enabled_with(lambda model: apply(model, tmp_path), when, config)
    with counted(transformer) as calls:
        assert same(denoise(transformer), reference)
    assert calls == expected_calls(back=back)
    cache_dit.disable_cache(transformer)
    assert same(denoise(transformer), plain)


@WHEN
def test_a_skipped_block_s_accelerate_hook_is_not_run(when: str) -> None:
    runs: list[int] = []

    class Recorder(accelerate.hooks.ModelHook):  # type: ignore[misc, name-defined]
        def __init__(self, position: int) -> None:
            self.position = position

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            runs.append(self.position)
            return args, kwargs

    def apply(transformer: Any) -> None:
        for position, block in enumerate(blocks_of(transformer)):
            accelerate.hooks.add_hook_to_module(block, Recorder(position))

    denoise(enabled_with(apply, when, static_config(mask=[1, 0], num_inference_steps=2)), steps=2)
    assert runs == [*range(BLOCKS), 0]


def _model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def _sequential_offload(pipe: Any) -> None:
    """What ``enable_sequential_cpu_offload`` does, on ``cpu``; it asks for ``cpu:0``, which accelerate refuses."""
    for component in (pipe.transformer, pipe.vae):
        accelerate.cpu_offload(component, CPU, offload_buffers=True)


@WHEN
@pytest.mark.parametrize("offload_pipe", [_model_offload, _sequential_offload])
def test_a_pipeline_s_own_offloading_changes_no_output(offload_pipe: Callable[[Any], None], when: str) -> None:
    plain = generate(tiny_pipeline())
    cached = tiny_pipeline()
    cache_dit.enable_cache(cached, static_config())
    reference = generate(cached)
    pipe = tiny_pipeline()
    if when == "before":
        offload_pipe(pipe)
    cache_dit.enable_cache(pipe, static_config())
    if when == "after":
        offload_pipe(pipe)
    assert same(generate(pipe), reference)
    assert same(generate(pipe), reference)
    cache_dit.disable_cache(pipe)
    assert same(generate(pipe), plain)


# -- diffusers


class Poison:
    """Stands for a device: what is offloaded is NaN until it is loaded again; notes which blocks were loaded."""

    def __init__(self) -> None:
        self.kept: dict[int, torch.Tensor] = {}
        self.loaded: list[torch.nn.Module] = []

    def _tensors(self, group: ModuleGroup) -> Iterator[torch.Tensor]:
        for module in group.modules:
            yield from module.parameters()
        yield from group.parameters

    def onload(self, group: ModuleGroup) -> None:
        self.loaded += group.modules
        for tensor in self._tensors(group):
            if id(tensor) in self.kept:
                tensor.data = self.kept.pop(id(tensor))

    def offload(self, group: ModuleGroup) -> None:
        for tensor in self._tensors(group):
            if id(tensor) not in self.kept:
                self.kept[id(tensor)] = tensor.data
                tensor.data = torch.full_like(tensor.data, torch.nan)

    def positions(self, transformer: Any) -> list[int]:
        """The blocks that were loaded since the last call, or whose leaves were."""
        owner = {id(m): i for i, block in enumerate(blocks_of(transformer)) for m in block.modules()}
        found = sorted({owner[id(module)] for module in self.loaded if id(module) in owner})
        self.loaded.clear()
        return found


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    device = Poison()

    def onload(group: ModuleGroup) -> None:
        device.onload(group)

    def offload(group: ModuleGroup) -> None:
        device.offload(group)

    monkeypatch.setattr(ModuleGroup, "_onload_from_memory", onload)
    monkeypatch.setattr(ModuleGroup, "_offload_to_memory", offload)
    return device


def group_offloading(size: int | None, **options: Any) -> Callable[[Any], None]:
    """Applies offloading by groups of ``size`` blocks, or of leaves if None."""
    kind = {"offload_type": "leaf_level"} if size is None else {"num_blocks_per_group": size}
    return lambda transformer: apply_group_offloading(
        transformer, **{"onload_device": CPU, "offload_device": CPU, "offload_type": "block_level", **kind, **options}
    )


def test_the_stand_in_for_a_device_shows_what_is_not_loaded(poison: Poison) -> None:
    """The tests below rest on this: a block that runs without its weights gives NaN."""
    transformer = tiny_transformer()
    plain = denoise(transformer)
    group_offloading(1)(transformer)
    assert same(denoise(transformer), plain)
    assert poison.positions(transformer) == list(range(BLOCKS))
    for block in blocks_of(transformer):
        block._diffusers_hook.remove_hook("group_offloading", recurse=False)
    assert all(output.isnan().all() for output in denoise(transformer))


@WHEN
@pytest.mark.parametrize(("front", "back"), [(0, 0), (1, 0), (1, 1), (2, 1), (0, 2)])
@pytest.mark.parametrize("size", [1, 2, 3, None])
def test_group_offloading_changes_no_output(poison: Poison, size: int | None, front: int, back: int, when: str) -> None:
    """Also where the first block after the skipped ones is not the first of its group: then more blocks compute."""
    transformer = enabled_with(group_offloading(size), when, static_config(front, back))
    outputs = denoise(transformer)
    cache = next(iter(transformer.__dict__["_cache_dit"].latest.caches.values()))
    computed = BLOCKS - cache.layout.middle
    reference = cached_reference(tiny_transformer(), static_config(front, computed - front))
    assert same(outputs, reference)
    cache_dit.disable_cache(transformer)
    assert same(denoise(transformer), denoise(tiny_transformer()))


@WHEN
@pytest.mark.parametrize("size", [1, None])
def test_a_skipped_block_is_not_loaded(poison: Poison, size: int | None, when: str) -> None:
    transformer = enabled_with(group_offloading(size), when, static_config(1, 1, [1, 0, 0], num_inference_steps=3))
    loaded = []
    for step in range(3):
        denoise(transformer, start=step, steps=step + 1)
        loaded.append(poison.positions(transformer))
    assert loaded == [list(range(BLOCKS)), [0, BLOCKS - 1], [0, BLOCKS - 1]]


@WHEN
def test_a_measured_decision_loads_as_little_as_a_planned_one(poison: Poison, when: str) -> None:
    reference = cached_reference(tiny_transformer(), DYNAMIC)
    transformer = enabled_with(group_offloading(1), when, DYNAMIC)
    assert same(denoise(transformer), reference)
    skipped = cache_dit.summary(transformer, logging=False)[0].cached_steps
    assert skipped
    cache_dit.refresh_context(transformer)
    loaded = []
    for step in range(STEPS):
        poison.loaded.clear()
        denoise(transformer, start=step, steps=step + 1)
        loaded.append(poison.positions(transformer))
    assert {step for step, blocks in enumerate(loaded) if blocks == [0]} == set(
        cache_dit.summary(transformer, logging=False)[0].cached_steps
    )


def test_a_boundary_inside_a_group_widens_the_blocks_that_compute_and_says_so(
    poison: Poison, caplog: pytest.LogCaptureFixture
) -> None:
    """Groups of three, one B block: the last group is loaded when its first block runs, so all three of it run."""
    transformer = enabled_with(group_offloading(3), "before", static_config(1, 1))
    with caplog.at_level(logging.WARNING, "cache_dit"), counted(transformer) as calls:
        denoise(transformer)
    assert calls == expected_calls(1, 3)
    assert "Bn_compute_blocks=1 cuts a group of offloaded blocks" in caplog.text
    caplog.clear()
    denoise(transformer)
    assert not caplog.text


def test_a_group_that_begins_in_the_first_blocks_is_loaded_by_them(poison: Poison) -> None:
    """One group of all blocks of a list, F and B in it: F loads it, so nothing more need compute."""
    transformer = tiny_transformer(double=4, single=0)
    config = static_config(1, 1)
    reference = cached_reference(tiny_transformer(double=4, single=0), config)
    enabled_with(group_offloading(4), "before", config, transformer)
    with counted(transformer) as calls:
        assert same(denoise(transformer), reference)
    assert [calls[i] for i in range(4)] == [STEPS, sum(MASK), sum(MASK), STEPS]


def test_offloading_switched_on_later_is_seen_at_the_next_request(poison: Poison) -> None:
    transformer = tiny_transformer()
    cache_dit.enable_cache(transformer, static_config(1, 1))
    denoise(transformer)
    group_offloading(3)(transformer)
    reference = cached_reference(tiny_transformer(), static_config(1, 3))
    with counted(transformer) as calls:
        assert same(denoise(transformer), reference)
    assert calls == expected_calls(1, 3)


def test_a_group_shared_by_two_chains_is_loaded_where_the_second_begins(poison: Poison) -> None:
    """Two chains over slices of one list, and a group across the border: its first block computes."""

    def cached(transformer: Any, modifiers: Any = None) -> Any:
        blocks = transformer.transformer_blocks
        adapter = cache_dit.BlockAdapter(
            transformer=transformer,
            blocks=[blocks[:3], blocks[3:]],
            blocks_name=["transformer_blocks", "transformer_blocks"],
            forward_pattern=[cache_dit.Pattern_1, cache_dit.Pattern_1],
            params_modifiers=modifiers,
        )
        cache_dit.enable_cache(adapter, static_config(1, 0))
        return transformer

    transformer = tiny_transformer(double=6, single=1)
    group_offloading(2)(transformer)
    cached(transformer)
    widened = [cache_dit.ParamsModifier(cache_dit.DBCacheConfig().reset(Bn_compute_blocks=1))]
    reference = denoise(cached(tiny_transformer(double=6, single=1), widened))
    assert same(denoise(transformer), reference)


@WHEN
def test_offloading_to_disk_changes_no_output(when: str, tmp_path: Path) -> None:
    config = static_config(1, 1)
    reference = cached_reference(tiny_transformer(), config)
    apply = group_offloading(1, offload_to_disk_path=str(tmp_path))
    transformer = enabled_with(apply, when, config)
    # safetensors places weights elsewhere in memory, and the kernels round differently there
    assert close(denoise(transformer), reference)
    cache_dit.disable_cache(transformer)
    assert close(denoise(transformer), denoise(tiny_transformer()))


@WHEN
def test_a_pipeline_with_group_offloading_gives_the_same_pictures(poison: Poison, when: str) -> None:
    cached = tiny_pipeline()
    cache_dit.enable_cache(cached, static_config(1, 1))
    reference = generate(cached)
    pipe = tiny_pipeline()
    options = {"onload_device": CPU, "offload_device": CPU, "offload_type": "leaf_level"}
    if when == "before":
        pipe.enable_group_offload(**options)
    cache_dit.enable_cache(pipe, static_config(1, 1))
    if when == "after":
        pipe.enable_group_offload(**options)
    assert same(generate(pipe), reference)
    assert same(generate(pipe), reference)


# -- prefetching by streams. The order of prefetching is that of the first forward; a group relies on the one before it.


class FakeStream:
    """A side stream that does everything at once."""

    def synchronize(self) -> None: ...


def prefetched(transformer: Any, size: int | None) -> None:
    """Offloading with prefetching, which diffusers itself only allows on a GPU."""
    from diffusers.hooks import group_offloading as module

    config = module.GroupOffloadingConfig(
        onload_device=CPU,
        offload_device=CPU,
        offload_type=module.GroupOffloadingType("leaf_level" if size is None else "block_level"),
        non_blocking=True,
        record_stream=False,
        low_cpu_mem_usage=True,
        num_blocks_per_group=size,
        stream=FakeStream(),
    )
    module._apply_group_offloading(transformer, config)


def _pre_forward_without_fallback(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
    """What diffusers 0.36 does: a group that should have been prefetched is taken to be there."""
    if self.group.onload_leader is None:
        self.group.onload_leader = module
    if self.group.onload_leader == module:
        if self.group.onload_self:
            self.group.onload_()
        if self.next_group is not None and not self.next_group.onload_self:
            self.next_group.onload_()
    return args, kwargs


@pytest.fixture
def old_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupOffloadingHook, "pre_forward", _pre_forward_without_fallback)
    monkeypatch.setattr(diffusers, "__version__", "0.36.0")


@pytest.mark.usefixtures("old_diffusers")
@pytest.mark.parametrize(("size", "back", "skips"), [(1, 0, True), (1, 1, False), (None, 0, False), (None, 1, False)])
def test_where_prefetching_relies_on_a_skipped_block_nothing_is_skipped(
    poison: Poison, size: int | None, back: int, skips: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """diffusers 0.36 loads a group only from the one before it: a computed block after skipped ones has no weights."""
    config = static_config(1, back)
    transformer = enabled_with(lambda model: prefetched(model, size), "before", config)
    with caplog.at_level(logging.WARNING, "cache_dit"):
        outputs = denoise(transformer)
        cache_dit.refresh_context(transformer)
    if skips:
        assert same(outputs, cached_reference(tiny_transformer(), config))
        return
    assert same(outputs, denoise(tiny_transformer()))
    assert "use_stream=False" in caplog.text


@pytest.mark.usefixtures("old_diffusers")
def test_with_two_chains_only_the_one_whose_skip_would_be_relied_on_is_refused(
    poison: Poison,
) -> None:
    transformer = tiny_transformer()
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=transformer,
            blocks=[transformer.transformer_blocks, transformer.single_transformer_blocks],
            forward_pattern=[cache_dit.Pattern_1, cache_dit.Pattern_1],
        ),
        static_config(1, 0),
    )
    prefetched(transformer, 1)
    outputs = denoise(transformer)
    assert all(output.isfinite().all() for output in outputs)
    first, second, _ = cache_dit.summary(transformer, logging=False)
    assert first.cached_steps == [] and second.cached_steps == [2, 4, 5]
    assert first.reason is not None and "use_stream=False" in first.reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU")
@WHEN
@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("size", [1, None])
def test_prefetching_by_streams_changes_no_output(size: int | None, back: int, when: str) -> None:
    """On a GPU, with what diffusers is installed: where it cannot load what was skipped over, nothing is skipped."""
    inputs = {name: value.to("cuda") for name, value in flux_inputs().items()}

    def run(transformer: Any) -> list[torch.Tensor]:
        return denoise(transformer, inputs=inputs)

    plain = run(tiny_transformer().to("cuda"))
    reference = run(cache_dit.enable_cache(tiny_transformer().to("cuda"), static_config(1, back)))
    apply = group_offloading(size, onload_device=torch.device("cuda"), use_stream=True)
    transformer = enabled_with(apply, when, static_config(1, back))
    for _ in range(2):
        outputs = run(transformer)
        refused = cache_dit.summary(transformer, logging=False)[0].reason is not None
        assert close(outputs, plain if refused else reference)
    cache_dit.disable_cache(transformer)
    assert close(run(transformer), plain)


# -- layerwise casting


@WHEN
def test_layerwise_casting_changes_no_output(when: str) -> None:
    """Weights that bfloat16 can hold, stored in it: casting loses nothing, so the outputs must be equal."""
    exact = tiny_transformer().to(torch.bfloat16).float()
    config = static_config(1, 1)
    reference = cached_reference(copy.deepcopy(exact), config)

    def apply(model: Any) -> None:
        apply_layerwise_casting(model, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)

    transformer = enabled_with(apply, when, config, copy.deepcopy(exact))
    assert next(transformer.transformer_blocks[2].attn.to_q.parameters()).dtype is torch.bfloat16
    with counted(transformer) as calls:
        assert same(denoise(transformer), reference)
    assert calls == expected_calls(1, 1)
    cache_dit.disable_cache(transformer)
    assert same(denoise(transformer), denoise(exact))


def test_a_module_without_offloading_belongs_to_no_group() -> None:
    assert offload.offload_group(torch.nn.Linear(1, 1)) is None
    assert offload.offload_group(SimpleNamespace()) is None  # type: ignore[arg-type]
