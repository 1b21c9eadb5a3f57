"""The page of options lists every one of them, with the default it really has."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

import cache_dit
from tests.docs.pages import text

_ROWS = dict(re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\|", text("configuration.md"), re.M))
_CALIBRATORS = (
    cache_dit.TaylorSeerCalibratorConfig,
    cache_dit.NewtonCalibratorConfig,
    cache_dit.HermiteCalibratorConfig,
    cache_dit.FoCaCalibratorConfig,
    cache_dit.DMDCalibratorConfig,
)


def shown(value: Any) -> str:
    """A default as the page writes it."""
    if isinstance(value, str):
        return f'"{value}"'
    return str(value)


@pytest.mark.parametrize("config", [cache_dit.DBCacheConfig(), cache_dit.ExtraCacheConfig(), cache_dit.DBPruneConfig()])
def test_every_option_of_the_cache_stands_there_with_its_default(config: Any) -> None:
    for field in dataclasses.fields(config):
        if field.name == "cache_type":
            continue  # the one default that DBCache and DBPrune do not share
        assert _ROWS[field.name] == shown(getattr(config, field.name)), field.name


@pytest.mark.parametrize("calibrator", _CALIBRATORS)
def test_every_option_of_a_calibrator_stands_there_with_its_default(
    calibrator: type[cache_dit.CalibratorConfig],
) -> None:
    shared = {field.name for field in dataclasses.fields(cache_dit.CalibratorConfig)}
    assert shared <= set(_ROWS)
    row = re.search(rf"^\| `{calibrator.__name__}` \| (.*?) \|", text("configuration.md"), re.M)
    options = dict(re.findall(r"`(\w+)=([^`]*)`", row[1])) if row else {}
    defaults = {name: value for name, value in dataclasses.asdict(calibrator()).items() if name not in shared}
    assert options == {name: shown(value) for name, value in defaults.items()}
