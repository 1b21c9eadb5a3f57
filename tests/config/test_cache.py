"""Cache options: names, defaults, sparse updates, and what is refused with which words."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from cache_dit.config import BasicCacheConfig, CacheType, DBCacheConfig, block_range, cache_type
from cache_dit.errors import CacheDitError, ConfigError


class OneElement:
    """Stands for a tensor of one element, or of more, as torch would answer `.item()`."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def item(self) -> float:
        if len(self.values) != 1:
            raise RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")
        return self.values[0]


def test_defaults_are_those_that_the_documentation_promises() -> None:
    assert DBCacheConfig().as_dict() == {
        "cache_type": CacheType.DBCache,
        "Fn_compute_blocks": 8,
        "Bn_compute_blocks": 0,
        "residual_diff_threshold": 0.08,
        "max_accumulated_residual_diff_threshold": None,
        "max_warmup_steps": 8,
        "warmup_interval": 1,
        "max_cached_steps": -1,
        "max_continuous_cached_steps": -1,
        "enable_separate_cfg": None,
        "cfg_compute_first": False,
        "cfg_diff_compute_separate": True,
        "num_inference_steps": None,
        "steps_computation_mask": None,
        "steps_computation_policy": "dynamic",
    }
    assert DBCacheConfig.field_names() == BasicCacheConfig.field_names()


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (None, CacheType.NONE),
        (CacheType.DBPrune, CacheType.DBPrune),
        ("DBCache", CacheType.DBCache),
        ("db_cache", CacheType.DBCache),
        ("Dual_Block_Cache", CacheType.DBCache),
        ("DB", CacheType.DBCache),
        ("DBPrune", CacheType.DBPrune),
        ("dynamic_block_prune", CacheType.DBPrune),
        ("db_prune", CacheType.DBPrune),
        ("dbp", CacheType.DBPrune),
        ("none", CacheType.NONE),
        ("NO_CACHE", CacheType.NONE),
        ("nocache", CacheType.NONE),
        ("NC", CacheType.NONE),
    ],
)
def test_cache_type_understands_its_aliases_in_any_case(hint: Any, expected: CacheType) -> None:
    assert cache_type(hint) is expected
    assert CacheType.type(hint) is expected
    assert str(expected) == expected.value


def test_an_unknown_cache_type_means_none_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert cache_type("TeaCache") is CacheType.NONE
    assert "'TeaCache' is unknown" in caplog.text


def test_a_configuration_takes_a_cache_type_by_name_but_no_unknown_one() -> None:
    assert DBCacheConfig(cache_type="db_cache").cache_type is CacheType.DBCache  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=r"cache_type='TeaCache' is not valid: expected one of DBCache, DBPrune, NONE"
    ):
        DBCacheConfig(cache_type="TeaCache")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 10, 2), [0, 2, 4, 6, 8, 9]),
        ((3, 9, 3), [0, 3, 6, 8]),
        ((5, 4, 2), []),
        ((0, 0, 2), []),
        ((0, 10, 1), []),
        ((0, 10), []),
    ],
)
def test_block_range_holds_both_ends_and_is_empty_for_a_step_of_one(
    arguments: tuple[int, ...], expected: list[int]
) -> None:
    assert block_range(*arguments) == expected


def test_update_sets_what_is_given_and_returns_itself() -> None:
    config = DBCacheConfig()
    assert config.update(max_warmup_steps=4, residual_diff_threshold=None) is config
    assert (config.max_warmup_steps, config.residual_diff_threshold) == (4, 0.08)


