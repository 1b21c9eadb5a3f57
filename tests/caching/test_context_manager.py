"""``transformer._context_manager``: a view of the cache, and the place to put another decision in."""

from __future__ import annotations

import gc
import types
import weakref
from typing import Any

import pytest
import torch

import cache_dit
from cache_dit import ConfigError, DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.caching.calibrators import TaylorSeerCalibrator
from cache_dit.caching.contexts import CachedContext, PrunedContext
from cache_dit.caching.manager import CachedContextManager, ContextManager, PrunedContextManager, make_manager
from cache_dit.config import CacheType, DBPruneConfig, ExtraCacheConfig
from cache_dit.engine.attach import manager as hook
from cache_dit.engine.subclass import state_of
from cache_dit.errors import SessionError
from tests.kit.toys import Toy, denoise, dynamic, frozen_run, lines, loop, normal, static, stream_inputs

# -- deciding


def test_similarity_compares_means_with_the_threshold():
    manager = CachedContextManager()
    before, now = torch.full((2, 3), 4.0), torch.full((2, 3), 3.0)  # relL1 is 1/4
    assert manager.similarity(before, now, threshold=0.26)
    assert not manager.similarity(before, now, threshold=0.25)


@pytest.mark.parametrize("now", [torch.ones(3), torch.full((2, 3), torch.nan), None])
def test_what_cannot_be_compared_is_not_similar(now: Any):
    assert not CachedContextManager().similarity(torch.ones(2, 3), now, threshold=10.0)


def test_similarity_looks_at_important_tokens_alone_where_that_is_asked():
    toy = Toy()
    cache_dit.enable_cache(
        toy.adapter(), dynamic(extra_cache_config=ExtraCacheConfig(important_condition_threshold=0.5))
    )
    manager = make_manager(state_of(toy))
    before = torch.ones(1, 4, 2)
    now = before.clone()
    now[:, 0] = 2  # one token of four: relL1 is 1/4 over all and 1 over this one
    assert not manager.similarity(before, now, threshold=0.9)
    assert CachedContextManager().similarity(before, now, threshold=0.9)


def always(self: Any, t1: Any, t2: Any, *, threshold: float, parallelized: bool = False, prefix: str = "Fn") -> bool:
    self.add_residual_diff(torch.tensor(0.125))
    return True


class Always(CachedContextManager):
    """Finds everything similar."""

    similarity = always


def test_there_is_no_replacement_while_similarity_is_ours():
    class Named(CachedContextManager):
        """A subclass that leaves the decision as it is."""

    assert CachedContextManager().replacement() is None
    assert PrunedContextManager().replacement() is None
    assert Named().replacement() is None


@pytest.mark.parametrize("how", ["subclass", "class of the instance", "on the class", "method", "function"])
def test_a_replaced_similarity_is_found_and_bound(how: str, monkeypatch: pytest.MonkeyPatch):
    manager = Always() if how == "subclass" else PrunedContextManager()
    if how == "class of the instance":
        manager.__class__ = Always
    elif how == "on the class":
        monkeypatch.setattr(CachedContextManager, "similarity", always)
    elif how == "method":
        manager.similarity = types.MethodType(always, manager)
    elif how == "function":
        manager.similarity = lambda t1, t2, **options: always(manager, t1, t2, **options)
    replacement = manager.replacement()
    assert replacement is not None
    assert replacement(torch.zeros(2), torch.ones(2), threshold=0.1, parallelized=False, prefix="Fn")
    assert manager.take_diff() == 0.125


def test_a_measured_diff_is_taken_once():
    manager = CachedContextManager()
    assert manager.take_diff() is None
    manager.similarity(torch.full((2,), 4.0), torch.full((2,), 3.0), threshold=0.5)
    assert manager.take_diff() == pytest.approx(0.25)
    assert manager.take_diff() is None


def decided_by(manager: CachedContextManager, config: DBCacheConfig) -> list[int]:
    """The cached steps of a short run whose decisions a manager's ``similarity`` makes."""
    toy = Toy()
    cache_dit.enable_cache(toy.adapter(), config)
    toy._context_manager = manager
    denoise(toy, loop(5))
    return manager.get_cached_steps()


def test_decisions_go_through_a_replaced_similarity():
    never, strict = CachedContextManager(), dynamic(residual_diff_threshold=1e-9)
    never.similarity = lambda t1, t2, **options: False
    assert decided_by(CachedContextManager(), strict) == []
    assert decided_by(Always(), strict) == [1, 2, 3, 4]
    assert decided_by(CachedContextManager(), dynamic()) == [1, 2, 3, 4]
    assert decided_by(never, dynamic()) == []


def test_a_similarity_replaced_on_the_class_or_between_two_steps_decides(monkeypatch: pytest.MonkeyPatch):
    toy = Toy()
    cache_dit.enable_cache(toy.adapter(), dynamic(residual_diff_threshold=1e-9))
    text = stream_inputs()[1]
    denoise(toy, loop(6)[:2], text=text)
    monkeypatch.setattr(CachedContextManager, "similarity", always)
    denoise(toy, loop(6)[2:4], text=text)
    toy._context_manager.similarity = lambda t1, t2, **options: False
    denoise(toy, loop(6)[4:], text=text)
    assert toy._context_manager.get_cached_steps() == [2, 3]


