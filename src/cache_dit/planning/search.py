"""Which steps to compute, how to fill the gaps between them, and what PSNR that may give: numbers only.

The objective of a schedule is a sum over its cached steps t of

    w_t² · (|F_t − Σ_j c_j F_j|² + κ · E · dᵀ(I + 11ᵀ)d)

F_j are the features of the last full steps, c the weights of the gap's rule, d those of all but the newest, E the mean
energy of a one-step change. The first term is the error of one prediction in an uncached run, a quadratic form in the
inner products of the features. The second is what the loop adds by being closed: the anchors were moved by earlier
errors, by about κE each, and an extrapolation hands that on, amplified.

Both belong to one gap, so a shortest path over (the last full steps) finds the best schedules exactly, as in LeMiCa
(arXiv 2511.00090) and DPCache, here with the rule of each gap chosen along the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cache_dit.config.base import bad_value, check_integer, check_number
from cache_dit.config.masks import steps_mask
from cache_dit.engine.plans.schedule import GapRule
from cache_dit.planning.gram import Array

Choices = npt.NDArray[np.int16]

MAX_ORDER = 2
"""The highest order of a rule: three anchors."""

_PRIOR = 36.0
"""How firmly a forecast's slope is held to 1, in dB²: that of an objective that is the squared error up to a factor."""

_FLOOR = 1e-30


@dataclass(frozen=True)
class Schedule:
    """Full steps and the rules of the gaps after them, with what an objective says of it.

    Args:
        mask: 1 for a full step, one for each step.
        rules: one for each full step: how the cached steps after it are filled.
        cost: the objective's value; NaN where none was asked.
    """

    mask: tuple[int, ...]
    rules: tuple[GapRule, ...]
    cost: float = field(default=float("nan"), compare=False)

    @property
    def full(self) -> tuple[int, ...]:
        """The full steps."""
        return tuple(step for step, computed in enumerate(self.mask) if computed)


