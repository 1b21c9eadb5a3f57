"""Configuration files: what they may say, what comes out, and the line that an error names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cache_dit.config import (
    CacheType,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    ExtraCacheConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    ParallelismBackend,
    ParallelismConfig,
    TaylorSeerCalibratorConfig,
    load_attn_backend_config,
    load_cache_config,
    load_configs,
    load_options,
    load_parallelism_config,
    load_quantize_config,
    steps_mask,
)
from cache_dit.errors import ConfigError

Written = Callable[[str], str]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a text to a YAML file and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


WHOLE = """\
cache_config:
  Fn_compute_blocks: 1
  residual_diff_threshold: 0.24
  num_inference_steps: 28
  steps_computation_mask: fast
  enable_taylorseer: true
  taylorseer_order: 2
parallelism_config:
  backend: native_diffuser
  ulysses_size: 2
  parallel_kwargs:
    attention_backend: native
    extra_parallel_modules: [text_encoder, vae]
params_modifiers:
  - residual_diff_threshold: 0.5
  -
  - max_warmup_steps: 4
    enable_dmd: true
"""


def test_a_whole_file_gives_what_enable_cache_takes(written: Written) -> None:
    path = written(WHOLE)
    configs = load_configs(path)
    modifiers = configs.pop("params_modifiers")
    assert configs == {
        "cache_config": DBCacheConfig(
            Fn_compute_blocks=1,
            residual_diff_threshold=0.24,
            num_inference_steps=28,
            steps_computation_mask=steps_mask(total_steps=28, mask_policy="fast"),
        ),
        "calibrator_config": TaylorSeerCalibratorConfig(taylorseer_order=2),
        "parallelism_config": ParallelismConfig(
            ParallelismBackend.NATIVE_DIFFUSER,
            ulysses_size=2,
            parallel_kwargs={"attention_backend": "native", "extra_parallel_modules": ["text_encoder", "vae"]},
        ),
    }
    assert [modifier.cache_config.given() for modifier in modifiers] == [
        {"residual_diff_threshold": 0.5},
        {},
        {"max_warmup_steps": 4},
    ]
    assert [modifier.calibrator_config for modifier in modifiers] == [
        None,
        None,
        DMDCalibratorConfig().reset(enable_calibrator=True),
    ]
    assert load_cache_config(path) == (configs["cache_config"], configs["calibrator_config"])
    assert load_parallelism_config(path) == configs["parallelism_config"]
    assert load_configs(yaml.safe_load(WHOLE))["cache_config"] == configs["cache_config"]


def test_the_tuple_has_no_place_for_modifiers(written: Written) -> None:
    text = WHOLE.partition("params_modifiers")[0]
    assert load_configs(written(text), return_dict=False) == tuple(load_configs(written(text)).values())
    with pytest.raises(ConfigError, match=r"config\.yaml, line 14: params_modifiers have no place in a tuple"):
        load_configs(written(WHOLE), return_dict=False)


def test_a_missing_section_is_none_and_an_empty_one_has_its_defaults(written: Written) -> None:
    assert load_configs(written("parallelism_config: {tp_size: 2}")) == {
        "cache_config": None,
        "calibrator_config": None,
        "parallelism_config": ParallelismConfig(tp_size=2),
    }
    assert load_configs(written("cache_config:\n"), return_dict=False) == (DBCacheConfig(), None, None)
    assert load_configs(written("params_modifiers: []"), return_dict=True) == {
        "cache_config": None,
        "calibrator_config": None,
        "parallelism_config": None,
        "params_modifiers": [],
    }


def test_the_old_flat_form_is_taken(written: Written) -> None:
    expected = (DBCacheConfig(max_warmup_steps=4), TaylorSeerCalibratorConfig())
    assert load_cache_config(written("max_warmup_steps: 4\nenable_taylorseer: true\n")) == expected
    assert load_cache_config({"max_warmup_steps": 4, "enable_taylorseer": True}) == expected
    assert load_parallelism_config({"max_warmup_steps": 4}) is None
    assert load_cache_config({}) == (DBCacheConfig(), None)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "Fn_compute_blocks": st.integers(1, 40),
            "max_warmup_steps": st.integers(0, 40),
            "residual_diff_threshold": st.floats(allow_nan=False, allow_infinity=False),
            "enable_separate_cfg": st.none() | st.booleans(),
            "steps_computation_mask": st.lists(st.sampled_from([0, 1]), min_size=1, max_size=50),
            "steps_computation_policy": st.sampled_from(["dynamic", "static"]),
            "policy": st.sampled_from(["dbcache", "teacache", "magcache", "easycache"]),
            "cache_dtype": st.none() | st.sampled_from(["bfloat16", "float8_e5m2"]),
            "conditioning_diff_threshold": st.none() | st.floats(0, 10),
        },
    )
)
def test_a_file_says_what_the_constructor_says(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(yaml.safe_dump({"cache_config": options}), encoding="utf-8")
    assert load_cache_config(path)[0] == DBCacheConfig(**options)
    sparse = load_cache_config({"cache_config": options}, reset=True)[0]
    assert sparse is not None
    watched = (
        {}
        if options.get("conditioning_diff_threshold", 0) is not None
        else {"conditioning_diff_threshold": float("inf")}
    )
    assert sparse == DBCacheConfig().reset(**{**options, **watched})


def test_a_cache_type_chooses_the_class(written: Written) -> None:
    cache, _ = load_cache_config(written("cache_type: DBPrune\nnon_prune_block_ids: [3]\n"))
    assert cache == DBPruneConfig(non_prune_block_ids=[3])
    cache, _ = load_cache_config({"cache_config": {"cache_type": "db_cache"}})
    assert (type(cache), cache) == (DBCacheConfig, DBCacheConfig())
    cache, _ = load_cache_config({"cache_type": "none"})
    assert cache is not None
    assert cache.cache_type is CacheType.NONE
    assert load_cache_config({"non_prune_block_ids": [3]}, reset=True)[0] == DBPruneConfig().reset(
        non_prune_block_ids=[3]
    )


def test_extra_options_may_be_nested_or_flat(written: Written) -> None:
    expected = DBCacheConfig(extra_cache_config=ExtraCacheConfig(downsample_factor=4))
    assert load_cache_config(written("extra_cache_config:\n  downsample_factor: 4\n"))[0] == expected
    assert load_cache_config({"downsample_factor": 4})[0] == expected
    both = {"extra_cache_config": {"downsample_factor": 4}, "important_condition_threshold": 0.1}
    extra = ExtraCacheConfig(downsample_factor=4, important_condition_threshold=0.1)
    assert load_cache_config(both)[0] == DBCacheConfig(extra_cache_config=extra)
    with pytest.raises(ConfigError, match="downsample_factor is given in extra_cache_config and beside it"):
        load_cache_config({"extra_cache_config": {"downsample_factor": 4}, "downsample_factor": 2})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"enable_taylorseer": True}, TaylorSeerCalibratorConfig()),
        (
            {"enable_taylorseer": True, "enable_encoder_taylorseer": False, "taylorseer_cache_type": "hidden_states"},
            TaylorSeerCalibratorConfig(enable_encoder_calibrator=False, calibrator_cache_type="hidden_states"),
        ),
        ({"enable_foca": True, "enable_encoder_foca": False}, FoCaCalibratorConfig(enable_encoder_calibrator=False)),
        (
            {"enable_dmd": True, "dmd_history": 8, "dmd_rank": 2, "dmd_ridge": 0.1, "dmd_svd_precision": "low"},
            DMDCalibratorConfig(dmd_history=8, dmd_rank=2, dmd_ridge=0.1, dmd_svd_precision="low"),
        ),
        (
            {"enable_hermite": True, "hermite_order": 1, "hermite_scale": 0.7, "coordinate": "sigma"},
            HermiteCalibratorConfig(hermite_order=1, hermite_scale=0.7, coordinate="sigma"),
        ),
        (
            {"enable_newton": True, "newton_order": 3, "calibrator_cache_type": "hidden_states"},
            NewtonCalibratorConfig(newton_order=3, calibrator_cache_type="hidden_states"),
        ),
        ({"enable_taylorseer": False, "taylorseer_order": 2, "enable_foca": True}, FoCaCalibratorConfig()),
        ({"enable_taylorseer": False, "taylorseer_order": 2}, None),
        ({"enable_taylorseer": None}, None),
    ],
)
def test_each_calibrator_is_enabled_by_its_name(options: dict[str, Any], expected: CalibratorConfig | None) -> None:
    assert load_cache_config({"cache_config": options})[1] == expected


def test_calibrator_options_without_effect_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert load_cache_config({"taylorseer_order": 2, "enable_foca": True})[1] == FoCaCalibratorConfig()
    assert "taylorseer_order without effect" in caplog.text
    caplog.clear()
    load_cache_config({"taylorseer_order": 2, "enable_taylorseer": False})
    assert caplog.text == ""


def test_a_number_with_an_exponent_needs_no_point(written: Written) -> None:
    path = written("cache_config:\n  enable_dmd: true\n  dmd_ridge: 1e-6\n")
    assert load_cache_config(path)[1] == DMDCalibratorConfig(dmd_ridge=1e-6)


MODELS = """\
models:
  flux:
    cache_config: &shared
      max_warmup_steps: 4
      Fn_compute_blocks: 1
    params_modifiers:
      - residual_diff_threshold: 0.5
  qwen:
    cache_config:
      <<: *shared
      Fn_compute_blocks: 2
