"""One block list's options, laid over those that all share."""

from __future__ import annotations

import pytest

from cache_dit.config import CalibratorConfig, DBCacheConfig, ParamsModifier, TaylorSeerCalibratorConfig
from cache_dit.config.modifier import effective, flat_options
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
    with pytest.warns(DeprecationWarning, match="flat options Fn_compute_blocks, enable_taylorseer are deprecated"):
        modifier = ParamsModifier(Fn_compute_blocks=2, enable_taylorseer=True)
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
    with pytest.raises(ConfigError, match="expected a DBCacheConfig or None"):
        ParamsModifier({"Fn_compute_blocks": 2})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a CalibratorConfig"):
        ParamsModifier(None, DBCacheConfig())  # type: ignore[arg-type]
