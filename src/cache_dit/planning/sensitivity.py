"""How much an error at a step moves the result, and how the branches of guidance share in it: a few real runs.

Guidance mixes the branches into one, v = Σ_b ρ_b v_b, and it is the error of this mixture that counts: at a guidance of
4.5, ρ = (4.5, −3.5), and most of what the branches get wrong alike cancels. Where an uncached run does not show ρ (see
`MixtureWatch`), one step of one branch is cached, and the size and direction of what comes out tell it, roughly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache_dit.engine.plans.point import ANY_BRANCH
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.planning.gram import Array, combined
from cache_dit.planning.trials import Trials

_RULE = GapRule(1, 1.0)
_PROBES = 6
"""So many steps are probed; between, the logarithm is interpolated."""

_SHARES_AT = (0.5, 0.7, 0.9)
"""Where in a run the branches' shares are probed: late enough that the rest of it hands a change on nearly unbent."""


@dataclass(frozen=True)
class Probed:
    """What the probes found.

    Args:
        branches: the names, in the order of ρ.
        rho: how the branches share in the result, Σ|ρ| = 1.
        sensitivity: per step, the root mean square of the result's change over the norm of the mixture's error.
        steps: the steps that were probed.
    """

    branches: tuple[str, ...]
    rho: tuple[float, ...]
    sensitivity: tuple[float, ...]
    steps: tuple[int, ...]


def probe(trials: Trials, grams: Sequence[Array]) -> Probed:
    """Find sensitivities and shares.

    Args:
        trials: makes the runs; they take turns over the items that there are ``grams`` of.
        grams: of each item to probe with, the inner products of its features.
    """
    branches, steps = trials.branches, trials.steps
    known = trials.facts["shares"]
    rho = _shares(trials, grams) if known is None else tuple(known)
    probed = tuple(sorted({int(step) for step in np.linspace(1, steps - 2, _PROBES).round()}))
    found = []
    for number, step in enumerate(probed):
        index = number % len(grams)
        change = trials.response({ANY_BRANCH: _one_cached(steps, step)}, index)
        error = _energy(combined(grams[index], rho), step)
        found.append(np.sqrt(np.mean(change**2) / error) if error > 0 else 0.0)
    return Probed(tuple(branches), rho, _interpolated(steps, probed, found), probed)


def _one_cached(steps: int, step: int) -> BranchSchedule:
    return BranchSchedule(tuple(int(one != step) for one in range(steps)), (_RULE,))


def _row(steps: int, step: int) -> Array:
    """What a cached step gets wrong, over the features: itself, minus its prediction."""
    row = np.zeros(steps)
    row[step] = 1.0
    anchors = [place for place in (step - 2, step - 1) if place >= 0]
    row[anchors] -= _RULE.predictor.coefficients([float(place) for place in anchors], float(step))
    return row


def _energy(gram: Array, step: int) -> float:
    row = _row(len(gram), step)
    return float(row @ gram @ row)


def _shares(trials: Trials, grams: Sequence[Array]) -> tuple[float, ...]:
    """ρ up to a factor: |ρ_b| from the size of what one branch's error changes, the sign from its direction."""
    branches, steps = trials.branches, trials.steps
    if len(branches) == 1:
        return (1.0,)
    plain = BranchSchedule((1,) * steps)
    places = sorted({max(1, round(share * (steps - 1))) for share in _SHARES_AT})
    logs, signs = [], []
    for number, step in enumerate(places):
        index = number % len(grams)
        changes = []
        for branch in branches:
            masks = {name: _one_cached(steps, step) if name == branch else plain for name in branches}
            changes.append(trials.response(masks, index))
        rows = np.kron(np.eye(len(branches)), _row(steps, step))
        errors = rows @ grams[index] @ rows.T
        sizes = [np.sqrt(change @ change / error) for change, error in zip(changes, np.diag(errors), strict=True)]
        logs.append(np.log(np.maximum(sizes, 1e-12)))
        signs.append([np.sign(changes[0] @ change) * np.sign(errors[0, b]) for b, change in enumerate(changes)])
    sizes = np.exp(np.mean(logs, axis=0))
    directions = np.where(np.sum(signs, axis=0) < 0, -1.0, 1.0)
    return tuple(float(share) for share in sizes * directions / np.sum(sizes))


def _interpolated(steps: int, probed: Sequence[int], found: Sequence[float]) -> tuple[float, ...]:
    """A sensitivity for each step, by interpolation of the logarithm."""
    known = [(step, value) for step, value in zip(probed, found, strict=True) if value > 0]
    if not known:
        return (1.0,) * steps
    places, values = zip(*known, strict=True)
    return tuple(float(value) for value in np.exp(np.interp(np.arange(steps), places, np.log(values))))
