"""Guidance branches with masks of their own: what the objective says of them, and which might pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.planning.gram import Array
from cache_dit.planning.search import Schedule

_WORTH = 0.95
"""A split is worth a real run where its predicted squared error is below this share of the common mask's."""


@dataclass(frozen=True)
class BranchObjective:
    """The objective of `search` with a schedule for each branch.

    Args:
        gram: inner products of the features, (branches · steps)².
        rho: how the branches share in the result.
        weights: w, per step.
        kappa: κ.

    With one schedule for all it has the same value as `search.Objective` on the mixture's products: the sum of the
    squares of d and of their sum is |c − 1_L|², with 1_L the newest anchor alone.
    """

    gram: Array
    rho: tuple[float, ...]
    weights: Array
    kappa: float

    def cost(self, schedules: Sequence[BranchSchedule]) -> float:
        """The objective's value."""
        steps = len(self.weights)
        shares, changes = np.asarray(self.rho), self._changes()
        tables = [_tables(schedule, steps) for schedule in schedules]
        total = 0.0
        for step in range(steps):
            if all(schedule.mask[step] for schedule in schedules):
                continue
            row = np.concatenate([share * errors[step] for share, (errors, _) in zip(shares, tables, strict=True)])
            moved = np.stack([share * amplified[step] for share, (_, amplified) in zip(shares, tables, strict=True)])
            noise = float(np.sum(changes * (moved @ moved.T)))
            total += float(self.weights[step] ** 2) * (float(row @ self.gram @ row) + self.kappa * noise)
        return total

    def _changes(self) -> Array:
        """Mean inner products of the branches' one-step changes."""
        count, steps = len(self.rho), len(self.weights)
        change = np.diff(np.eye(steps), axis=0)
        blocks = self.gram.reshape(count, steps, count, steps)
        found: Array = np.einsum("is,asbt,it->ab", change, blocks, change) / (steps - 1)
        return found


def _tables(schedule: BranchSchedule, steps: int) -> tuple[Array, Array]:
    """For each cached step, its error over the features, and its weights less those of reuse."""
    errors, amplified = np.zeros((steps, steps)), np.zeros((steps, steps))
    full: list[int] = []
    for step in range(steps):
        if schedule.mask[step]:
            full.append(step)
            continue
        rule = schedule.rules[len(full) - 1]
        anchors = full[-(rule.order + 1) :]
        weights = rule.predictor.coefficients([float(place) for place in anchors], float(step))
        errors[step, step] = 1.0
        errors[step, anchors] -= weights
        amplified[step, anchors] += weights
        amplified[step, anchors[-1]] -= 1.0
    return errors, amplified


def splits(objective: BranchObjective, names: Sequence[str], base: Schedule) -> list[Mapping[str, BranchSchedule]]:
    """Schedules of the same work in which one branch has a full step more and another one less, the best first.

    Only those that the objective holds for clearly better than the common mask.
    """
    if len(names) != 2:
        return []
    common = BranchSchedule(base.mask, base.rules)
    limit = _WORTH * objective.cost([common, common])
    found = []
    for step in base.full[1:-1]:
        fewer = _changed(base, step)
        for other in range(1, len(base.mask) - 1):
            if base.mask[other]:
                continue
            more = _changed(base, other)
            for pair in ((more, fewer), (fewer, more)):
                cost = objective.cost(pair)
                if cost < limit:
                    found.append((cost, dict(zip(names, pair, strict=True))))
    return [pair for _, pair in sorted(found, key=lambda one: one[0])]


def _changed(base: Schedule, step: int) -> BranchSchedule:
    """A schedule with one step the other way."""
    rules = dict(zip(base.full, base.rules, strict=True))
    if base.mask[step]:
        del rules[step]
    else:
        rules[step] = rules[max(place for place in rules if place < step)]
    return BranchSchedule(
        tuple(int(place in rules) for place in range(len(base.mask))), tuple(rules[k] for k in sorted(rules))
    )