"""


def test_one_of_several_models_is_chosen_by_its_name(written: Written) -> None:
    path = written(MODELS)
    assert load_cache_config(path, model="qwen")[0] == DBCacheConfig(max_warmup_steps=4, Fn_compute_blocks=2)
    assert set(load_configs(path, model="qwen")) == {"cache_config", "calibrator_config", "parallelism_config"}
    assert len(load_configs(path, model="flux")["params_modifiers"]) == 1
    assert load_cache_config({"models": {"flux": {"max_warmup_steps": 4}}})[0] == DBCacheConfig(max_warmup_steps=4)
    with pytest.raises(ConfigError, match=r"line 1: there are 2 models \(flux, qwen\): pass model="):
        load_configs(path)
    with pytest.raises(ConfigError, match="models: unknown key 'qwem'; did you mean 'qwen'"):
        load_parallelism_config(path, model="qwem")
    with pytest.raises(ConfigError, match="model='flux' was asked for, but there is no mapping 'models'"):
        load_configs({"cache_config": {}}, model="flux")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "cache_config:\n  max_warmup_step: 4\n",
            2,
            "cache_config: unknown key 'max_warmup_step'; did you mean 'max_w",
        ),
        ("cache_confg:\n  max_warmup_steps: 4\n", 1, "unknown key 'cache_confg'; did you mean 'cache_config'"),
        ("parallelism_config:\nmax_warmup_steps: 4\n", 2, "unknown key 'max_warmup_steps'"),
        ("cache_config:\n  Fn_compute_blocks: 1\n  max_warmup_steps: -1\n", 3, "max_warmup_steps=-1 is not valid"),
        ("max_warmup_steps: [4]\n", 1, r"max_warmup_steps=\[4\] is not valid"),
        ("cache_config:\n  cfg_compute_first: true\n", 1, "exclude each other: pass cfg_diff_compute_separate=False"),
        ("Fn_compute_blocks: 1\nFn_compute_blocks: 2\n", 2, "'Fn_compute_blocks' is given twice"),
        ("cache_config:\n  cache_type: TeaCache\n", 2, "cache_type='TeaCache' is not valid"),
        ("cache_config:\n  max_warmup_steps: 1\n  non_prune_block_ids: [1]\n", 3, "pass cache_type: DBPrune too"),
        ("cache_config:\n  steps_computation_mask: fast\n", 2, "pass num_inference_steps too"),
        ("num_inference_steps: 0\nsteps_computation_mask: fast\n", 1, "num_inference_steps=0 is not valid"),
        ("cache_config:\n  extra_cache_config:\n    downsample_factor: 0\n", 3, "downsample_factor=0 is not valid"),
        ("cache_config:\n  extra_cache_config:\n    downsampling: 2\n", 3, "extra_cache_config: unknown key"),
        ("cache_config: 4\n", 1, "cache_config=4 is not valid: expected a mapping of options"),
        ("enable_taylorseer: 1\n", 1, "enable_taylorseer=1 is not valid"),
        ("enable_dmd: true\ntaylorseer_order: 1\ndmd_history: 2\n", 3, "dmd_history=2 is not valid"),
        ("enable_dmd: true\nenable_foca: true\n", 1, "enable_foca and enable_dmd exclude each other"),
        (
            "enable_dmd: true\ndmd_cache_type: residual\ncalibrator_cache_type: residual\n",
            3,
            "dmd_cache_type and calibrator_cache_type mean the same",
        ),
        ("params_modifiers: 4\n", 1, "params_modifiers=4 is not valid: expected a list of sections"),
        ("params_modifiers:\n  -\n  - max_warmup_steps: -1\n", 3, "max_warmup_steps=-1 is not valid"),
        ("params_modifiers:\n  - 4\n", 1, r"params_modifiers\[0\]=4 is not valid"),
        ("parallelism_config:\n  tp: 0\n", 2, "tp_size=0 is not valid"),
        ("parallelism_config:\n  tp: 2\n  ring: 2\n", 1, "ring_size=2 and tp_size=2 exclude each other"),
        ("parallelism_config:\n  tp_size: 2\n  tp: 2\n", 3, "tp_size and tp mean the same"),
        ("parallelism_config:\n  backend: Torch\n", 2, "unknown key 'Torch'"),
        ("parallelism_config:\n  parallel_kwargs:\n    attn: native\n", 3, "parallel_kwargs: unknown key 'attn'"),
        ("parallelism_config:\n  parallel_kwargs:\n    has_controlnet: 1\n", 3, "has_controlnet=1 is not valid"),
        ("models:\n  a: {}\nextra: 1\n", 3, "unknown key 'extra'"),
        ("models:\n  a:\n    cache_config:\n      max_warmup_steps: -1\n", 4, "max_warmup_steps=-1 is not valid"),
    ],
)
def test_an_error_in_a_file_names_the_file_and_the_line(written: Written, text: str, line: int, message: str) -> None:
    path = written(text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_configs(path)
    assert str(raised.value).startswith(f"{path}, line {line}: ")


def test_an_error_in_a_dict_names_no_line() -> None:
    with pytest.raises(ConfigError) as raised:
        load_configs({"cache_config": {"max_warmup_steps": -1}})
    assert str(raised.value) == "max_warmup_steps=-1 is not valid: expected an integer >= 0"


@pytest.mark.parametrize(
    "text", ["cache_config: [", "a: 1\n---\nb: 2\n", "!!python/object:os.system {}", "? [a]\n: 1", "2024-13-45"]
)
def test_what_is_no_yaml_is_refused_with_its_cause(written: Written, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read as YAML: ") as raised:
        load_configs(written(text))
    assert isinstance(raised.value.__cause__, (yaml.YAMLError, ValueError))


def test_what_holds_no_mapping_is_refused(written: Written, tmp_path: Path) -> None:
    for text in ("", "- 1\n", "4\n"):
        with pytest.raises(ConfigError, match="expected a mapping of options"):
            load_configs(written(text))
    with pytest.raises(FileNotFoundError, match=r"missing\.yaml"):
        load_configs(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="path_or_dict=4 is not valid: expected the path of a YAML file, or a dict"):
        load_configs(4)  # type: ignore[arg-type]


def test_sizes_have_short_names_and_may_be_left_to_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    distributed = pytest.importorskip("torch").distributed
    assert load_parallelism_config({"parallelism_config": {"ring": 4}}) == ParallelismConfig(ring_size=4)
    auto = {"parallelism_config": {"ulysses": "auto"}}
    assert load_parallelism_config(auto) == ParallelismConfig(ulysses_size=1)
    assert "'auto' is 1, as torch.distributed is not initialized" in caplog.text
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    assert load_parallelism_config(auto) == ParallelismConfig(ulysses_size=4)
    with pytest.raises(ConfigError, match="'auto' was switched off"):
        load_parallelism_config(auto, auto_parallel_size=False)
    assert load_parallelism_config(auto, check_only=True, auto_parallel_size=False) is True
    assert load_parallelism_config({"cache_config": {}}, check_only=True) is False


def test_an_unknown_setting_of_a_loader_is_refused() -> None:
    with pytest.raises(ConfigError, match="load_configs: unknown key 'resets'; did you mean 'reset'"):
        load_configs({}, resets=True)
    with pytest.raises(ConfigError, match="load_cache_config: unknown key 'check_only'"):
        load_cache_config({}, check_only=True)
    with pytest.raises(ConfigError, match="reset=1 is not valid"):
        load_cache_config({}, reset=1)


@pytest.mark.parametrize(
    ("section", "load"), [("attention_backend", load_attn_backend_config), ("quantize_config", load_quantize_config)]
)
def test_a_section_of_what_is_not_in_this_version_may_be_there_and_empty(
    section: str, load: Callable[..., None], written: Written
) -> None:
    assert load({"cache_config": {}, section: None}) is None
    assert load({"models": {"one": {section: None}, "two": {}}}, model="two") is None
    assert load_configs({"cache_config": {}, section: None}) == load_configs({"cache_config": {}})
    path = written(f"cache_config:\n  max_warmup_steps: 2\n{section}: native\n")
    for read in (load, load_configs):
        with pytest.raises(ConfigError, match=f"line 3.*{section}='native'.*not in this version"):
            read(path)


def test_load_options_works_and_warns_once() -> None:
    with pytest.warns(DeprecationWarning, match="load_options is deprecated; use load_configs") as seen:
        options = load_options({"max_warmup_steps": 4, "enable_foca": True}, reset=True)
    assert [warning.filename for warning in seen] == [__file__]
    assert options["cache_config"].given() == {"max_warmup_steps": 4}
    assert options["calibrator_config"] == FoCaCalibratorConfig().reset(enable_calibrator=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert load_options({"max_warmup_steps": 4}) == {"cache_config": DBCacheConfig(max_warmup_steps=4)}
