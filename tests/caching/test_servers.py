"""What servers do with this package: they subclass its classes, hold its manager, and cache blocks of their own.

The model here is like Bagel in vLLM-Omni: where other blocks have the encoder's states, its blocks have an object, a
store of keys and values, which they read and hand on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, DBPruneConfig, ForwardPattern, TaylorSeerCalibratorConfig
from cache_dit.caching import FakeDiffusionPipeline
from cache_dit.caching.cache_adapters.cache_adapter import CachedAdapter
from cache_dit.caching.cache_blocks.pattern_0_1_2 import CachedBlocks_Pattern_0_1_2
from cache_dit.caching.cache_contexts.cache_context import CachedContext
from cache_dit.caching.cache_contexts.cache_manager import CachedContextManager, ContextNotExistError
from tests.kit.tiny_flux import tiny_pipeline
from tests.kit.toys import Toy, denoise, dynamic, frozen_run, loop, normal, static, stream_inputs

WIDTH, TOKENS, LAYERS = 8, 6, 5


class Store:
    """Keys and values of earlier tokens, by layer: no tensor, nothing can be added to it."""

    def __init__(self) -> None:
        self.keys = [normal(1, 3, WIDTH, seed=layer) for layer in range(LAYERS)]


class Block(nn.Module):
    """Reads H and the store, and returns both in the order of its pattern, or H alone; the store stays as it was."""

    def __init__(self, layer: int, pattern: ForwardPattern) -> None:
        super().__init__()
        self.layer, self.pattern = layer, pattern
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, sequence: Tensor, past: Store, scale: float) -> Any:
        mixed = torch.tanh(self.inner(sequence) + past.keys[self.layer].mean(1, keepdim=True))
        hidden = sequence + scale * mixed
        if self.pattern.Return_H_Only:
            return hidden
        return (hidden, past) if self.pattern.Return_H_First else (past, hidden)


class Bagel(nn.Module):
    """A transformer over such blocks, each called with the store that the one before it handed on."""

    def __init__(self, pattern: ForwardPattern = ForwardPattern.Pattern_0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(layer, pattern) for layer in range(LAYERS))
        self.pattern = pattern
        self.handed: list[Any] = []
        self.requires_grad_(False)

    def forward(self, sequence: Tensor, past: Store, timestep: float) -> Tensor:
        hidden = sequence * (1 + timestep)
        handed = past
        for layer in self.layers:
            result = layer(hidden, handed, 0.1)
            if self.pattern.Return_H_Only:
                hidden = result
            else:
                hidden, handed = result if self.pattern.Return_H_First else result[::-1]
        self.handed.append(handed)
        return hidden

    def adapter(self) -> BlockAdapter:
        """Its description: its blocks have other names for what they are given."""
        return BlockAdapter(
            transformer=self, blocks=self.layers, forward_pattern=self.pattern, check_forward_pattern=False
        )


def run(model: Bagel, steps: int = 5, seed: int = 0) -> tuple[list[Tensor], list[Store]]:
    """The outputs of a run with a store of its own at each step, and these stores."""
    stores = [Store() for _ in range(steps)]
    sequence = normal(1, TOKENS, WIDTH, seed=seed)
    return [model(sequence, store, 1 - step / steps) for step, store in enumerate(stores)], stores


PAIRS = [
    pytest.param(ForwardPattern.Pattern_0, id="0"),
    pytest.param(ForwardPattern.Pattern_1, id="1"),
    pytest.param(ForwardPattern.Pattern_2, id="2"),
]
CONFIGS = {
    "static": (static("FCFCC"), None, [1, 3, 4]),
    "dynamic": (dynamic(residual_diff_threshold=0.9), None, [1, 2, 3, 4]),
    "pruned": (DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0), None, [1, 2, 3, 4]),
    "predicted": (static("FFCFC"), TaylorSeerCalibratorConfig(taylorseer_order=1), [2, 4]),
}


@pytest.mark.parametrize("how", CONFIGS)
@pytest.mark.parametrize("pattern", PAIRS)
def test_an_object_in_the_encoders_place_is_handed_on_and_never_added_to(how: str, pattern: ForwardPattern):
    model = Bagel(pattern)
    truth, _ = run(model)
    config, calibrator, cached = CONFIGS[how]
    cache_dit.enable_cache(model.adapter(), config, calibrator)
    model.handed.clear()
    before = Store().keys
    outputs, stores = run(model)
    assert cache_dit.summary(model, logging=False)[0].cached_steps == cached
    assert all(handed is store for handed, store in zip(model.handed, stores, strict=True))
    assert all(torch.equal(a, b) for store in stores for a, b in zip(store.keys, before, strict=True))
    computed = [step for step in range(5) if step not in cached]
    assert all(torch.equal(outputs[step], truth[step]) for step in computed)
    assert all(torch.isfinite(output).all() for output in outputs)
    assert any(not torch.equal(outputs[step], truth[step]) for step in cached)


# -- subclasses


class Manager(CachedContextManager):
    """A server's: fills skipped blocks in its own way."""

    def apply_cache(self, hidden_states: Tensor, encoder_hidden_states: Any = None, **options: Any) -> Any:
        raise AssertionError("nobody calls this")


