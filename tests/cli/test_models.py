"""`cache-dit models`: the supported families, as a table and as data."""

from __future__ import annotations

import json

import pytest

from cache_dit.cli import main
from cache_dit.models import table


def test_the_table_names_every_transformer_and_cuts_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out.split()
    for row in table():
        assert {row["family"], *row["aliases"], *row["transformers"], *row["blocks"], *row["presets"]} <= set(printed)


def test_json_is_the_table_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == table()