def test_a_manager_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hook, "eager", False)  # as it is until the module of managers is imported
    toy = Toy()
    cache_dit.enable_cache(toy.adapter(), dynamic())
    state = state_of(toy)
    denoise(toy, loop(3))
    assert state.manager is None
    assert state.similarity is None
    assert toy._context_manager is toy._context_manager is state.manager
    assert state.manager.get_cached_steps() == [1, 2]


def test_a_replaced_similarity_sees_the_last_computed_step_and_this_one():
    seen = []

    class Notes(CachedContextManager):
        """Notes what it is asked, and finds every other step similar."""

        def similarity(self, t1: Any, t2: Any, **options: Any) -> bool:
            seen.append((t1, t2, options, self.get_current_step()))
            return len(seen) % 2 == 1

    assert decided_by(Notes(), dynamic(residual_diff_threshold=0.25)) == [1, 3]
    assert [options for _, _, options, _ in seen] == [{"threshold": 0.25, "parallelized": False, "prefix": "Fn"}] * 4
    assert [step for *_, step in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[0][0], seen[1][0])  # step 1 was cached: step 2 is compared with step 0 too
    assert torch.equal(seen[2][0], seen[1][1])  # step 2 was computed: step 3 is compared with it


def test_pruning_asks_a_replaced_similarity_for_each_block():
    prefixes = []

    def similarity(t1: Any, t2: Any, *, prefix: str, **options: Any) -> bool:
        prefixes.append(prefix)
        return False

    manager = PrunedContextManager()
    manager.similarity = similarity
    config = DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.5)
    assert decided_by(manager, config) == []
    assert len(prefixes) == 4 * 4
    assert len(set(prefixes)) == 4


@pytest.mark.parametrize("separate", [True, False])
def test_a_replaced_similarity_is_asked_for_each_branch_also_where_branches_share_a_diff(separate: bool):
    toy, asked = Toy(), []
    cache_dit.enable_cache(toy.adapter(), dynamic(enable_separate_cfg=True, cfg_diff_compute_separate=separate))
    manager = toy._context_manager

    def similarity(t1: Any, t2: Any, **options: Any) -> bool:
        asked.append(manager.get_current_step())
        manager.add_residual_diff(0.9)  # above the threshold: it is the answer that counts
        return True

    manager.similarity = similarity
    denoise(toy, [step for step in loop(4) for _ in range(2)])
    assert lines(toy) == {"cond": "FCCC", "uncond": "FCCC"}
    assert asked == [1, 1, 2, 2, 3, 3]


def test_that_a_policy_asks_no_similarity_is_said(caplog: pytest.LogCaptureFixture):
    never = CachedContextManager()
    never.similarity = lambda t1, t2, **options: False
    cached = decided_by(never, dynamic(policy="easycache", Fn_compute_blocks=0))
    assert cached == [2, 3, 4]
    assert caplog.text.count("a replaced similarity is not asked") == 1


# -- looking


def cached_toy(**options: Any) -> tuple[Toy, CachedContextManager]:
    toy = Toy()
    cache_dit.enable_cache(toy.adapter(), **{"cache_config": static("FCCFC", num_inference_steps=5), **options})
    return toy, make_manager(state_of(toy), "toy")


def test_a_manager_shows_what_the_cache_did():
    toy, manager = cached_toy()
    assert manager.get_current_step() == -1
    frozen_run(toy, stream_inputs(), 5)
    assert manager.get_current_step() == 4
    assert manager.get_cached_steps() == [1, 2, 4]
    assert manager.get_cfg_cached_steps() == []
    assert manager.context_names == ["blocks"]
    context = manager.get_context("blocks")
    assert type(context) is CachedContext
    assert context.name == "blocks"
    assert context.cache_config.steps_computation_mask == [1, 0, 0, 1, 0]
    assert (context.executed_steps, context.transformer_executed_steps) == (5, 5)
    assert context.continuous_cached_steps == 1


def test_a_context_has_the_diffs_and_their_sum_since_the_last_computed_step():
    toy, manager = cached_toy(cache_config=dynamic(residual_diff_threshold=0.9))
    denoise(toy, loop(5))
    context = manager.get_context()
    diffs = list(context.residual_diffs.values())
    assert manager.get_residual_diffs() == context.residual_diffs
    assert context.continuous_cached_steps == len(diffs) == 4
    assert context.accumulated_residual_diff == pytest.approx(sum(diffs))
    assert context.buffers["nbytes"] > 0


def test_both_branches_of_guidance_are_shown():
    toy, manager = cached_toy(cache_config=static("FCC", num_inference_steps=3, enable_separate_cfg=True))
    frozen_run(toy, stream_inputs(), 6)
    assert manager.get_cached_steps() == manager.get_cfg_cached_steps() == [1, 2]
    context = manager.get_context()
    assert (context.executed_steps, context.transformer_executed_steps) == (3, 6)
    assert context.cfg_continuous_cached_steps == 2


