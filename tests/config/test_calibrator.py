"""Calibrator options: defaults, what reaches the predictor, and what is refused."""

from __future__ import annotations

import pytest

from cache_dit.config import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.errors import ConfigError


def test_the_base_class_is_switched_off_and_taylorseer_on_for_both_streams() -> None:
    base, taylorseer = CalibratorConfig(), TaylorSeerCalibratorConfig()
    assert (base.enable_calibrator, base.enable_encoder_calibrator) == (False, False)
    assert (taylorseer.enable_calibrator, taylorseer.enable_encoder_calibrator) == (True, True)
    assert taylorseer.as_dict() == {
        "enable_calibrator": True,
        "enable_encoder_calibrator": True,
        "calibrator_type": "taylorseer",
        "calibrator_cache_type": "residual",
        "calibrator_kwargs": {},
        "coordinate": "step",
        "taylorseer_order": 1,
        "damping": 1.0,
    }


def test_the_order_reaches_the_predictor_as_n_derivatives() -> None:
    config = TaylorSeerCalibratorConfig(taylorseer_order=2)
    kwargs = config.to_kwargs()
    assert kwargs == {"n_derivatives": 2}
    kwargs["other"] = 1
    assert config.calibrator_kwargs == {}


def test_tags() -> None:
    assert CalibratorConfig().strify() == "CalibratorBase"
    assert TaylorSeerCalibratorConfig(taylorseer_order=2).strify() == "T1O2"
    assert TaylorSeerCalibratorConfig(taylorseer_order=2).strify(details=True) == "TaylorSeer_O(2)"
    assert TaylorSeerCalibratorConfig(taylorseer_order=0).strify() == "NONE"


def test_empty_keeps_the_type_and_drops_the_rest() -> None:
    assert TaylorSeerCalibratorConfig().reset(taylorseer_order=3).given() == {
        "calibrator_type": "taylorseer",
        "taylorseer_order": 3,
    }


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("enable_calibrator", 1, "True or False"),
        ("enable_encoder_calibrator", "no", "True or False"),
        ("calibrator_type", "", "a predictor's name"),
        ("calibrator_cache_type", "residuals", "'residual' or 'hidden_states'"),
        ("calibrator_kwargs", [2], "a dict"),
        ("taylorseer_order", -1, "an integer >= 0"),
    ],
)
def test_a_value_that_cannot_work_is_refused(field: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TaylorSeerCalibratorConfig(**{field: value})  # type: ignore[arg-type]
    assert f"{field}={value!r} is not valid: expected {expected}" in str(raised.value)


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'taylorseer_order'"):
        TaylorSeerCalibratorConfig().update(taylor_order=2)


@pytest.mark.parametrize(
    ("config", "kind", "arguments", "tag"),
    [
        (FoCaCalibratorConfig(), "foca", {}, "FoCa"),
        (
            DMDCalibratorConfig(),
            "dmd",
            {"history": 6, "rank": 0, "ridge": 1e-8, "svd_precision": "medium"},
            "DMDH6",
        ),
        (HermiteCalibratorConfig(), "hermite", {"order": 2, "scale": 0.5}, "HermiteO2"),
        (NewtonCalibratorConfig(), "newton", {"order": 2}, "NewtonO2"),
    ],
)
def test_each_calibrator_is_on_for_both_streams_and_has_its_type_arguments_and_tag(
    config: CalibratorConfig, kind: str, arguments: dict[str, object], tag: str
) -> None:
    assert (config.enable_calibrator, config.enable_encoder_calibrator) == (True, True)
    assert (config.calibrator_type, config.to_kwargs(), config.strify()) == (kind, arguments, tag)
    further = type(config)(calibrator_kwargs={"more": 1})
    assert further.to_kwargs() == {"more": 1, **arguments}
    assert type(config)().reset(coordinate="sigma").given() == {"calibrator_type": kind, "coordinate": "sigma"}


def test_tags_say_what_differs() -> None:
    assert DMDCalibratorConfig(dmd_history=8, dmd_svd_precision="low").strify() == "DMDH8l"
    assert DMDCalibratorConfig(dmd_svd_precision="high").strify(details=True) == "DMD_H(6)h"
    assert HermiteCalibratorConfig(hermite_order=1).strify(details=True) == "Hermite_O(1)"
    assert (
        HermiteCalibratorConfig(hermite_order=0).strify() == NewtonCalibratorConfig(newton_order=0).strify() == "NONE"
    )


@pytest.mark.parametrize(
    ("cls", "field", "value", "expected"),
    [
        (CalibratorConfig, "coordinate", "time", "'step' or 'timestep' or 'sigma'"),
        (DMDCalibratorConfig, "dmd_history", 3, "an integer >= 4"),
        (DMDCalibratorConfig, "dmd_rank", -1, "an integer >= 0"),
        (DMDCalibratorConfig, "dmd_ridge", -1e-8, "a number >= 0"),
        (DMDCalibratorConfig, "dmd_svd_precision", "best", "'low' or 'medium' or 'high'"),
        (HermiteCalibratorConfig, "hermite_order", -1, "an integer >= 0"),
        (HermiteCalibratorConfig, "hermite_scale", 0, "a number > 0"),
        (NewtonCalibratorConfig, "newton_order", 1.5, "an integer >= 0"),
    ],
)
def test_a_calibrators_own_value_that_cannot_work_is_refused(
    cls: type[CalibratorConfig], field: str, value: object, expected: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        cls(**{field: value})  # type: ignore[arg-type]
    assert str(raised.value) == f"{field}={value!r} is not valid: expected {expected}"