@dataclass(frozen=True)
class Objective:
    """What a schedule costs.

    Args:
        gram: inner products of the features, steps².
        weights: w, how much an error at each step moves the result.
        kappa: κ, how much weights on older steps are charged.
        rules: the rules to choose from for each gap, the preferred one of equals first.
        name: for people.

    Raises:
        ConfigError: shapes do not fit, there is no rule, or one is of a higher order than 2.
    """

    gram: Array
    weights: Array
    kappa: float
    rules: tuple[GapRule, ...]
    name: str = ""

    def __post_init__(self) -> None:
        check_number("kappa", self.kappa, minimum=0)
        if self.gram.shape != (len(self.weights),) * 2 or len(self.weights) < 2:
            raise bad_value("gram", self.gram.shape, f"shape ({len(self.weights)}, {len(self.weights)}), at least 2")
        if not self.rules or max(rule.order for rule in self.rules) > MAX_ORDER:
            raise bad_value("rules", self.rules, f"at least one, of orders 0 to {MAX_ORDER}")

    @property
    def steps(self) -> int:
        """The steps of a run."""
        return len(self.weights)

    @cached_property
    def energy(self) -> float:
        """E: the mean of |F_t − F_{t−1}|²."""
        diagonal = np.diag(self.gram)
        return float(np.mean(diagonal[1:] + diagonal[:-1] - 2 * np.diag(self.gram, -1)))

    @cached_property
    def depth(self) -> int:
        """How many anchors besides the newest matter: 1 or 2."""
        return max(1, *(rule.order for rule in self.rules))

    @cached_property
    def gaps(self) -> list[tuple[Array, Choices]]:
        """For each newest anchor c: the cost of the gap after it and the index of its best rule.

        Shape (third anchor, second anchor, next full step − c − 1); an anchor is its step + 1, 0: there is none. Where
        no rule has order 2 the third axis has one entry. What cannot be is infinite.
        """
        return [self._gaps_after(newest) for newest in range(self.steps - 1)]

    def cost(self, schedule: Schedule) -> float:
        """The objective's value for a schedule, whose rules may be any of order 0 to 2."""
        full = schedule.full
        total = 0.0
        for index, (newest, following) in enumerate(zip(full, (*full[1:], self.steps), strict=True)):
            if following == newest + 1:
                continue
            older = full[max(0, index - 2) : index]
            second = np.array([older[-1] if older else -1])
            third = np.array([older[-2] if len(older) > 1 else -1])
            errors = self._errors(newest, third, second, schedule.rules[index])
            total += float((errors[0, 0, : following - newest - 1] * self._squares(newest, following)).sum())
        return total

    def _squares(self, newest: int, following: int) -> Array:
        squares: Array = self.weights[newest + 1 : following] ** 2
        return squares

    def _gaps_after(self, newest: int) -> tuple[Array, Choices]:
        second = np.arange(-1, newest)
        third = second if self.depth == 2 else np.array([-1])
        squares = self._squares(newest, self.steps)
        best: Array | None = None
        choice = np.zeros(())
        for number, rule in enumerate(self.rules):
            summed = np.cumsum(self._errors(newest, third, second, rule) * squares, axis=-1)
            costs = np.concatenate([np.zeros((*summed.shape[:-1], 1)), summed[..., :-1]], axis=-1)
            if best is None:
                best, choice = costs, np.zeros(costs.shape, dtype=np.int16)
                continue
            better = costs < best * (1 - 1e-12)
            best, choice = np.where(better, costs, best), np.where(better, number, choice)
        if best is None:
            raise bad_value("rules", self.rules, "at least one")
        possible = third[:, None] < second[None, :]
        possible |= (second[None, :] == -1) & (third[:, None] == -1) | (third[:, None] == -1) & (self.depth == 1)
        return np.where(possible[..., None], best, np.inf), choice.astype(np.int16)

    def _errors(self, newest: int, third: npt.NDArray[np.int_], second: npt.NDArray[np.int_], rule: GapRule) -> Array:
        """The summand of each later step t, without w_t²; shape (third, second, t − newest − 1)."""
        gram, c = self.gram, newest
        moved = gram - gram[:, c : c + 1] - gram[c : c + 1, :] + gram[c, c]  # products of F − F_c
        target = np.arange(c + 1, self.steps)
        a, b, t = third[:, None, None], second[None, :, None], target[None, None, :]
        order = np.minimum(rule.order, (b >= 0).astype(int) + ((a >= 0) & (b >= 0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            bent = (order == 2) & (a < b)
            on_b = np.where(bent, (t - c) * (t - a) / ((b - c) * (b - a)), (t - c) / (b - c))
            on_a = np.where(bent, (t - c) * (t - b) / ((a - c) * (a - b)), 0.0)
        on_b = np.where(order >= 1, on_b, 0.0) * rule.damping
        on_a = on_a * rule.damping
        error = moved[t, t] - 2 * (on_b * moved[b, t] + on_a * moved[a, t])
        error = error + on_b**2 * moved[b, b] + on_a**2 * moved[a, a] + 2 * on_a * on_b * moved[a, b]
        amplified = on_a**2 + on_b**2 + (on_a + on_b) ** 2
        found: Array = np.maximum(error, 0.0) + self.kappa * self.energy * amplified
        return found


def best_schedules(objective: Objective, full_steps: Iterable[int], count: int = 1) -> dict[int, list[Schedule]]:
    """The schedules of least cost for each number of full steps, the first and the last step among them.

    Exact: every schedule is one path, whose gaps have their best rules.

    Args:
        objective: what they cost.
        full_steps: numbers of full steps, from 2 to the run's steps.
        count: how many of each, best first; fewer where there are not as many. All masks differ.

    Raises:
        ConfigError: a number of full steps cannot be.
    """
    wanted = sorted(set(full_steps))
    check_integer("count", count, minimum=1)
    for number in wanted:
        if not 2 <= number <= objective.steps:
            raise bad_value("full_steps", number, f"an integer from 2 to {objective.steps}")
    paths = _Paths(objective, count)
    found = {}
    for number in range(2, max(wanted, default=1) + 1):
        paths.extend()
        if number in wanted:
            found[number] = paths.finished()
    return found


class _Paths:
    """The best paths to every state, one more full step with each ``extend``.

    A state is the newest full step c and those before it; ``values[c]`` has shape (third, second, rank), as
    `Objective.gaps`. ``origins`` tells where each came from: the index of the anchor that fell out, times ranks, plus
    the rank there.
    """

    def __init__(self, objective: Objective, count: int) -> None:
        self.objective = objective
        self.count = count
        self.values = self._empty()
        self.values[0][0, 0, 0] = 0.0
        self.origins: list[list[npt.NDArray[np.int32]]] = []

    def _empty(self) -> list[Array]:
        deep = self.objective.depth == 2
        return [np.full((c + 1 if deep else 1, c + 1, self.count), np.inf) for c in range(self.objective.steps)]

    def extend(self) -> None:
        """Let every path make one more full step."""
        deep, ranks = self.objective.depth == 2, self.count
        values = self._empty()
        origins = [np.zeros(value.shape, dtype=np.int32) for value in values]
        for c, (costs, _) in enumerate(self.objective.gaps):
            # (third, second, rank, next) → what stays of the state first, then next, then what falls out with rank
            total = self.values[c][..., None] + costs[:, :, None, :]
            order = (1, 3, 0, 2) if deep else (0, 3, 1, 2)
            total = total.transpose(order).reshape(total.shape[order[0]], costs.shape[-1], -1)
            best = np.argsort(total, axis=-1, kind="stable")[..., :ranks]
            costs_of_best = np.take_along_axis(total, best, axis=-1)
            for ahead in range(costs.shape[-1]):
                width = best.shape[-1]
                values[c + 1 + ahead][:, c + 1, :width][: len(best)] = costs_of_best[:, ahead]
                origins[c + 1 + ahead][:, c + 1, :width][: len(best)] = best[:, ahead]
        self.values = values
        self.origins.append(origins)

    def finished(self) -> list[Schedule]:
        """The best paths that are at the last step."""
        last = self.objective.steps - 1
        values = self.values[last]
        order = np.argsort(values, axis=None, kind="stable")[: self.count]
        places = [np.unravel_index(index, values.shape) for index in order if np.isfinite(values.flat[index])]
        return [self._schedule(tuple(map(int, place))) for place in places]

    def _schedule(self, place: tuple[int, ...]) -> Schedule:
        third, second, rank = place
        newest = self.objective.steps - 1
        cost = float(self.values[newest][third, second, rank])
        full, rules = [newest], [self.objective.rules[0]]
        for origins in reversed(self.origins):
            fallen, rank = divmod(int(origins[newest][third, second, rank]), self.count)
            following, newest = newest, second - 1
            third, second = (fallen, third) if self.objective.depth == 2 else (0, fallen)
            rules.append(self.objective.rules[self.objective.gaps[newest][1][third, second, following - newest - 1]])
            full.append(newest)
        mask = tuple(int(step in full) for step in range(self.objective.steps))
        return Schedule(mask, tuple(reversed(rules)), cost)


def plain(schedule: Schedule, default: GapRule) -> Schedule:
    """The same schedule with the default rule wherever a rule makes no difference.

    That is after a full step that another follows at once, and after the first one, which has nothing to extrapolate.
    """
    after = pairwise((*schedule.full, len(schedule.mask)))
    rules = tuple(
        default if step == 0 or following == step + 1 else rule
        for (step, following), rule in zip(after, schedule.rules, strict=True)
    )
    return Schedule(schedule.mask, rules, schedule.cost)


def even(steps: int, full_steps: int, rule: GapRule, *, warmup: int = 1, bend: float = 1.0) -> Schedule:
    """Full steps as evenly spaced as can be after a warm-up, the last step among them, with one rule for all gaps.

    Above 1, ``bend`` lets the gaps grow from the first to the last.
    """
    mask = steps_mask(total_steps=steps, mask_policy="even", full_steps=full_steps, warmup=warmup, bend=bend) or []
    return Schedule(tuple(mask), (rule,) * full_steps)


def neighbours(schedule: Schedule, rules: Sequence[GapRule]) -> list[Schedule]:
    """Schedules one move away: a full step shifted, or moved elsewhere, or a gap's rule changed."""
    full, steps = schedule.full, len(schedule.mask)
    rule_at = dict(zip(full, schedule.rules, strict=True))
    found: dict[Schedule, None] = {}
    for step in full[1:-1]:
        for other in range(full[0] + 1, steps - 1):
            if schedule.mask[other]:
                continue
            moved = dict(rule_at)
            near = abs(other - step) <= 2  # a step moved elsewhere parts a gap in two, with the rule that it had
            moved[other] = rule_at[step if near else max(known for known in full if known < other)]
            del moved[step]
            mask = tuple(int(place in moved) for place in range(steps))
            found[Schedule(mask, tuple(moved[place] for place in sorted(moved)))] = None
    for index, (step, following) in enumerate(pairwise(full)):
        if following - step > 1:
            for rule in rules:
                if rule != schedule.rules[index]:
                    changed = (*schedule.rules[:index], rule, *schedule.rules[index + 1 :])
                    found[Schedule(schedule.mask, changed)] = None
    return list(found)


@dataclass(frozen=True)
class Forecast:
    """PSNR = offset − slope · 10 log10(objective).

    Args:
        objective: which one.
        offset, slope: of the fit.
        spread: the root mean square of what the fit leaves over, in dB.
    """

    objective: Objective
    offset: float
    slope: float
    spread: float

    def psnr(self, schedule: Schedule, grams: Sequence[Array] = ()) -> Array:
        """The predicted PSNR of a schedule, for each of some items by their inner products, or else for all as one."""
        objectives = [replace(self.objective, gram=gram) for gram in grams] or [self.objective]
        levels = np.array([decibels(objective.cost(schedule)) for objective in objectives])
        found: Array = self.offset - self.slope * levels
        return found

    def at(self, cost: float) -> float:
        """The predicted PSNR at a value of the objective."""
        return self.offset - self.slope * decibels(cost)


def decibels(cost: float) -> float:
    """A squared error in dB."""
    return float(10 * np.log10(max(cost, _FLOOR)))


def fitted(objective: Objective, schedules: Sequence[Schedule], measured: Sequence[float]) -> Forecast:
    """The fit of one objective to what was measured of some schedules, in dB."""
    x = np.array([decibels(objective.cost(schedule)) for schedule in schedules])
    y = np.asarray(measured, dtype=np.float64)
    moved, level = x - x.mean(), y - y.mean()
    slope = float((_PRIOR - moved @ level) / (_PRIOR + moved @ moved))
    offset = float(y.mean() + slope * x.mean())
    spread = float(np.sqrt(np.mean((y - offset + slope * x) ** 2)))
    return Forecast(objective, offset, slope, spread)


def best_fit(objectives: Sequence[Objective], schedules: Sequence[Schedule], measured: Sequence[float]) -> Forecast:
    """The fit of the objective that leaves the least over; of equals the first."""
    fits = [fitted(objective, schedules, measured) for objective in objectives]
    return min(fits, key=lambda fit: fit.spread)
