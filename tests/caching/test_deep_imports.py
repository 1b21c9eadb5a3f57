"""What servers take from ``cache_dit.caching``: each name does with this engine what it says."""

from __future__ import annotations

import builtins
import logging
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import BlockAdapter, CacheType, ConfigError, DBCacheConfig, ForwardPattern, UnsupportedModelError
from cache_dit.caching import adapters, blocks, functors
from cache_dit.caching.adapters import BlockAdapterRegister, CachedAdapter
from cache_dit.caching.blocks import CachedBlocks, PrunedBlocks, UnifiedBlocks
from cache_dit.caching.calibrators import (
    Calibrator,
    CalibratorBase,
    DMDCalibrator,
    FoCaCalibrator,
    HermiteCalibrator,
    NewtonCalibrator,
    TaylorSeerCalibrator,
)
from cache_dit.caching.functors import PatchFunctor
from cache_dit.caching.manager import make_manager
from cache_dit.config import CalibratorConfig, TaylorSeerCalibratorConfig
from cache_dit.engine.adapters import registry
from cache_dit.engine.subclass import state_of
from cache_dit.errors import PatternMismatchError, SessionError
from cache_dit.logger import init_logger, logging_rank_0
from cache_dit.utils import is_diffusers_at_least_0_3_5, maybe_empty_cache, print_tensor
from tests.kit.equality import close
from tests.kit.tiny_models import tiny
from tests.kit.toys import Toy, frozen_run, normal, static, stream_inputs

# -- descriptions by class name


class Foo(Toy):
    """A model of somebody's own."""


class FooBar(Foo):
    """One whose class name begins with the other's."""


class FooPipeline:
    """A pipeline of somebody's own."""

    def __init__(self) -> None:
        self.transformer = Foo()

    def __call__(self, num_inference_steps: int = 4) -> list[torch.Tensor]:
        return frozen_run(self.transformer, stream_inputs(self.transformer), num_inference_steps)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> type[BlockAdapterRegister]:
    """The register, as it was again after the test."""
    monkeypatch.setattr(registry, "registered", {})
    return BlockAdapterRegister


def describe(pipe: Any, **options: Any) -> BlockAdapter:
    return BlockAdapter(
        pipe=pipe,
        transformer=pipe.transformer,
        blocks=pipe.transformer.blocks,
        forward_pattern=ForwardPattern.Pattern_0,
        **options,
    )


def test_a_registered_function_describes_transformers_by_the_beginning_of_their_class_name(registered):
    with pytest.raises(UnsupportedModelError):
        cache_dit.enable_cache(Foo(), static("FC"))
    assert registered.register("Foo")(describe) is describe
    model = cache_dit.enable_cache(FooBar(), static("FC", num_inference_steps=2))
    frozen_run(model, stream_inputs(model), 2)
    assert cache_dit.summary(model, logging=False)[0].cached_steps == [1]


def test_a_registered_function_describes_pipelines(registered):
    registered.register("Foo")(describe)
    pipe = FooPipeline()
    adapter = cache_dit.get_adapter(pipe)
    assert adapter.pipe is pipe
    assert adapter.transformer is pipe.transformer


def test_of_registered_names_the_longest_counts(registered):
    registered.register("FooBar")(lambda pipe: describe(pipe, has_separate_cfg=True))
    registered.register("Foo")(describe)
    assert registered.has_separate_cfg(FooBar())
    assert not registered.has_separate_cfg(Foo())


def test_what_a_user_registered_comes_before_the_records(registered):
    transformer = tiny("FluxTransformer2DModel")
    assert cache_dit.get_adapter(transformer).merge
    registered.register("Flux")(
        lambda pipe: BlockAdapter(
            pipe=pipe,
            transformer=pipe.transformer,
            blocks=pipe.transformer.transformer_blocks,
            forward_pattern=ForwardPattern.Pattern_1,
        )
    )
    assert not cache_dit.get_adapter(transformer).merge


def test_models_registered_as_not_supported_are_refused(registered):
    registered.register("Flux", supported=False)(describe)
    transformer = tiny("FluxTransformer2DModel")
    assert not registered.is_supported(transformer)
    with pytest.raises(UnsupportedModelError):
        cache_dit.enable_cache(transformer)


