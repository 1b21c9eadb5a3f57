"""Plans of the demo model, made by `cache-dit plan --model demo --prompts prompts.txt`: one per number of steps.

The one for 28 was searched longer than by default (`--max-runs 560`), those for 20 and 50 began from it (`start=`).
"""

from __future__ import annotations

from pathlib import Path

from cache_dit.engine.plans.plan import Plan
from cache_dit.errors import MissingModelError

FOLDER = Path(__file__).parent


def steps_planned() -> list[int]:
    """The numbers of steps that there is a plan for, ascending."""
    return sorted(int(path.stem) for path in FOLDER.glob("*.json"))


def demo_plan(steps: int = 28) -> Plan:
    """The demo model's plan for so many steps, with a point for each number of full steps; choose one by `select`.

    Args:
        steps: denoising steps of a picture.

    Raises:
        MissingModelError: there is no plan for so many steps.
    """
    path = FOLDER / f"{steps}.json"
    if not path.is_file():
        known = ", ".join(map(str, steps_planned()))
        raise MissingModelError(f"there is no plan of the demo model for {steps} steps, only for {known}: adapt one")
    return Plan.load(path)
