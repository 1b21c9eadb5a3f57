"""The options of DBPrune: defaults, what is refused, and the tag."""

from __future__ import annotations

import pytest

from cache_dit.config import BasicCacheConfig, CacheType, DBCacheConfig, DBPruneConfig, block_range
from cache_dit.errors import ConfigError


def test_defaults_are_those_that_the_documentation_promises() -> None:
    config = DBPruneConfig()
    shared = {name: getattr(config, name) for name in BasicCacheConfig.field_names()}
    assert shared == {**DBCacheConfig().as_dict(), "cache_type": CacheType.DBPrune}
    assert {name: value for name, value in config.as_dict().items() if name not in shared} == {
        "enable_dynamic_prune_threshold": False,
        "max_dynamic_prune_threshold": None,
        "dynamic_prune_threshold_relax_ratio": 1.25,
        "non_prune_block_ids": [],
        "force_reduce_calibrator_vram": False,
        "prune_decision": "block",
    }


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("enable_dynamic_prune_threshold", 1, "True or False"),
        ("max_dynamic_prune_threshold", 0, "a number > 0"),
        ("dynamic_prune_threshold_relax_ratio", -1.0, "a number > 0"),
        ("dynamic_prune_threshold_relax_ratio", "2", "a number"),
        ("non_prune_block_ids", [-1], "a list of block ids, integers >= 0"),
        ("non_prune_block_ids", [True], "a list of block ids, integers >= 0"),
        ("non_prune_block_ids", 3, "a list of block ids, integers >= 0"),
        ("non_prune_block_ids", "12", "a list of block ids, integers >= 0"),
        ("force_reduce_calibrator_vram", "no", "True or False"),
        ("prune_decision", "next", "'block' or 'previous'"),
        ("max_warmup_steps", -1, "an integer >= 0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_what_was_seen_and_expected(
    field: str, value: object, expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        DBPruneConfig(**{field: value})  # type: ignore[arg-type]
    assert str(raised.value) == f"{field}={value!r} is not valid: expected {expected}"


def test_the_cache_type_is_its_own_or_none() -> None:
    assert DBPruneConfig(cache_type="dbp").cache_type is CacheType.DBPrune  # type: ignore[arg-type]
    assert DBPruneConfig(cache_type=CacheType.NONE).strify() == "NONE"
    with pytest.raises(ConfigError, match="cache_type=DBCache is not that of a DBPruneConfig: pass a DBCacheConfig"):
        DBPruneConfig(cache_type=CacheType.DBCache)


def test_a_policy_for_whole_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="policy='magcache' decides for whole steps"):
        DBPruneConfig(policy="magcache")


def test_block_ids_may_be_any_sequence_and_are_not_the_callers_list() -> None:
    ids = block_range(0, 10, 2)
    config = DBPruneConfig(non_prune_block_ids=ids)
    ids.append(99)
    assert config.non_prune_block_ids == [0, 2, 4, 6, 8, 9]
    assert DBPruneConfig(non_prune_block_ids=range(3)).non_prune_block_ids == [0, 1, 2]  # type: ignore[arg-type]
    assert DBPruneConfig(non_prune_block_ids=(2, 4)).non_prune_block_ids == [2, 4]  # type: ignore[arg-type]


def test_strify_leaves_out_mask_steps_and_guidance() -> None:
    config = DBPruneConfig(residual_diff_threshold=0.05, num_inference_steps=2, steps_computation_mask=[1, 0])
    assert config.strify() == "DBPrune_F8B0_W8I1M0MC0_R0.05"
    assert DBPruneConfig().reset(max_warmup_steps=4).strify() == "-_F-B-_W4I-M-MC-_R-"