def test_registered_models_are_listed_as_supported(registered):
    before, _ = registered.supported_pipelines()
    registered.register("Foo")(describe)
    registered.register("Baz", supported=False)(describe)
    count, names = cache_dit.supported_pipelines()
    assert (count, names[-1]) == (before + 1, "Foo")
    assert "Baz" not in names


def test_registering_a_name_again_says_so(registered, caplog: pytest.LogCaptureFixture):
    registered.register("Foo")(describe)
    registered.register("Foo")(lambda pipe: describe(pipe, has_separate_cfg=True))
    assert "registered again" in caplog.text
    assert registered.has_separate_cfg(Foo())


def test_a_registered_function_that_gives_no_adapter_is_named(registered):
    registered.register("Foo")(lambda pipe: pipe.transformer)
    with pytest.raises(ConfigError, match="'Foo'"):
        cache_dit.enable_cache(Foo())


def test_a_registered_name_must_be_the_beginning_of_a_class_name(registered):
    with pytest.raises(ConfigError, match="name="):
        registered.register("Foo*")


@pytest.mark.parametrize("name", cache_dit.supported_pipelines()[1])
def test_each_family_has_a_function_that_describes_its_models(name: str):
    assert f"{name.lower()}_adapter" in dir(adapters)
    assert callable(getattr(adapters, f"{name.lower()}_adapter"))


def test_a_familys_function_gives_the_records_description_with_other_fields():
    from cache_dit.caching.block_adapters import flux_adapter

    transformer = tiny("FluxTransformer2DModel")
    adapter = flux_adapter(transformer, has_separate_cfg=True, blocks_policy="min")
    assert adapter.merge
    assert adapter.has_separate_cfg
    cache_dit.enable_cache(adapter, DBCacheConfig(Fn_compute_blocks=1))
    assert BlockAdapter.is_cached(transformer)


def test_a_familys_function_refuses_another_family():
    with pytest.raises(UnsupportedModelError, match="Wan"):
        adapters.wan_adapter(tiny("FluxTransformer2DModel"))


def test_a_familys_function_names_an_unknown_field():
    with pytest.raises(ConfigError, match="has_separate_cfg"):
        adapters.flux_adapter(tiny("FluxTransformer2DModel"), has_seperate_cfg=True)


def test_a_family_without_a_record_has_no_function():
    with pytest.raises(AttributeError, match="no_such_adapter"):
        adapters.no_such_adapter  # noqa: B018


def test_the_cached_adapter_puts_the_cache_on():
    toy = Toy()
    adapter = toy.adapter()
    assert CachedAdapter.apply(adapter, cache_config=static("FC")) is adapter
    assert BlockAdapter.is_cached(toy)


# -- blocks


class Looped(Toy):
    """A toy whose loop is a ``CachedBlocks``."""

    def __init__(self, form: str) -> None:
        super().__init__(form)
        self.loop = UnifiedBlocks(self.blocks, self, self.form.pattern)

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Any:
        streams = (self.enter(hidden_states), encoder_hidden_states)
        reads_pair = not self.form.pattern.Forward_H_only
        result = self.loop(*streams[: 1 + reads_pair], 0.5)
        hidden, encoder = self.form.take(result, encoder_hidden_states)
        return self.leave(hidden) if encoder is None else self.leave(hidden) + encoder.mean(1, keepdim=True)


@pytest.mark.parametrize("form", ["0", "1", "2", "2 (H,)", "3", "4", "5"])
def test_cached_blocks_do_what_the_models_own_loop_does(form: str):
    plain, looped = Toy(form), Looped(form)
    inputs = stream_inputs(plain)
    truth = frozen_run(plain, inputs, 1)[0]
    assert torch.equal(frozen_run(looped, inputs, 1)[0], truth)
    cache_dit.enable_cache(looped.adapter(), static("FC"))
    assert looped.loop.is_cached
    full, cached = frozen_run(looped, inputs, 2)
    assert torch.equal(full, truth)
    assert close(cached, truth)
    assert cache_dit.summary(looped, logging=False)[0].executed_blocks == 5 + 1


def test_cached_blocks_compute_where_no_cache_is_on():
    blocks = CachedBlocks(Toy("3").blocks, forward_pattern=ForwardPattern.Pattern_3)
    assert not blocks.is_cached
    assert blocks(normal(1, 6, 8)).shape == (1, 6, 8)
    with pytest.raises(SessionError, match="enable_cache"):
        blocks.context  # noqa: B018