def test_the_context_of_a_pruned_transformer_counts_its_blocks():
    toy, manager = cached_toy(
        cache_config=DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0)
    )
    assert type(manager) is PrunedContextManager
    frozen_run(toy, stream_inputs(), 3)
    context = manager.get_context()
    assert type(context) is PrunedContext
    assert context.pruned_blocks == [0, 4, 4]
    assert context.actual_blocks == [5, 5, 5]
    assert context.cached_steps == [1, 2]


def test_a_context_shows_its_own_chain():
    toy = Toy("0", (2, 3))
    cache_dit.enable_cache(toy.adapter(), static("FC"))
    manager = make_manager(state_of(toy))
    assert manager.context_names == ["blocks", "blocks_1"]
    assert manager.get_context("blocks_1").name == "blocks_1"
    with pytest.raises(ConfigError, match="blocks_1"):
        manager.get_context("blocks_2")


def test_what_is_shown_is_of_the_request_that_asks():
    toy, manager = cached_toy(cache_config=static("FCC"))
    with cache_dit.session("one"):
        frozen_run(toy, stream_inputs(), 2)
    with cache_dit.session("two"):
        frozen_run(toy, stream_inputs(), 1)
    with cache_dit.session("one"):
        assert manager.get_cached_steps() == [1]
    with cache_dit.session("two"):
        assert manager.get_cached_steps() == []


def test_changing_what_is_shown_changes_nothing():
    toy, manager = cached_toy()
    frozen_run(toy, stream_inputs(), 2)
    context = manager.get_context()
    context.cached_steps.clear()
    context.cache_config.update(Fn_compute_blocks=3)
    assert manager.get_cached_steps() == [1]
    assert manager.get_context().cache_config.Fn_compute_blocks == 1


def test_a_manager_says_what_predicts_and_what_is_compared():
    _, manager = cached_toy(calibrator_config=TaylorSeerCalibratorConfig(enable_encoder_calibrator=False))
    assert manager.is_calibrator_enabled()
    assert isinstance(manager.get_context().calibrator_config, TaylorSeerCalibratorConfig)
    assert manager.get_context().calibrator is None
    assert not manager.is_encoder_calibrator_enabled()
    assert not manager.is_l1_diff_enabled()
    _, manager = cached_toy(
        cache_config=dynamic(extra_cache_config=ExtraCacheConfig(l1_hidden_states_diff_threshold=0.1))
    )
    assert manager.is_l1_diff_enabled()


def test_a_manager_keeps_no_cache_alive():
    toy, manager = cached_toy()
    state = weakref.ref(state_of(toy))
    cache_dit.disable_cache(toy)
    gc.collect()
    assert state() is None
    with pytest.raises(SessionError, match="_context_manager"):
        manager.get_cached_steps()


def test_a_manager_of_its_own_subclass_can_be_bound():
    toy, _ = cached_toy()
    manager = Always("mine", persistent_context=True)
    with pytest.raises(SessionError):
        manager.get_context()
    manager.bind(state_of(toy))
    assert manager.get_context().name == "blocks"


def test_what_a_manager_does_not_do_is_said_with_what_to_use_instead():
    manager = CachedContextManager()
    assert not hasattr(manager, "can_cache")
    with pytest.raises(AttributeError, match="similarity"):
        manager.can_cache(normal(1, 2))


# -- made by hand


def test_a_manager_is_made_for_a_kind_of_cache():
    assert type(ContextManager(CacheType.DBCache)) is CachedContextManager
    pruned = ContextManager(CacheType.DBPrune, "mine", persistent_context=True)
    assert type(pruned) is PrunedContextManager
    assert (pruned.name, pruned.persistent_context) == ("mine", True)
    with pytest.raises(ConfigError, match="DBPrune"):
        ContextManager(CacheType.NONE)


def test_a_context_of_ones_own_has_the_calibrators_that_it_asks_for():
    context = CachedContext(
        cache_config=DBCacheConfig(enable_separate_cfg=True),
        calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=0, enable_encoder_calibrator=False),
    )
    given = TaylorSeerCalibrator()
    assert context.encoder_calibrator is None
    for calibrator in (context.calibrator, context.cfg_calibrator):
        calibrator.mark_step_begin()
        calibrator.update(torch.ones(1))
        assert torch.equal(calibrator.approximate(), torch.ones(1))
    assert context.calibrator is not context.cfg_calibrator
    assert CachedContext(calibrator_config=TaylorSeerCalibratorConfig(), calibrator=given).calibrator is given


def test_a_pruned_context_needs_a_pruning_configuration():
    assert isinstance(PrunedContext().cache_config, DBPruneConfig)
    with pytest.raises(ConfigError, match="DBPruneConfig"):
        PrunedContext(cache_config=DBCacheConfig())


def test_looking_opens_no_request():
    toy, manager = cached_toy()
    manager.get_context()
    assert len(state_of(toy).sessions) == 0
