"""A plan, and what a request made of it, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache_dit.engine.plans.point import PlanPoint, Quality
from cache_dit.engine.plans.scope import PlanScope


def described(scope: PlanScope, points: Sequence[PlanPoint], chosen: int | None, note: str) -> list[str]:
    """What a plan is for, then its points in a line each, with an arrow at the chosen one, and its note."""
    facts = [
        f"{scope.num_inference_steps} steps",
        scope.scheduler,
        None if scope.branches is None else f"branches {', '.join(scope.branches)}",
        None if scope.resolution is None else f"{scope.resolution} latent tokens",
        scope.dtype,
    ]
    lines = [f"plan for {scope.model_class or 'any model'}: {', '.join(fact for fact in facts if fact)}"]
    if scope.call:
        lines.append(f"made with {', '.join(f'{name}={value!r}' for name, value in scope.call.items())}")
    rows = [("", "full steps", "ideal speed-up", "quality")]
    for point in points:
        mark = "→" if point.full_steps == chosen else ""
        rows.append((mark, f"{point.full_steps} of {point.steps}", f"{point.ideal_speedup:.2f}", point.told))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(table[0])
    for row, point in zip(table[1:], points, strict=True):
        lines += [row, *([f"     note: {point.note}"] if point.note else [])]
    lines += [] if chosen is not None else ["no point is chosen: see plan.select"]
    return [*lines, *([f"note: {note}"] if note else [])]


@dataclass(frozen=True)
class PlanOutcome:
    """What a request made of its plan.

    Args:
        name: the plan's, e.g. `12of28`.
        quality: what it was measured, or else predicted, to have; None: unknown, as it is after `Plan.adapt`, and where
            the call differed.
        ideal_speedup: block calls without it over block calls with it, as planned.
        unplanned: by branch, the steps that were not done as planned, with a reason code.
        note: the plan's, and its point's.
        told: the quality for people.
        differences: what differed from the call that the plan was made with.
        unchecked: what of that call could not be compared.
    """

    name: str
    quality: Quality | None
    ideal_speedup: float
    unplanned: Mapping[str, Mapping[int, str]]
    note: str = ""
    told: str = "not known"
    differences: tuple[str, ...] = ()
    unchecked: str = ""

    @property
    def kept(self) -> bool:
        """Whether every step was done as planned."""
        return not any(self.unplanned.values())

    def lines(self, where: str = "") -> list[str]:
        """The same for people; ``where`` says of which blocks the speed-up is."""
        quality = self.told if self.quality else f"quality {self.told}"
        told = [f"plan {self.name}: {quality}, ideal speed-up{where} {self.ideal_speedup:.2f}"]
        told += [line for line in (self.note, self.unchecked) if line]
        for branch, steps in self.unplanned.items():
            if steps:
                done = ", ".join(f"{step} ({why})" for step, why in steps.items())
                told.append(f"not as planned: {branch}: steps {done}")
        if self.kept:
            told[0] += "; every step was done as planned"
        return told