def test_cached_blocks_hold_the_blocks_and_not_the_transformer():
    toy = Toy()
    blocks = CachedBlocks(toy.blocks, toy, ForwardPattern.Pattern_0)
    assert set(blocks.state_dict()) == {f"transformer_blocks.{name}" for name in toy.blocks.state_dict()}


def test_cached_blocks_show_what_the_cache_holds_for_their_chain():
    toy = Toy("0", (2, 3))
    cache_dit.enable_cache(toy.adapter(), static("FC"))
    manager = make_manager(state_of(toy))
    blocks = CachedBlocks(
        toy.blocks_1, toy, ForwardPattern.Pattern_0, cache_context="blocks_1", context_manager=manager
    )
    assert blocks.context.name == "blocks_1"


def test_unified_blocks_choose_by_the_kind_of_cache():
    toy = Toy()
    assert type(UnifiedBlocks(toy.blocks, toy, ForwardPattern.Pattern_0)) is CachedBlocks
    pruned = UnifiedBlocks(toy.blocks, toy, ForwardPattern.Pattern_0, cache_type=CacheType.DBPrune)
    assert type(pruned) is PrunedBlocks


def test_blocks_that_do_not_fit_the_pattern_are_refused():
    with pytest.raises(PatternMismatchError, match="Pattern_0"):
        CachedBlocks(Toy("3").blocks, forward_pattern=ForwardPattern.Pattern_0)


@pytest.mark.parametrize("kind", ["CachedBlocks", "PrunedBlocks"])
def test_blocks_of_a_kind_of_patterns_refuse_the_others(kind: str):
    pairs = getattr(blocks, f"{kind}_Pattern_0_1_2")
    with pytest.raises(ConfigError, match="Pattern_2"):
        pairs(Toy("3").blocks, forward_pattern=ForwardPattern.Pattern_3)


# -- patch functors


class Mark(PatchFunctor):
    """Marks what it is given."""

    def _apply(self, transformer: Any, *args: Any, **kwargs: Any) -> Any:
        transformer._is_patched = True
        return transformer


def test_a_functor_is_applied_to_transformers_of_diffusers():
    transformer = tiny("FluxTransformer2DModel")
    assert Mark.is_from_diffusers(transformer)
    assert Mark().apply(transformer) is transformer
    assert transformer._is_patched


def test_a_functor_leaves_other_transformers_alone_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    toy = Toy()
    BlockAdapter(transformer=toy, blocks=toy.blocks, forward_pattern=ForwardPattern.Pattern_0, patch_functor=Mark())
    assert not hasattr(toy, "_is_patched")
    assert "CACHE_DIT_PATCH_FUNCTOR_DISABLE_DIFFUSERS_CHECK" in caplog.text
    monkeypatch.setenv("CACHE_DIT_PATCH_FUNCTOR_DISABLE_DIFFUSERS_CHECK", "1")
    assert Mark().apply(toy)._is_patched


@pytest.mark.parametrize(
    "name", [name for name in vars(functors) if name.endswith("PatchFunctor") and name != "PatchFunctor"]
)
def test_a_named_functor_leaves_the_transformer_as_it_is(name: str):
    transformer = tiny("FluxTransformer2DModel")
    before = dict(vars(transformer))
    functor = getattr(functors, name)
    assert functor().apply(transformer) is transformer
    assert vars(transformer) == before
    assert functor.__doc__.startswith("Leaves the transformer as it is")


# -- calibrators


def run(calibrator: CalibratorBase, values: dict[int, float], target: int, name: str = "default") -> float:
    for step in range(target + 1):
        calibrator.mark_step_begin()
        if step in values:
            calibrator.update(torch.tensor([values[step]], dtype=torch.float64), name)
    return float(calibrator.approximate(name))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_taylorseer_calibrator_is_exact_on_polynomials_of_its_order(order: int):
    steps = {step: float((step + 1) ** order) for step in (0, 1, 4)}
    assert run(TaylorSeerCalibrator(order), steps, 6) == pytest.approx(7.0**order)


@pytest.mark.parametrize(
    "calibrator", [FoCaCalibrator(), DMDCalibrator(history=5), HermiteCalibrator(order=1), NewtonCalibrator()]
)
def test_every_calibrator_gives_back_what_does_not_change(calibrator: CalibratorBase):
    assert run(calibrator, dict.fromkeys(range(5), 3.0), 6) == pytest.approx(3.0)