class Blocks(CachedBlocks_Pattern_0_1_2):
    """A server's: runs the blocks in its own way."""

    def call_Mn_blocks(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nobody calls this")

    def compute_or_prune(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nobody calls this")


class Adapter(CachedAdapter):
    """A server's: makes its own managers and blocks."""

    @classmethod
    def create_context(cls, block_adapter: BlockAdapter, **options: Any) -> Any:
        raise AssertionError("nobody calls this")

    @classmethod
    def collect_unified_blocks(cls, block_adapter: BlockAdapter, **options: Any) -> Any:
        raise AssertionError("nobody calls this")


def test_a_servers_subclasses_are_constructed_and_applied_and_cache_as_our_own_classes_do():
    config, calibrator = dynamic(), TaylorSeerCalibratorConfig(taylorseer_order=1)
    ours, theirs = Toy("0"), Toy("0")
    CachedAdapter.apply(ours.adapter(), cache_config=config, calibrator_config=calibrator)
    Adapter.apply(theirs.adapter(), cache_config=config, calibrator_config=calibrator)
    theirs._context_manager = Manager(name="bagel", persistent_context=False)
    outputs = [denoise(model, loop(5)) for model in (ours, theirs)]
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert theirs._context_manager.get_cached_steps() == ours._context_manager.get_cached_steps() != []
    assert (theirs._context_manager.name, theirs._context_manager.persistent_context) == ("bagel", False)


class Looped(Toy):
    """A toy whose loop is a server's module of blocks."""

    def __init__(self) -> None:
        super().__init__("0")
        self.loop = Blocks(
            self.blocks,
            transformer=self,
            forward_pattern=ForwardPattern.Pattern_0,
            check_forward_pattern=False,
            check_num_outputs=False,
            cache_prefix="bagel",
            cache_context="blocks",
            context_manager=None,
            cache_type=cache_dit.DBCache,
        )

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Any:
        hidden, encoder = self.loop(self.enter(hidden_states), encoder_hidden_states, 0.5)
        return self.leave(hidden) + encoder.mean(1, keepdim=True)


def test_a_servers_module_of_blocks_skips_what_the_models_own_loop_would_skip():
    plain, looped = Toy("0"), Looped()
    inputs = stream_inputs(plain)
    cache_dit.enable_cache(plain.adapter(), static("FCC"))
    Adapter.apply(looped.adapter(), cache_config=static("FCC"))
    expected, outputs = frozen_run(plain, inputs, 3), frozen_run(looped, inputs, 3)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert looped.loop.context.cached_steps == [1, 2]


def test_what_a_subclass_overrides_in_vain_is_said_once(caplog: pytest.LogCaptureFixture):
    class Own(CachedAdapter):
        """Overrides one method that is not used, and one that is."""

        @classmethod
        def create_context(cls, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("nobody calls this")

        @classmethod
        def apply(cls, pipe: Any, **options: Any) -> Any:
            return super().apply(pipe, **options)

    for _ in range(2):
        Own.apply(Toy("0").adapter(), cache_config=static("FC"))
    assert caplog.text.count("Own overrides create_context, which is not used") == 1


def test_a_subclass_that_overrides_what_is_used_says_nothing(caplog: pytest.LogCaptureFixture):
    class Own(CachedContextManager):
        """Decides in its own way."""

        def similarity(self, t1: Any, t2: Any, **options: Any) -> bool:
            return True

    assert caplog.text == ""
    assert Own().replacement() is not None


# -- the manager


def test_a_context_can_be_entered_and_reset():
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FCC"))
    manager = model._context_manager
    denoise(model, loop(3))
    with manager.enter_context("blocks") as context:
        assert isinstance(context, CachedContext)
        assert context.cached_steps == [1, 2]
    with manager.enter_context(context) as again:
        assert again == context
    assert manager.reset_context("blocks", steps_computation_mask=[1, 1, 0]).cached_steps == []
    denoise(model, loop(3))
    assert manager.get_cached_steps() == [2]


def test_a_context_that_does_not_exist_is_named():
    model = Toy("0")
    cache_dit.enable_cache(model.adapter(), static("FC"))
    for ask in (model._context_manager.reset_context, model._context_manager.get_context):
        with pytest.raises(ContextNotExistError, match=r"'blocks_7'.*blocks"):
            ask("blocks_7")
    with pytest.raises(ContextNotExistError), model._context_manager.enter_context("blocks_7"):
        pass


# -- the pipeline


def test_a_pipeline_has_the_manager_of_its_transformer_and_says_that_it_is_cached():
    pipe = tiny_pipeline()
    plain = type(pipe)
    assert not hasattr(pipe, "_context_manager")
    cache_dit.enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=1))
    assert pipe._is_cached
    assert BlockAdapter.is_cached(pipe)
    assert pipe._context_manager is pipe.transformer._context_manager
    pipe._context_manager = Manager("own")
    assert pipe.transformer._context_manager.name == "own"
    cache_dit.disable_cache(pipe)
    assert type(pipe) is plain
    assert not hasattr(pipe, "_is_cached")


def test_the_mark_may_be_deleted_from_the_class_of_a_cached_pipeline():
    first, second = tiny_pipeline(), tiny_pipeline()
    for pipe in (first, second):
        cache_dit.enable_cache(pipe, DBCacheConfig(Fn_compute_blocks=1))
        del type(pipe)._is_cached
        delattr(pipe.__class__, "_is_cached")
    assert BlockAdapter.is_cached(first)
    assert second._is_cached
    assert not hasattr(FakeDiffusionPipeline, "_is_cached")


def test_an_adapter_says_whether_it_is_normalized():
    adapter = Toy("0").adapter()
    with pytest.raises(cache_dit.ConfigError, match="normalize"):
        BlockAdapter.assert_normalized(adapter)
    BlockAdapter.assert_normalized(BlockAdapter.normalize(adapter))
