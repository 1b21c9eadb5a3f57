"""The documentation's figures: ``python -m tools.docs.figures`` measures, draws, and fills their places on the pages.

Measured data lies in ``docs/figures/NAME.json``, the drawing next to it; with ``--draw`` nothing is measured.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from tools.docs.report import DOCS, FIGURES, PAGES, filled, load
from tools.docs.studies import PREDICTORS, STUDIES

MEASUREMENTS = ("baseline", *STUDIES, "predictors", "settings")


def main() -> None:
    """Measure what was asked for, then draw everything there is data for."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"measurements: {', '.join(MEASUREMENTS)} (all)")
    parser.add_argument("--draw", action="store_true", help="only draw, and fill the pages")
    parser.add_argument("--predictors", nargs="*", default=list(PREDICTORS), metavar="NAME", help="which to compare")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(MEASUREMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(MEASUREMENTS)}")
    if not arguments.draw:
        measure(arguments.names or MEASUREMENTS, arguments.predictors)
    draw_all()
    for page in PAGES:
        page.write_text(filled(page), encoding="utf-8")


def measure(names: Any, predictor_names: list[str]) -> None:
    """Run measurements and write their data."""
    from tools.docs import measure as measuring

    bench = measuring.Bench()
    for name in names:
        if name == "baseline":
            data = measuring.baseline(bench)
        elif name == "predictors":
            data = measuring.predictors(bench, predictor_names)
        elif name == "settings":
            data = measuring.settings_compared(bench)
        else:
            data = measuring.study(bench, name)
        path = FIGURES / f"{name}.json"
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"measured {path.relative_to(DOCS.parent)}")


def draw_all() -> None:
    """Draw every figure whose data is there."""
    from tools.docs import draw

    there = {name for name in MEASUREMENTS if (FIGURES / f"{name}.json").exists()}
    baseline = load("baseline")
    draw.change(FIGURES / "change.svg", baseline)
    if "dbcache" in there:
        case = load("dbcache")["cases"][STUDIES["dbcache"].traced]
        draw.chain(FIGURES / "chain.svg", line=case["guided"]["line"])
    for name, study in STUDIES.items():
        if name in there:
            draw.settings(FIGURES / f"{name}.svg", load(name), baseline, study=study)
    if "predictors" in there:
        data = load("predictors")
        draw.comparison(FIGURES / "comparison.svg", data, baseline)
        for name in data["predictors"]:
            draw.predictor(FIGURES / f"{name}.svg", data, baseline, name)


if __name__ == "__main__":
    main()
