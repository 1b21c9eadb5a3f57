"""What was measured, as Markdown: each figure's place on a page is filled from its data, so that no number is typed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs"
FIGURES = DOCS / "figures"
#: Where figures may have places: the documentation, and the README.
PAGES = (*sorted(DOCS.rglob("*.md")), DOCS.parent / "README.md")

_PLACE = re.compile(r"(?P<begin><!-- figure: (?P<name>\w+) -->\n).*?(?P<end><!-- end of figure -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    """The data of a measurement."""
    found: dict[str, Any] = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def filled(page: Path) -> str:
    """A page's Markdown with each figure's place filled anew."""

    def fill(place: re.Match[str]) -> str:
        if not measured(place["name"]):
            return place[0]
        return f"{place['begin']}\n{figure(place['name'], page.parent)}\n\n{place['end']}"

    return _PLACE.sub(fill, page.read_text(encoding="utf-8"))


def places(page: Path) -> list[str]:
    """The names of the figures that a page has places for."""
    return [place["name"] for place in _PLACE.finditer(page.read_text(encoding="utf-8"))]


def measured(name: str) -> bool:
    """Whether there is data for a figure."""
    from tools.docs.studies import PREDICTORS

    if name in PREDICTORS:
        return (FIGURES / "predictors.json").exists() and name in load("predictors")["predictors"]
    return (FIGURES / f"{_source(name)}.json").exists()


def _source(name: str) -> str:
    """The measurement that a figure shows."""
    from tools.docs.studies import PREDICTORS, STUDIES

    if name in STUDIES:
        return name
    if name in PREDICTORS or name == "comparison":
        return "predictors"
    return name if name == "settings" else "baseline"


def figure(name: str, folder: Path) -> str:
    """The picture, its caption, and the table of a figure.

    Args:
        name: the figure.
        folder: where the page lies.
    """
    from tools.docs.studies import PREDICTORS, STUDIES

    source = _source(name)
    data = load(source)
    if name == "settings":
        return settings_table(data)
    if name in STUDIES:
        alt, text = STUDIES[name].alt, study_text(name)
    elif name in PREDICTORS:
        alt, text = f"The errors of {PREDICTORS[name].label}, and what pictures it gives", predictor_text(name)
    else:
        alt, text = _OTHERS[name][0], _OTHERS[name][1](data)
    at = os.path.relpath(FIGURES, folder).replace(os.sep, "/")
    caption, _, table = text.partition("\n\n")
    measured = f"{caption} {_conditions(data['conditions'])} [Data]({at}/{source}.json)."
    return f"![{alt}]({at}/{name}.svg)\n\n*{measured}*" + (f"\n\n{table}" if table else "")


def _conditions(conditions: dict[str, Any]) -> str:
    return (
        f"On {conditions['model']}: {len(conditions['prompts'])} prompts, {conditions['steps']} steps, guidance "
        f"{conditions['guidance']} or none."
    )


_RIGHT = (
    "Right: PSNR to the uncached picture (median; a thin line ends at the worst prompt) over the ideal speed-up, with "
    "guidance and without; grey: fewer steps."
)


def study_text(name: str) -> str:
    """Caption and table of a study."""
    from tools.docs.studies import STUDIES

    study, data = STUDIES[name], load(name)
    left = "Left: the steps of the first prompt, tall computed, low cached."
    if study.value:
        traced = data["cases"][study.traced]["label"]
        left = f"Left: {study.value} at each step of the first prompt, {traced}; below, the steps of all settings."
    return f"{study.shows} {left} {_RIGHT}\n\n{_table(data['cases'], 'setting')}"


def predictor_text(name: str) -> str:
    """Caption and table of a predictor."""
    data = load("predictors")
    found = data["predictors"][name]
    caption = (
        f"{found['label']} over static masks with Fn=0 that compute 4 steps, then one of 2, 3, 4 or 5, and the last. "
        f"Left: the relative L1 error of single predictions from true values, on an uncached run. {_RIGHT}"
    )
    return f"{caption}\n\n{_table(found['cases'], 'computed')}"


def comparison_text(data: dict[str, Any]) -> str:
    """Caption and table of all predictors together."""
    caption = (
        "PSNR to the uncached picture (median, dB) over the ideal speed-up, all predictors over the same static masks "
        "with Fn=0: 4 computed steps, then one of 2, 3, 4 or 5, and the last; grey: fewer steps. In the table, with "
        "guidance | without. State: what snapshots held at most, in multiples of what reuse holds."
    )
    all_found = list(data["predictors"].values())
    unit = all_found[0]["cases"][0]["guided"]["peak_bytes"]
    rows = [
        [
            found["label"],
            *(f"{case['guided']['psnr']:.1f} \\| {case['plain']['psnr']:.1f}" for case in found["cases"]),
            f"{found['cases'][0]['guided']['peak_bytes'] / unit:.1f}",
        ]
        for found in all_found
    ]
    return f"{caption}\n\n{_markdown(['predictor', *(case['label'] for case in all_found[0]['cases']), 'state'], rows)}"


def change_text(baseline: dict[str, Any]) -> str:
    """Caption of how the residual moves."""
    changes = baseline["residual_changes"]
    return (
        "By how much what all blocks add to the hidden states changes from one step to the next (relative L1), on an "
        "uncached run of the first prompt: "
        f"between {min(changes) * 100:.0f} and {max(changes) * 100:.0f} %."
    )


def settings_table(data: dict[str, Any]) -> str:
    """The README's table: settings beside no cache and fewer steps."""
    whole = data["seconds"]["no cache"]
    rows = []
    for label, seconds in data["seconds"].items():
        case = data["cases"].get(label)
        psnr = f"{case['psnr']:.1f} dB | {case['worst_psnr']:.1f} dB" if case else "— | —"
        state = f"{case['peak_bytes'] / 1024:.0f} KiB" if case else "0 KiB"
        rows.append([label, f"{seconds:.2f} s", f"{whole / seconds:.2f}×", *psnr.split(" | "), state])
    return _markdown(["setting", "time", "speed-up", "PSNR", "worst", "memory"], rows)


_OTHERS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "change": ("The change from step to step", change_text),
    "comparison": ("What pictures the predictors give", comparison_text),
}


def _table(cases: list[dict[str, Any]], first: str) -> str:
    heads = [first, "steps computed", "ideal speed-up", "PSNR", "worst", "state", "no guidance: computed"]
    heads += ["ideal speed-up", "PSNR", "worst"]
    rows = []
    for case in cases:
        guided, plain = case["guided"], case["plain"]
        rows.append(
            [case["label"], *_cells(guided), f"{guided['peak_bytes'] / 1024:.0f} KiB", *_cells(plain)],
        )
    return _markdown(heads, rows)


def _cells(found: dict[str, Any]) -> list[str]:
    computed = _range(found["computed"], len(found["line"]))
    return [computed, f"{found['speedup']:.2f}", f"{found['psnr']:.1f} dB", f"{found['worst_psnr']:.1f} dB"]


def _range(computed: list[int], steps: int) -> str:
    fewest, most = computed
    return f"{fewest if fewest == most else f'{fewest}–{most}'} of {steps}"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))