def test_reset_leaves_only_what_is_given() -> None:
    config = DBCacheConfig()
    assert config.reset(max_warmup_steps=4) is config
    assert config.given() == {"max_warmup_steps": 4}
    assert set(config.as_dict()) == set(DBCacheConfig.field_names())


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("max_warmup_step", "did you mean 'max_warmup_steps'?"),
        ("fn_compute_blocks", "did you mean 'Fn_compute_blocks'?"),
        ("zzz", "known are Bn_compute_blocks, "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DBCacheConfig().update(**{key: 1})
    assert f"DBCacheConfig: unknown key {key!r}; {hint}" in str(raised.value)


def test_a_refused_update_changes_nothing() -> None:
    config = DBCacheConfig()
    for change in ({"max_warmup_steps": 4, "Fn_compute_blocks": -1}, {"max_warmup_steps": 4, "unknown": 1}):
        with pytest.raises(ConfigError):
            config.update(**change)
        with pytest.raises(ConfigError):
            config.reset(**change)
    assert config == DBCacheConfig()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("Fn_compute_blocks", -1, "an integer >= 0"),
        ("Fn_compute_blocks", 1.5, "an integer >= 0"),
        ("Fn_compute_blocks", True, "an integer >= 0"),
        ("Bn_compute_blocks", -1, "an integer >= 0"),
        ("residual_diff_threshold", "0.1", "a number"),
        ("residual_diff_threshold", math.nan, "a number"),
        ("residual_diff_threshold", OneElement(math.nan), "a number"),
        ("residual_diff_threshold", OneElement(0.1, 0.2), "one number"),
        ("max_accumulated_residual_diff_threshold", math.nan, "a number"),
        ("max_warmup_steps", -1, "an integer >= 0"),
        ("warmup_interval", 0, "an integer >= 1"),
        ("max_cached_steps", 2.0, "an integer"),
        ("max_continuous_cached_steps", "3", "an integer"),
        ("enable_separate_cfg", "yes", "True or False"),
        ("cfg_compute_first", 1, "True or False"),
        ("cfg_diff_compute_separate", 0, "True or False"),
        ("num_inference_steps", 0, "an integer >= 1"),
        ("steps_computation_mask", [], "a list of at least one 0 (may be cached) or 1 (compute)"),
        ("steps_computation_mask", [1, 2], "a list of at least one 0 (may be cached) or 1 (compute)"),
        ("steps_computation_mask", "1100", "a list of at least one 0 (may be cached) or 1 (compute)"),
        ("steps_computation_policy", "sometimes", "'dynamic' or 'static'"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_what_was_seen_and_expected(
    field: str, value: object, expected: str
) -> None:
    for refuse in (lambda: DBCacheConfig(**{field: value}), lambda: DBCacheConfig().reset(**{field: value})):
        with pytest.raises(ConfigError) as raised:
            refuse()
        assert str(raised.value) == f"{field}={value!r} is not valid: expected {expected}"
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, CacheDitError)


def test_validate_checks_attributes_set_by_hand() -> None:
    config = DBCacheConfig()
    config.warmup_interval = 0
    with pytest.raises(ConfigError, match="warmup_interval=0"):
        config.validate()


def test_a_mask_may_be_a_tuple_or_flags() -> None:
    assert DBCacheConfig(steps_computation_mask=(1, 0)).steps_computation_mask == [1, 0]  # type: ignore[arg-type]
    assert (
        DBCacheConfig(steps_computation_mask=[True, False]).strify()
        == "DBCache_F8B0_W8I1M0MC0_R0.08_SCM10_dynamic_CFG0"
    )


def test_computing_the_unconditional_branch_first_needs_a_shared_diff() -> None:
    with pytest.raises(ConfigError, match="pass cfg_diff_compute_separate=False too"):
        DBCacheConfig(cfg_compute_first=True)
    assert DBCacheConfig(cfg_compute_first=True, cfg_diff_compute_separate=False).cfg_compute_first
    assert DBCacheConfig().reset(cfg_compute_first=True).given() == {"cfg_compute_first": True}


def test_no_first_block_is_allowed_with_a_static_mask_only() -> None:
    mask = [1, 0, 1]
    for others in ({}, {"steps_computation_policy": "static"}, {"steps_computation_mask": mask}):
        with pytest.raises(ConfigError, match="Fn_compute_blocks=0 leaves nothing to measure"):
            DBCacheConfig(Fn_compute_blocks=0, **others)
    static = DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static")
    assert static.is_static
    assert DBCacheConfig().reset(Fn_compute_blocks=0).given() == {"Fn_compute_blocks": 0}


def test_strify_is_the_tag_that_file_names_carry() -> None:
    config = DBCacheConfig(
        Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=OneElement(0.5), num_inference_steps=6
    )
    assert config.strify() == "DBCache_F1B0_W2I1M0MC0_R0.5_N6_CFG0"
    config.update(
        max_cached_steps=9,
        max_continuous_cached_steps=3,
        steps_computation_mask=[1, 0, 1],
        steps_computation_policy="static",
        enable_separate_cfg=True,
    )
    assert config.strify() == "DBCache_F1B0_W2I1M9MC3_R0.5_SCM101_static_N6_CFG1"
    assert DBCacheConfig(cache_type=CacheType.NONE).strify() == "NONE"
    assert DBCacheConfig().reset(max_warmup_steps=4).strify() == "-_F-B-_W4I-M-MC-_R-_CFG0"


def test_options_decisions_and_masks_need_no_torch() -> None:
    modules = ["config", "errors", "caching.masks", "caching.policy", "caching.predictors"]
    code = (
        "import sys, types, pathlib\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for name in ('cache_dit', 'cache_dit.caching'):\n"  # the packages' own __init__ may import torch
        "    package = sys.modules[name] = types.ModuleType(name)\n"
        "    package.__path__ = [str(root.joinpath(*name.split('.')[1:]))]\n"
        f"for name in {modules!r}:\n"
        "    __import__('cache_dit.' + name)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    import cache_dit

    root = cache_dit.__path__[0]
    assert subprocess.run([sys.executable, "-c", code, root], check=False).returncode == 0
