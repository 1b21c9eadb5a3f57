"""What a policy knows of a model: the file, its checks, and the fits that fill it."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cache_dit.config import DBCacheConfig
from cache_dit.engine.policies.calibration import PolicyCalibration, fit_polynomial, magnitude_ratios
from cache_dit.errors import ConfigError

FIELDS: dict[str, Any] = {
    "policy": "magcache",
    "model_class": "FluxTransformer2DModel",
    "num_inference_steps": 3,
    "scheduler": "FlowMatchEulerDiscreteScheduler",
    "branches": {"uncond": [1.0, 0.5, 0.25], "cond": [1.0, 1.25, 0.75]},
}


def calibration(**fields: Any) -> PolicyCalibration:
    return PolicyCalibration(**{**FIELDS, **fields})


def written(path: Path, **fields: Any) -> Path:
    """A file with these fields in place of valid ones; those that are ... are left out."""
    content = {**FIELDS, "r_squared": {}, "version": 1, **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    return path


# The file


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = calibration()
    saved.save(tmp_path / "flux.json")
    assert PolicyCalibration.load(tmp_path / "flux.json") == saved
    assert PolicyCalibration.load(str(tmp_path / "flux.json")) == saved


NUMBERS = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6)


@given(
    branches=st.dictionaries(st.text(), NUMBERS, min_size=1), model=st.text(min_size=1), steps=st.none() | st.just(9)
)
def test_every_finite_number_and_every_name_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, branches: dict[str, list[float]], model: str, steps: int | None
) -> None:
    path = tmp_path_factory.mktemp("calibration") / "file.json"
    fits = dict.fromkeys(branches, 0.5)
    saved = PolicyCalibration("teacache", model, steps, None, branches, fits)
    saved.save(path)
    assert PolicyCalibration.load(path) == saved


def test_the_file_is_sorted_and_has_a_line_for_each_branch(tmp_path: Path) -> None:
    calibration().save(tmp_path / "flux.json")
    assert (tmp_path / "flux.json").read_text() == (
        "{\n"
        ' "branches": {\n'
        '  "cond": [1.0, 1.25, 0.75],\n'
        '  "uncond": [1.0, 0.5, 0.25]\n'
        " },\n"
        ' "model_class": "FluxTransformer2DModel",\n'
        ' "num_inference_steps": 3,\n'
        ' "policy": "magcache",\n'
        ' "r_squared": {},\n'
        ' "scheduler": "FlowMatchEulerDiscreteScheduler",\n'
        ' "version": 1\n'
        "}\n"
    )


def test_it_travels_with_a_configuration() -> None:
    config = DBCacheConfig(policy="magcache", policy_calibration=calibration())
    assert copy.deepcopy(config).policy_calibration == calibration()
    assert pickle.loads(pickle.dumps(config)).policy_calibration == calibration()


def test_what_it_was_made_from_may_change_afterwards() -> None:
    branches = {"default": [1.0, 0.5, 0.25]}
    made = calibration(branches=branches)
    branches["default"][1] = 7.0
    assert made.values() == (1.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "dbcache"}, "policy='dbcache' is not valid: expected 'magcache' or 'teacache'"),
        ({"policy": 3}, "policy=3 is not valid"),
        ({"model_class": ""}, "model_class='' is not valid: expected a class name"),
        ({"scheduler": 4}, "scheduler=4 is not valid: expected a class name"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not valid: expected an integer >= 1"),
        ({"num_inference_steps": None}, "num_inference_steps=None is not valid"),
        ({"version": 2}, "version=2 is not valid: expected 1, the format that this release reads"),
        ({"branches": []}, r"branches=\[\] is not valid: expected an entry for each branch"),
        ({"branches": {}}, "branches={} is not valid: expected at least one branch"),
        ({"branches": {"cond": "1, 2, 3"}}, r"branches\['cond'\]='1, 2, 3' is not valid"),
        ({"branches": {"cond": []}}, r"branches\['cond'\]=\[\] is not valid: expected a list of at least one number"),
        ({"branches": {"cond": [1.0, None, 1.0]}}, r"branches\['cond'\]\[1\]=None is not valid"),
        ({"branches": {"cond": [1.0, True, 1.0]}}, r"branches\['cond'\]\[1\]=True is not valid"),
        ({"branches": {"cond": [1.0, math.inf, 1.0]}}, r"branches\['cond'\]\[1\]=inf is not valid"),
        ({"branches": {"cond": [1.0, math.nan, 1.0]}}, r"branches\['cond'\]\[1\]=nan is not valid"),
        ({"branches": {"cond": [1.0, 10**400, 1.0]}}, r"branches\['cond'\]\[1\]=10+ is not valid"),
        ({"branches": {"cond": [1.0, 1.0]}}, "expected num_inference_steps=3 ratios, got 2"),
        ({"branches": {"cond": [1.0, 0.0, 1.0]}}, "expected ratios above 0"),
        ({"r_squared": [0.5]}, r"r_squared=\[0.5\] is not valid"),
        ({"r_squared": {"cond": "good"}}, r"r_squared\['cond'\]='good' is not valid"),
        ({"r_squared": {"con": 0.5}}, "r_squared: unknown key 'con'; did you mean 'cond'"),
    ],
)
def test_a_field_that_cannot_work_is_named_with_the_file_that_has_it(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        calibration(**fields)
    with pytest.raises(ConfigError, match=message) as caught:
        PolicyCalibration.load(written(tmp_path / "broken.json", **fields))
    assert str(caught.value).startswith(str(tmp_path / "broken.json"))


@pytest.mark.parametrize("name", [*FIELDS, "version"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"broken.json: the field '{name}' is missing"):
        PolicyCalibration.load(written(tmp_path / "broken.json", **{name: ...}))


def test_the_fits_quality_may_be_missing(tmp_path: Path) -> None:
    assert PolicyCalibration.load(written(tmp_path / "fine.json", r_squared=...)) == calibration()


def test_an_unknown_field_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'model_clas'; did you mean 'model_class'"):
        PolicyCalibration.load(written(tmp_path / "broken.json", model_clas="Flux"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*No such file"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[1]", "object"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"policy_calibration='.*broken.json' .*{message}"):
        PolicyCalibration.load(path)


def test_a_calibration_is_given_as_one_or_as_a_path(tmp_path: Path) -> None:
    made = calibration()
    made.save(tmp_path / "flux.json")
    assert PolicyCalibration.of(made) is made
    assert PolicyCalibration.of(str(tmp_path / "flux.json")) == PolicyCalibration.of(tmp_path / "flux.json") == made
    with pytest.raises(ConfigError, match="expected a PolicyCalibration, or the path of its JSON file"):
        PolicyCalibration.of({"policy": "magcache"})


# Where it holds


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"policy": "teacache"}, "policy='magcache', not 'teacache'"),
        ({"model_class": "WanTransformer3DModel"}, "model_class='FluxTransformer2DModel', not 'WanTransformer3DModel'"),
        ({"num_inference_steps": 4}, "num_inference_steps=3, not 4"),
        ({"scheduler": "DDIMScheduler"}, "scheduler='FlowMatchEulerDiscreteScheduler', not 'DDIMScheduler'"),
        ({"scheduler": "DDIMScheduler", "num_inference_steps": 4}, "num_inference_steps=3, not 4; scheduler="),
    ],
)
def test_it_is_refused_where_it_does_not_hold_and_says_what_differs(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"policy_calibration was made with {message}"):
        calibration().check(**asked)


def test_what_is_the_same_or_unknown_on_either_side_is_accepted() -> None:
    calibration().check()
    calibration().check(**{name: FIELDS[name] for name in FIELDS if name != "branches"})
    calibration(scheduler=None).check(scheduler="DDIMScheduler")
    calibration(policy="teacache", num_inference_steps=None).check(num_inference_steps=50)


def test_a_branch_that_is_not_known_gets_the_first_ones_numbers(caplog: pytest.LogCaptureFixture) -> None:
    made = calibration()
    with caplog.at_level(logging.INFO, logger="cache_dit"):
        assert made.values("uncond") == (1.0, 0.5, 0.25)
        assert not caplog.records
        assert made.values() == made.values("cond") == (1.0, 1.25, 0.75)
    assert [record.getMessage() for record in caplog.records] == [
        "the calibration does not know the branch 'default': that of 'cond' is used"
    ]


def test_a_single_branch_serves_all(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="cache_dit"):
        assert calibration(branches={"cond": [1.0, 1.25, 0.75]}).values("uncond") == (1.0, 1.25, 0.75)
    assert not caplog.records


def test_branches_are_known_by_the_names_that_the_session_gives_them() -> None:
    branches = {None: [1.0, 2.0, 3.0], ("cond", "0"): [1.0, 4.0, 5.0]}
    made = calibration(branches=branches)
    assert set(made.branches) == {"default", "cond 0"}
    assert made.values(("cond", "0")) == (1.0, 4.0, 5.0)


# The fits

COEFFICIENTS = st.lists(st.floats(-2, 2), min_size=5, max_size=5)


@given(coefficients=COEFFICIENTS, points=st.integers(8, 40))
def test_a_polynomial_through_the_points_is_found(coefficients: list[float], points: int) -> None:
    inputs = [step / (points - 1) for step in range(points)]
    outputs = [sum(c * x ** (4 - power) for power, c in enumerate(coefficients)) for x in inputs]
    assume(max(outputs) - min(outputs) > 1e-3)
    fitted, r_squared = fit_polynomial(inputs, outputs)
    assert fitted == pytest.approx(tuple(coefficients), abs=1e-6)
    assert r_squared == pytest.approx(1.0)


def test_a_fit_is_the_best_in_least_squares_and_says_how_good_it_is() -> None:
    fitted, r_squared = fit_polynomial([0.0, 1.0, 2.0], [0.0, 3.0, 3.0], degree=1)
    assert fitted == pytest.approx((1.5, 0.5))
    assert r_squared == pytest.approx(0.75)  # the squares: 1.5 of 6 are left
    fitted, r_squared = fit_polynomial([0.0, 1.0, 2.0], [1.0, 2.0, 6.0], degree=0)
    assert fitted == pytest.approx((3.0,))
    assert r_squared == pytest.approx(0.0)


def test_small_inputs_close_together_are_fitted_as_well() -> None:
    inputs = [0.01 + 0.0002 * step for step in range(30)]
    outputs = [40 * x * x - x + 0.1 for x in inputs]
    fitted, r_squared = fit_polynomial(inputs, outputs)
    shown = [sum(c * x ** (4 - power) for power, c in enumerate(fitted)) for x in inputs]
    assert shown == pytest.approx(outputs, rel=1e-6)
    assert r_squared == pytest.approx(1.0)


def test_outputs_that_are_all_the_same_are_met() -> None:
    fitted, r_squared = fit_polynomial([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.1] * 6)
    assert fitted == pytest.approx((0.0, 0.0, 0.0, 0.0, 0.1), abs=1e-9)
    assert len(fitted) == 5
    assert r_squared == 1.0


@pytest.mark.parametrize(
    ("inputs", "outputs", "degree", "message"),
    [
        ([0.1, 0.2], [0.1], 1, r"inputs and outputs differ in length \(2, 1\)"),
        ([0.1, 0.2, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], 2, "expected more than degree=2 different numbers"),
        ([0.1, math.nan], [0.1, 0.2], 1, "must be finite"),
        ([0.1, 0.2], [0.1, math.inf], 1, "must be finite"),
        ([0.1, 0.2], [0.1, 0.2], -1, "degree=-1 is not valid"),
    ],
)
def test_points_that_fix_no_polynomial_are_refused(
    inputs: list[float], outputs: list[float], degree: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_polynomial(inputs, outputs, degree)


def test_magnitudes_become_ratios_to_the_step_before() -> None:
    assert magnitude_ratios([8.0, 4.0, 5.0]) == [1.0, 0.5, 1.25]
    assert magnitude_ratios([3.0]) == [1.0]


@given(norms=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=50))
def test_the_product_of_ratios_leads_from_any_step_to_any_later_one(norms: list[float]) -> None:
    ratios = magnitude_ratios(norms)
    assert len(ratios) == len(norms)
    assert norms[0] * math.prod(ratios) == pytest.approx(norms[-1])


@pytest.mark.parametrize("norms", [[], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_magnitudes_that_have_no_ratio_are_refused(norms: list[float]) -> None:
    with pytest.raises(ConfigError, match="norms_by_step"):
        magnitude_ratios(norms)
