"""The FAQ answers every reason that the engine gives for a run without a cached step."""

from __future__ import annotations

import re

import pytest

from cache_dit import DBCacheConfig
from cache_dit.engine.policies import reasons
from tests.docs.pages import text

#: Reasons that a plan gives, whose page explains it.
_OF_PLANS = {"plan"}
_SENTENCES = reasons._REFUSALS | reasons._sentences(DBCacheConfig(), 8, 4, 0.1)


def words(sentence: str) -> set[str]:
    """The words of a sentence that say what it is about: names of options, or at least five letters."""
    return {word.lower() for word in re.findall(r"[A-Za-z_]{5,}", sentence)}


@pytest.mark.parametrize("code", sorted(_SENTENCES.keys() - _OF_PLANS))
def test_it_has_a_row_for_each_reason(code: str) -> None:
    first = re.split(r"[;.:] |, so ", _SENTENCES[code])[0]
    rows = [row.split("|")[1] for row in text("faq.md").splitlines() if row.startswith("| ")]
    shared = max(len(words(row) & words(first)) / len(words(first)) for row in rows)
    assert shared >= 0.5, f"{code}: {first}"