def test_a_calibrator_keeps_streams_apart_and_forgets_them():
    calibrator = Calibrator(TaylorSeerCalibratorConfig(taylorseer_order=1))
    assert run(calibrator, {0: 1.0, 1: 2.0}, 2, "hidden") == pytest.approx(3.0)
    with pytest.raises(SessionError, match="'encoder'"):
        calibrator.approximate("encoder")
    calibrator.reset_cache()
    with pytest.raises(SessionError, match="'hidden'"):
        calibrator.approximate("hidden")


def test_a_calibrator_takes_one_value_a_step():
    calibrator = TaylorSeerCalibrator()
    calibrator.mark_step_begin()
    calibrator.update(torch.ones(1))
    with pytest.raises(SessionError, match="mark_step_begin"):
        calibrator.update(torch.ones(1))


def test_a_calibrators_own_loop_computes_the_warm_up_and_every_interval_th_step():
    calibrator = TaylorSeerCalibrator(0, max_warmup_steps=2, skip_interval_steps=3)
    seen = [float(calibrator.step(torch.tensor([float(step)]))) for step in range(9)]
    assert seen == [0, 1, 1, 1, 4, 4, 4, 7, 7]


def test_the_calibrator_factory_refuses_what_is_no_configuration():
    with pytest.raises(ConfigError, match="CalibratorConfig"):
        Calibrator("taylorseer")
    with pytest.raises(ConfigError, match="taylorseer"):
        Calibrator(CalibratorConfig(calibrator_type="tailorseer"))


# -- logging and printing


@pytest.fixture
def logger_name() -> Iterator[str]:
    """The name of a logger that is free again after the test."""
    name = "cache_dit_test"
    yield name
    logger = logging.getLogger(name)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def test_a_logger_writes_level_time_place_and_message(logger_name: str, capsys: pytest.CaptureFixture[str]):
    logger = init_logger(logger_name)
    init_logger(logger_name).info("hello")
    logger.debug("not this")
    assert not logger.propagate
    out = capsys.readouterr().out
    assert re.fullmatch(r"INFO \d\d-\d\d \d\d:\d\d:\d\d \[test_deep_imports\.py:\d+\] hello\n", out)


def test_each_line_of_a_message_begins_alike(logger_name: str, capsys: pytest.CaptureFixture[str]):
    init_logger(logger_name).info("one\ntwo")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("] one")
    assert second == first.removesuffix("one") + "two"


def test_the_environment_says_what_a_logger_writes_and_where(
    logger_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CACHE_DIT_LOG_LEVEL", "warning")
    monkeypatch.setenv("CACHE_DIT_LOG_DIR", str(tmp_path / "logs"))
    logger = init_logger(logger_name)
    logging_rank_0(logger, "quiet")
    logging_rank_0(logger, "loud", logging.ERROR)
    written = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert written == [capsys.readouterr().out] * 2
    assert "loud" in written[0]
    assert "quiet" not in written[0]
    monkeypatch.setenv("CACHE_DIT_LOG_LEVEL", "loudest")
    with pytest.raises(ConfigError, match="LOUDEST"):
        init_logger(logger_name)


def test_emptying_the_cache_collects_garbage():
    class Knot:
        """Refers to itself."""

    knot = Knot()
    knot.itself = knot
    gone = weakref.ref(knot)
    del knot
    maybe_empty_cache()
    assert gone() is None


def test_the_installed_diffusers_is_recent_enough():
    assert is_diffusers_at_least_0_3_5()


def test_a_tensor_is_printed_in_one_line(capsys: pytest.CaptureFixture[str]):
    print_tensor(torch.tensor([[1.0, 3.0]]), "x")
    print_tensor(torch.empty(0, dtype=torch.int64))
    assert capsys.readouterr().out.splitlines() == [
        "x: (1, 2), torch.float32, cpu, mean 2, std 1, min 1, max 3",
        "tensor: (0,), torch.int64, cpu, empty",
    ]


def test_printing_can_be_switched_off_for_a_while(capsys: pytest.CaptureFixture[str]):
    plain = builtins.print
    with pytest.raises(KeyError), cache_dit.disable_print():
        print("nothing")
        raise KeyError
    print("something")
    assert builtins.print is plain
    assert capsys.readouterr().out == "something\n"
