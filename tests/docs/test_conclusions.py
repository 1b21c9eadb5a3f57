"""The figures in the conclusions of the benches, and in the README, are those of the committed results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.docs.pages import DOCS

ROOT = DOCS.parent
TEXT = (DOCS / "_includes" / "benchmarks_conclusions.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def findings(bench: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "bench" / "results" / f"{bench}.json").read_text())["findings"]
    return found


def value(bench: str, name: str, group: str = "") -> float:
    """A finding's value, by its name and the beginning of its group."""
    (found,) = [one for one in findings(bench) if one["name"] == name and one["group"].startswith(group)]
    return float(found["value"])


#: How the text writes a finding: (bench, name, group, text).
WRITTEN = [
    ("gpu", "full step, bare", "FLUX.1", "{:.0f} ms"),
    ("gpu", "cached step, static, Fn=0, in a loop of 28, even", "FLUX.1", "{:.1f} ms in a loop by a mask"),
    ("gpu", "cached step, dynamic, Fn=1, in turn with other models", "FLUX.1", "{:.1f} ms by a threshold"),
    ("gpu", "speed-up, 28 steps, even", "FLUX.1", "the loop is {:.2f} times as fast"),
    ("gpu", "speed-up ÷ ideal, 28 steps, even", "FLUX.1", "{:.2f} of the ideal"),
    ("gpu", "speed-up, regional, 28 steps, even", "FLUX.1", "block by block {:.2f}"),
    ("gpu", "speed-up, 28 steps, every fourth computed, MagCache", "FLUX.1", "MagCache gives {:.2f} times"),
    ("gpu", "speed-up, 28 steps, every fourth computed, FirstBlockCache", "FLUX.1", "FirstBlockCache {:.2f}"),
    ("gpu", "speed-up, 28 steps, every fourth computed, ours, dynamic", "FLUX.1", "ours by a threshold {:.2f}"),
    ("gpu", "speed-up, 28 steps, every fourth computed, TaylorSeer", "FLUX.1", "TaylorSeer {:.2f}"),
    ("gpu", "speed-up, 28 steps, every fourth computed, TaylorSeer lite", "FLUX.1", "its lite mode {:.2f}"),
    ("gpu", "wrapped ÷ bare, every step measured, none skipped", "FLUX.1", "a measured step takes {:.3f} times"),
    ("gpu", "wrapped ÷ bare, every step measured, none skipped", "FLUX.2", "on FLUX.2-klein-4B {:.3f}; the goal"),
    ("gpu", "regional: wrapped ÷ bare, computed steps of a plan", "FLUX.1", "of a plan take {:.3f} times"),
    ("gpu", "regional: wrapped ÷ bare, computed steps of a plan", "FLUX.2", "on FLUX.2-klein-4B {:.3f}; the goal"),
    ("overhead", "wrapped ÷ bare, threshold 0", "core", "a step takes {:.3f} times as long; with every"),
    ("overhead", "speed-up ÷ ideal, every other step, planned, small, ours", "", "a run reaches {:.3f} of"),
    ("overhead", "speed-up ÷ ideal, every other step, planned, small, diffusers MagCache", "", "MagCache {:.3f}"),
    ("overhead", "live state, Taylor 1, planned, small, cache-dit 1.2.0", "", "cache-dit keeps {:.1f}"),
    ("overhead", "live state, Taylor 1, planned, small, diffusers TaylorSeer, attention", "", "TaylorSeer {:.1f}"),
    ("overhead", "graph breaks, every other step, planned, whole model, tiny, cache-dit 1.2.0", "", "makes {:.0f} and"),
    ("overhead", "wrapped ÷ bare, nothing pruned, decided by block", "", "nothing pruned takes {:.2f} times"),
]


@pytest.mark.parametrize(("bench", "name", "group", "written"), WRITTEN)
def test_a_figure_in_the_text_is_the_measured_one(bench: str, name: str, group: str, written: str) -> None:
    assert written.format(value(bench, name, group)) in " ".join(TEXT.split())


@pytest.mark.parametrize("budget", ["2", "2.33", "2.8", "4", "5.7"])
def test_the_table_has_what_each_budget_gave(budget: str) -> None:
    rows = {row.split("|")[1].strip(): row.split("|")[2:] for row in TEXT.splitlines() if row.startswith("| ")}
    column = next(cells for name, cells in rows.items() if name.startswith("mean PSNR")).index(f" {budget}× ")
    details = next(
        one["details"] for one in findings("quality") if one["name"] == f"ours − best other at {budget}×, mean PSNR"
    )
    assert rows["our plan"][column].strip() == f"{details['ours_value']:.1f} dB"
    assert rows["the best of all others"][column].strip() == f"{details['other_value']:.1f} dB"


def test_the_readme_says_what_the_gpu_measured() -> None:
    assert f"{value('gpu', 'full step, bare', 'FLUX.1'):.0f} ms for a full step" in README
    assert f"{value('gpu', 'cached step, static, Fn=0, in a loop of 28, even'):.1f} ms for a cached one" in README
    assert f"the loop is {value('gpu', 'speed-up, 28 steps, even'):.2f} times as fast" in README
