"""Cache options: names, defaults, sparse updates, and what is refused with which words."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from cache_dit.config import (
    BasicCacheConfig,
    CacheType,
    DBCacheConfig,
    DBPruneConfig,
    ExtraCacheConfig,
    TaylorSeerCalibratorConfig,
    block_range,
    cache_type,
    steps_mask,
)
from cache_dit.config.base import SparseConfig
from cache_dit.config.modifier import overlay
from cache_dit.errors import CacheDitError, ConfigError

MASK = "a list of at least one 0 (may be cached) or 1 (compute), or one of slow, medium, fast, ultra"
CALIBRATION = "a PolicyCalibration, or the path of its JSON file"
DTYPES = "'float32' or 'bfloat16' or 'float16' or 'float8_e4m3fn' or 'float8_e5m2'"


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
        "policy": "dbcache",
        "policy_calibration": None,
        "decision": "mean",
        "cache_device": None,
        "cache_dtype": None,
        "force_refresh_step_hint": None,
        "force_refresh_step_policy": "once",
        "compute_last_step": False,
        "conditioning_diff_threshold": 0.25,
        "extra_cache_config": None,
        "max_sessions": 64,
        "plan": None,
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
        ("steps_computation_mask", [], MASK),
        ("steps_computation_mask", [1, 2], MASK),
        ("steps_computation_mask", "1100", MASK),
        ("steps_computation_policy", "sometimes", "'dynamic' or 'static'"),
        ("policy", "", "a policy's name, e.g. 'dbcache'"),
        ("policy", 1, "a policy's name, e.g. 'dbcache'"),
        ("policy_calibration", "", CALIBRATION),
        ("policy_calibration", 0.5, CALIBRATION),
        ("policy_calibration", {"ratios": []}, CALIBRATION),
        ("decision", "most", "'mean' or 'any' or 'all' or 'sample'"),
        ("cache_device", "cuda:x", "a device, e.g. 'cpu' or 'cuda:1'"),
        ("cache_device", 1, "a device, e.g. 'cpu' or 'cuda:1'"),
        ("cache_dtype", "int8", DTYPES),
        ("cache_dtype", 16, DTYPES),
        ("force_refresh_step_hint", 0, "an integer >= 1"),
        ("force_refresh_step_policy", "always", "'once' or 'repeat'"),
        ("conditioning_diff_threshold", -0.1, "a number >= 0"),
        ("conditioning_diff_threshold", "0.1", "a number"),
        ("extra_cache_config", {"downsample_factor": 2}, "an ExtraCacheConfig"),
        ("max_sessions", 0, "an integer >= 1"),
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


def test_no_first_block_is_allowed_where_nothing_is_measured_on_blocks() -> None:
    mask = [1, 0, 1]
    refused: list[dict[str, Any]] = [
        {},
        {"steps_computation_policy": "static"},
        {"steps_computation_mask": mask},
        {"policy": "teacache"},
    ]
    for others in refused:
        with pytest.raises(ConfigError, match="Fn_compute_blocks=0 leaves nothing to measure"):
            DBCacheConfig(Fn_compute_blocks=0, **others)
    static = DBCacheConfig(Fn_compute_blocks=0, steps_computation_mask=mask, steps_computation_policy="static")
    assert static.is_static
    for policy in ("magcache", "easycache"):
        assert DBCacheConfig(Fn_compute_blocks=0, policy=policy).Fn_compute_blocks == 0
    assert DBCacheConfig().reset(Fn_compute_blocks=0).given() == {"Fn_compute_blocks": 0}
    assert DBCacheConfig().reset(Fn_compute_blocks=0, steps_computation_policy="dynamic").policy is None


def test_the_cache_type_of_another_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache_type=DBPrune is not that of a DBCacheConfig: pass a DBPruneConfig"):
        DBCacheConfig(cache_type="DBPrune")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pass a DBPruneConfig"):
        DBCacheConfig().reset(cache_type=CacheType.DBPrune)


@pytest.mark.parametrize("steps", [1, 3, 8, 28, 50])
@pytest.mark.parametrize("preset", ["slow", "medium", "fast", "ultra"])
def test_a_presets_name_becomes_its_mask_when_the_number_of_steps_is_given(preset: str, steps: int) -> None:
    expected = steps_mask(total_steps=steps, mask_policy=preset)
    options: dict[str, Any] = {"num_inference_steps": steps, "steps_computation_mask": preset}
    assert DBCacheConfig(**options).steps_computation_mask == expected
    sparse = DBCacheConfig().reset(**options)
    assert sparse.given() == {"num_inference_steps": steps, "steps_computation_mask": expected}
    assert DBCacheConfig(num_inference_steps=steps).update(steps_computation_mask=preset).steps_computation_mask == (
        expected
    )


def test_a_presets_name_as_the_policy_makes_a_dynamic_mask() -> None:
    config = DBCacheConfig(num_inference_steps=8, steps_computation_policy="fast")
    assert config.steps_computation_mask == steps_mask(total_steps=8, mask_policy="fast")
    assert config.steps_computation_policy == "dynamic"
    config = DBCacheConfig(steps_computation_mask=[1, 0], steps_computation_policy="fast")
    assert (config.steps_computation_mask, config.steps_computation_policy) == ([1, 0], "dynamic")
    config = DBCacheConfig(steps_computation_mask="none", steps_computation_policy="none")  # type: ignore[arg-type]
    assert (config.steps_computation_mask, config.steps_computation_policy) == (None, "dynamic")


@pytest.mark.parametrize("field", ["steps_computation_mask", "steps_computation_policy"])
def test_a_presets_name_without_the_number_of_steps_is_refused(field: str) -> None:
    for refuse in (lambda: DBCacheConfig(**{field: "fast"}), lambda: DBCacheConfig().reset(**{field: "fast"})):
        with pytest.raises(ConfigError, match=f"{field}='fast' names a preset.*pass num_inference_steps too"):
            refuse()


def test_a_device_and_a_dtype_are_kept_by_name() -> None:
    torch = pytest.importorskip("torch")
    config = DBCacheConfig(cache_device=torch.device("cuda:1"), cache_dtype=torch.float8_e4m3fn)
    assert (config.cache_device, config.cache_dtype) == ("cuda:1", "float8_e4m3fn")
    config.update(cache_device=torch.device("cpu"), cache_dtype="torch.bfloat16")
    assert (config.cache_device, config.cache_dtype) == ("cpu", "bfloat16")
    with pytest.raises(ConfigError, match="cache_dtype='float64'"):
        DBCacheConfig(cache_dtype=torch.float64)


def test_no_threshold_for_conditioning_is_a_choice_that_lasts() -> None:
    assert DBCacheConfig().watches_conditioning
    unwatched = DBCacheConfig(conditioning_diff_threshold=None)
    assert not unwatched.watches_conditioning
    assert not DBCacheConfig(**unwatched.given()).watches_conditioning
    assert DBCacheConfig().update(conditioning_diff_threshold=None).watches_conditioning
    assert not DBCacheConfig().update(conditioning_diff_threshold=math.inf).watches_conditioning
    assert DBCacheConfig().reset().conditioning_diff_threshold is None


def test_copies_share_the_calibration_and_nothing_else() -> None:
    calibration = OneElement(1.0)
    config = DBCacheConfig(policy_calibration=calibration, extra_cache_config=ExtraCacheConfig(downsample_factor=2))
    for copied in (config.as_dict(), config.given()):
        assert copied["policy_calibration"] is calibration
        assert copied["extra_cache_config"] == ExtraCacheConfig(downsample_factor=2)
        assert copied["extra_cache_config"] is not config.extra_cache_config


def test_extra_options_update_field_by_field_and_never_the_given_object() -> None:
    first = ExtraCacheConfig(downsample_factor=2, important_condition_threshold=0.1)
    config = DBCacheConfig(extra_cache_config=first)
    config.update(extra_cache_config=ExtraCacheConfig().reset(downsample_factor=4))
    assert config.extra_cache_config == ExtraCacheConfig(downsample_factor=4, important_condition_threshold=0.1)
    assert first.downsample_factor == 2


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("l1_hidden_states_diff_threshold", "x", "a number"),
        ("important_condition_threshold", -1, "a number >= 0"),
        ("downsample_factor", 0, "an integer >= 1"),
    ],
)
def test_an_extra_option_that_cannot_work_is_refused(field: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ExtraCacheConfig(**{field: value})  # type: ignore[arg-type]
    assert str(raised.value) == f"{field}={value!r} is not valid: expected {expected}"


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
    config.update(policy="magcache", force_refresh_step_hint=4, force_refresh_step_policy="repeat")
    assert config.strify() == "DBCache_magcache_F1B0_W2I1M9MC3_R0.5_SCM101_static_N6_CFG1_FR4_repeat"
    assert DBCacheConfig(cache_type=CacheType.NONE).strify() == "NONE"
    assert DBCacheConfig().reset(max_warmup_steps=4).strify() == "-_F-B-_W4I-M-MC-_R-_CFG0"


def test_options_decisions_and_masks_need_neither_torch_nor_yaml() -> None:
    modules = ["config", "errors", "config.masks", "engine.policies.registry", "engine.predictors.registry"]
    code = (
        f"import sys, {', '.join(f'cache_dit.{name}' for name in modules)}\n"
        "sys.exit('torch' in sys.modules or 'yaml' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (DBCacheConfig(), "DBCacheConfig()"),
        (DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=8), "DBCacheConfig(Fn_compute_blocks=1)"),
        (DBCacheConfig().reset(max_warmup_steps=8), "DBCacheConfig().reset(max_warmup_steps=8)"),
        (DBPruneConfig(non_prune_block_ids=[3]), "DBPruneConfig(non_prune_block_ids=[3])"),
        (TaylorSeerCalibratorConfig(taylorseer_order=2), "TaylorSeerCalibratorConfig(taylorseer_order=2)"),
    ],
)
def test_a_configuration_is_shown_as_the_call_that_makes_it(config: SparseConfig, shown: str) -> None:
    assert repr(config) == shown
    assert eval(shown) == config


@pytest.mark.parametrize("arguments", [("0", 10, 2), (0, 10.0, 2), (0, 10, None)])
def test_a_block_range_of_no_integers_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="is not valid: expected an integer"):
        block_range(*arguments)


# -- a mask's length


@pytest.mark.parametrize("make", [DBCacheConfig, DBPruneConfig])
@pytest.mark.parametrize("mask", [[1, 0, 0], (1, 0, 0, 1, 1)])
def test_a_mask_and_another_number_of_steps_in_one_configuration_are_refused(make: Any, mask: Any) -> None:
    said = rf"steps_computation_mask has {len(mask)} entries and num_inference_steps=4: pass one entry per step"
    options = {"steps_computation_mask": mask, "num_inference_steps": 4}
    for attempt in (make, make().reset, make().update):
        with pytest.raises(ConfigError, match=said):
            attempt(**options)
    assert make(steps_computation_mask=mask, num_inference_steps=len(mask)).steps_computation_mask == list(mask)
    assert make(**options, force_refresh_step_hint=2).steps_computation_mask == list(mask)  # it begins anew


def test_a_number_of_steps_that_comes_later_leaves_a_mask_of_ones_own_and_makes_a_presets_anew() -> None:
    own = DBCacheConfig(steps_computation_mask=[1, 0, 0], num_inference_steps=3)
    assert overlay(own, {"num_inference_steps": 4}, complete=True).steps_computation_mask == [1, 0, 0]
    assert own.update(num_inference_steps=4).steps_computation_mask == [1, 0, 0]
    preset = DBCacheConfig(steps_computation_mask="fast", num_inference_steps=28)
    for later in (overlay(preset, {"num_inference_steps": 20}, complete=True), preset.update(num_inference_steps=20)):
        assert later.steps_computation_mask == steps_mask(total_steps=20, mask_policy="fast")
