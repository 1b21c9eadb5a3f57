"""The page of the guard shows what was measured."""

from __future__ import annotations

import json

from tests.docs.pages import DOCS, text
from tools.docs.guard import facts, filled
from tools.docs.report import FIGURES


def test_the_page_is_made_of_the_data() -> None:
    page = text("plan_guard.md")
    assert filled(page) == page


def test_the_promises_shown_are_those_of_the_calibration_and_no_picture_is_left_out() -> None:
    from cache_dit.engine.plans.guard import GuardCalibration

    data = json.loads((FIGURES / "guard.json").read_text(encoding="utf-8"))
    made = GuardCalibration(**data["calibration"])
    assert data["promise"] == made.promise(data["level"])
    assert data["below"] == made.below(data["level"])
    assert (DOCS / "figures" / "guard.svg").exists()
    for case in data["cases"].values():
        told = facts(data, case)
        assert told["pictures"] == len(case["pictures"]) == data["calibration_prompts"]
        assert len({row["prompt"] for row in case["pictures"]}) == told["pictures"]
