"""One block list's options, laid over those that all share."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.config import (
    BasicCacheConfig,
    CacheType,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    ExtraCacheConfig,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
)
from cache_dit.config.modifier import effective, flat_options, overlay, refresh_options
from cache_dit.errors import ConfigError


def test_without_a_modifier_the_shared_options_are_copied_deeply() -> None:
    base = DBCacheConfig(steps_computation_mask=[1, 0])
    calibrator = TaylorSeerCalibratorConfig(calibrator_kwargs={"a": 1})
    cache, own_calibrator = effective(base, calibrator)
    assert cache == base
    assert own_calibrator == calibrator
    assert own_calibrator is not None
    cache.steps_computation_mask.append(1)  # type: ignore[union-attr]
    own_calibrator.calibrator_kwargs["b"] = 2
    assert base.steps_computation_mask == [1, 0]
    assert calibrator.calibrator_kwargs == {"a": 1}
    assert effective(base)[1] is None


def test_a_sparse_modifier_changes_what_it_names_and_nothing_else() -> None:
    base = DBCacheConfig(max_warmup_steps=4, residual_diff_threshold=0.12)
    modifier = ParamsModifier(DBCacheConfig().reset(residual_diff_threshold=0.24))
    cache, _ = effective(base, None, modifier)
    assert cache == DBCacheConfig(max_warmup_steps=4, residual_diff_threshold=0.24)
    assert base.residual_diff_threshold == 0.12


def test_a_full_modifier_lays_its_defaults_over_too() -> None:
    cache, _ = effective(DBCacheConfig(max_warmup_steps=4), None, ParamsModifier(DBCacheConfig(Bn_compute_blocks=2)))
    assert cache == DBCacheConfig(max_warmup_steps=8, Bn_compute_blocks=2)


def test_fields_that_nobody_gives_get_their_defaults() -> None:
    cache, calibrator = effective(
        DBCacheConfig().reset(max_warmup_steps=4), TaylorSeerCalibratorConfig().reset(taylorseer_order=2)
    )
    assert cache == DBCacheConfig(max_warmup_steps=4)
    assert calibrator == TaylorSeerCalibratorConfig(taylorseer_order=2)


def test_a_calibrator_counts_without_cache_options() -> None:
    modifier = ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2))
    assert effective(DBCacheConfig(), None, modifier)[1] == TaylorSeerCalibratorConfig(taylorseer_order=2)


def test_a_calibrator_of_the_same_class_is_laid_over_and_one_of_another_replaces() -> None:
    base = TaylorSeerCalibratorConfig(taylorseer_order=2, calibrator_cache_type="hidden_states")
    sparse = ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig().reset(taylorseer_order=3))
    expected = TaylorSeerCalibratorConfig(taylorseer_order=3, calibrator_cache_type="hidden_states")
    assert effective(DBCacheConfig(), base, sparse)[1] == expected
    other = ParamsModifier(calibrator_config=CalibratorConfig())
    assert effective(DBCacheConfig(), base, other)[1] == CalibratorConfig()


def test_a_combination_that_cannot_work_is_refused_though_each_part_can() -> None:
    sparse = ParamsModifier(DBCacheConfig().reset(Fn_compute_blocks=0))
    with pytest.raises(ConfigError, match="Fn_compute_blocks=0"):
        effective(DBCacheConfig(), None, sparse)
    static = DBCacheConfig(steps_computation_mask=[1, 0], steps_computation_policy="static")
    assert effective(static, None, sparse)[0].Fn_compute_blocks == 0


def test_flat_options_are_taken_with_a_warning_and_stay_sparse() -> None:
    with pytest.warns(
        DeprecationWarning, match="flat options Fn_compute_blocks, enable_taylorseer are deprecated"
    ) as seen:
        modifier = ParamsModifier(Fn_compute_blocks=2, enable_taylorseer=True)
    assert [warning.filename for warning in seen] == [__file__]
    assert modifier.cache_config is not None
    assert modifier.cache_config.given() == {"Fn_compute_blocks": 2}
    assert modifier.calibrator_config == TaylorSeerCalibratorConfig()


def test_flat_options_change_a_copy_of_the_given_configuration() -> None:
    given = DBCacheConfig().reset(max_warmup_steps=4)
    with pytest.warns(DeprecationWarning):
        modifier = ParamsModifier(given, Fn_compute_blocks=2)
    assert modifier.cache_config is not None
    assert modifier.cache_config.given() == {"max_warmup_steps": 4, "Fn_compute_blocks": 2}
    assert given.given() == {"max_warmup_steps": 4}


def test_flat_taylorseer_options_count_only_when_switched_on() -> None:
    with pytest.warns(DeprecationWarning):
        assert flat_options({"taylorseer_order": 2}, where="enable_cache") == ({}, None)
    with pytest.warns(DeprecationWarning):
        _, calibrator = flat_options(
            {"enable_taylorseer": True, "enable_encoder_taylorseer": False, "taylorseer_order": 2}, where="enable_cache"
        )
    assert calibrator == TaylorSeerCalibratorConfig(enable_encoder_calibrator=False, taylorseer_order=2)
    assert flat_options({"enable_taylorseer": None}, where="enable_cache") == ({}, None)


def test_an_unknown_option_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(
        ConfigError, match="ParamsModifier: unknown key 'Fn_compute_block'; did you mean 'Fn_compute_blocks'"
    ):
        ParamsModifier(Fn_compute_block=2)


def test_configurations_of_a_wrong_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="cache_config is a dict: pass a DBCacheConfig"):
        ParamsModifier({"Fn_compute_blocks": 2})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pass a CalibratorConfig"):
        ParamsModifier(None, DBCacheConfig())  # type: ignore[arg-type]


class Mapped:
    """Stands for a calibration: an object that is not ours to copy."""

    def __deepcopy__(self, memo: object) -> Mapped:
        raise AssertionError("copied")


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_warmup_steps": st.integers(0, 9),
        "residual_diff_threshold": st.floats(0, 1),
        "steps_computation_mask": st.lists(st.sampled_from([0, 1]), min_size=1),
        "decision": st.sampled_from(["mean", "any", "all", "sample"]),
        "extra_cache_config": st.builds(lambda factor: ExtraCacheConfig(downsample_factor=factor), st.integers(1, 8)),
    },
)


@given(OPTIONS, OPTIONS, st.sampled_from([DBCacheConfig, DBPruneConfig]), st.booleans())
def test_what_is_laid_over_wins_and_what_it_leaves_open_stays(
    under: dict[str, Any], over: dict[str, Any], cls: type[BasicCacheConfig], complete: bool
) -> None:
    base = cls().reset(**under)
    before = base.as_dict()
    laid = overlay(base, over, complete=complete)
    assert type(laid) is cls
    assert laid == (cls(**{**under, **over}) if complete else cls().reset(**{**under, **over}))
    assert base.as_dict() == before


def test_a_modifier_without_a_cache_type_keeps_the_class_of_the_shared_options() -> None:
    prune = DBPruneConfig(non_prune_block_ids=[3])
    laid, _ = effective(prune, None, ParamsModifier(DBCacheConfig().reset(max_warmup_steps=4)))
    assert laid == DBPruneConfig(non_prune_block_ids=[3], max_warmup_steps=4)
    laid, _ = effective(DBCacheConfig(), None, ParamsModifier(DBPruneConfig().reset(max_warmup_steps=4)))
    assert laid == DBCacheConfig(max_warmup_steps=4)
    laid, _ = effective(prune, None, ParamsModifier(DBPruneConfig().reset(prune_decision="previous")))
    assert laid == DBPruneConfig(non_prune_block_ids=[3], prune_decision="previous")


def test_a_modifier_with_a_cache_type_sets_the_class() -> None:
    shared = DBCacheConfig(max_warmup_steps=4)
    sparse = DBPruneConfig().reset(cache_type="DBPrune", non_prune_block_ids=[3])
    laid, _ = effective(shared, None, ParamsModifier(sparse))
    assert type(laid) is DBPruneConfig
    assert laid == DBPruneConfig(max_warmup_steps=4, non_prune_block_ids=[3])
    laid, _ = effective(laid, None, ParamsModifier(DBCacheConfig().reset(cache_type="DBCache")))
    assert type(laid) is DBCacheConfig
    assert laid == shared
    laid, _ = effective(DBPruneConfig(), None, ParamsModifier(DBCacheConfig(cache_type=CacheType.NONE)))
    assert (type(laid), laid.cache_type) == (DBPruneConfig, CacheType.NONE)


def test_options_of_dbprune_over_dbcache_are_not_dropped_but_refused() -> None:
    modifier = ParamsModifier(DBPruneConfig().reset(non_prune_block_ids=[3]))
    with pytest.raises(ConfigError, match="non_prune_block_ids is an option of DBPrune, and a DBCacheConfig is what"):
        effective(DBCacheConfig(), None, modifier)


def test_extra_options_stay_a_configuration_and_are_laid_over_field_by_field() -> None:
    base = DBCacheConfig(extra_cache_config=ExtraCacheConfig(downsample_factor=2, important_condition_threshold=0.1))
    modifier = ParamsModifier(DBCacheConfig().reset(extra_cache_config=ExtraCacheConfig().reset(downsample_factor=4)))
    laid, _ = effective(base, None, modifier)
    assert laid.extra_cache_config == ExtraCacheConfig(downsample_factor=4, important_condition_threshold=0.1)
    laid, _ = effective(DBCacheConfig(), None, modifier)
    assert laid.extra_cache_config == ExtraCacheConfig(downsample_factor=4)
    assert base.extra_cache_config is not None
    assert base.extra_cache_config.downsample_factor == 2


def test_a_calibration_goes_through_every_layer_as_the_same_object() -> None:
    calibration = Mapped()
    modifier = ParamsModifier(DBCacheConfig().reset(policy="magcache", policy_calibration=calibration))
    assert effective(DBCacheConfig(), None, modifier)[0].policy_calibration is calibration
    assert overlay(DBCacheConfig(policy_calibration=calibration), {}, complete=True).policy_calibration is calibration


def test_a_refresh_takes_any_option_by_name_without_a_warning() -> None:
    changes, calibrator = refresh_options(
        {
            "num_inference_steps": 8,
            "steps_computation_mask": "fast",
            "downsample_factor": 2,
            "enable_taylorseer": True,
            "taylorseer_order": 2,
            "max_warmup_steps": None,
        }
    )
    assert changes == {
        "num_inference_steps": 8,
        "steps_computation_mask": [1, 1, 1, 0, 1, 0, 0, 1],
        "extra_cache_config": ExtraCacheConfig().reset(downsample_factor=2),
    }
    assert calibrator == TaylorSeerCalibratorConfig().reset(enable_calibrator=True, taylorseer_order=2)
    assert effective(DBCacheConfig(), None, ParamsModifier(None, calibrator))[1] == TaylorSeerCalibratorConfig(
        taylorseer_order=2
    )
    assert refresh_options({}) == ({}, None)


def test_a_refresh_takes_cache_options_as_a_configuration_or_as_a_dict() -> None:
    sparse = DBCacheConfig().reset(max_warmup_steps=4)
    assert refresh_options({"cache_config": sparse, "Fn_compute_blocks": 2}) == (
        {"max_warmup_steps": 4, "Fn_compute_blocks": 2},
        None,
    )
    changes, calibrator = refresh_options(
        {"cache_config": {"max_warmup_steps": 4, "enable_dmd": True}, "calibrator_config": CalibratorConfig()}
    )
    assert changes == {"max_warmup_steps": 4}
    assert calibrator == DMDCalibratorConfig().reset(enable_calibrator=True)
    assert refresh_options({"cache_config": DBCacheConfig()})[0] == DBCacheConfig().given()
    given = DMDCalibratorConfig(dmd_history=4)
    assert refresh_options({"calibrator_config": given}) == ({}, given)


def test_a_refresh_of_options_that_only_dbprune_has_needs_no_cache_type() -> None:
    changes, _ = refresh_options({"prune_decision": "previous"})
    assert overlay(DBPruneConfig(), changes) == DBPruneConfig(prune_decision="previous")
    with pytest.raises(ConfigError, match="prune_decision is an option of DBPrune"):
        overlay(DBCacheConfig(), changes)
    changes, _ = refresh_options({"cache_type": "DBPrune", "prune_decision": "previous"})
    assert overlay(DBCacheConfig(), changes, complete=True) == DBPruneConfig(prune_decision="previous")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_warmup_step": 1}, "refresh_context: unknown key 'max_warmup_step'; did you mean 'max_warmup_steps'"),
        ({"cache_config": {"Fn": 1}}, "cache_config: unknown key 'Fn'"),
        ({"cache_config": 4}, "cache_config is a int: pass a DBCacheConfig"),
        ({"calibrator_config": DBCacheConfig()}, "pass a CalibratorConfig"),
        ({"max_warmup_steps": -1}, "max_warmup_steps=-1 is not valid"),
        ({"steps_computation_mask": "fast"}, "pass num_inference_steps too"),
        ({"enable_taylorseer": 1}, "enable_taylorseer=1 is not valid: expected True or False"),
        ({"enable_taylorseer": True, "enable_foca": True}, "enable_taylorseer and enable_foca exclude each other"),
    ],
)
def test_a_refresh_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refresh_options(options)


def test_an_option_that_is_no_keyword_is_named_with_its_place() -> None:
    with pytest.raises(
        ConfigError, match=r"enable_cache: cache_type .*: pass cache_config=DBCacheConfig\(cache_type=…\)"
    ):
        flat_options({"cache_type": "DBPrune"}, where="enable_cache")
