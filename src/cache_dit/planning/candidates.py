"""Candidates raced against each other in real runs, improved by local moves, and judged on pictures apart.

Additive errors mislead where few steps are computed (see docs/plan.md), so what an objective proposes is only a
proposal. Candidates are compared on the same prompts and the same noise, so that a small difference shows in few runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest

import numpy as np

from cache_dit.engine.plans.point import ANY_BRANCH, PlanPoint, Quality
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.planning.search import Forecast, Objective, Schedule, best_fit, best_schedules, even, neighbours, plain
from cache_dit.planning.trials import Trials, key_of, work_of

_FINALISTS = 2
"""So many candidates at least are tried on all prompts of the search."""

_HOPELESS = 0.3
"""A move that is worse by so many dB on the first prompts is not tried on more."""

_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Candidate:
    """A schedule in a race, the same for all branches of guidance.

    Args:
        schedule: the schedule.
        origin: who proposed it, for people.
    """

    schedule: Schedule
    origin: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", plain(self.schedule, GapRule()))

    @classmethod
    def of_point(cls, point: PlanPoint, origin: str) -> Candidate:
        """The schedule of a plan's point; where its branches have their own, that of the first."""
        first = next(iter(point.branches.values()))
        return cls(Schedule(first.mask, first.rules), origin)

    @cached_property
    def branches(self) -> dict[str, BranchSchedule]:
        """As a plan's point has it."""
        return {ANY_BRANCH: BranchSchedule(self.schedule.mask, self.schedule.rules)}

    @cached_property
    def key(self) -> str:
        """What tells it from others."""
        return key_of(self.branches)


@dataclass(frozen=True)
class Outcome:
    """What a race found for one number of full steps.

    Args:
        winner: the candidate that did best on the prompts of the search.
        measured: its quality, on the prompts kept apart where there are any.
        tied: whether it cannot be told from the next best on the prompts of the search.
        tried: how many candidates were run.
    """

    winner: Candidate
    measured: Quality
    tied: bool
    tried: int


@dataclass
class Race:
    """Races candidates within an allowance.

    Args:
        trials: makes the runs.
        objectives: propose and rank.
        rules: for local moves.
        search: the prompts that candidates are chosen on.
        held: those that are kept apart for the judgement.
        seed: of the bootstrap.
    """

    trials: Trials
    objectives: Sequence[Objective]
    rules: Sequence[GapRule]
    search: Sequence[int]
    held: Sequence[int]
    seed: int = 0
    #: Every candidate that was run, by its key.
    known: dict[str, Candidate] = field(default_factory=dict)
    #: What was measured, by a candidate's key and the item.
    measured: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def few(self) -> int:
        """Prompts that every candidate is tried on; twice as many for those that stay: prompts differ a lot."""
        return max(2, len(self.search) // 4)

    def run(self, full_steps: int, allowance: float, more: Sequence[Candidate] = ()) -> Outcome:
        """Race for one number of full steps.

        Args:
            full_steps: how many.
            allowance: uncached runs' worth of work that it may take; a race takes what one candidate needs at least.
            more: candidates beside those that the objectives propose.
        """
        common = Candidate(even(self.trials.steps, full_steps, self.rules[0]), "even")
        each = work_of(common.branches, self.trials.steps)
        first, second = self.search[: self.few], self.search[: 2 * self.few]
        end = self.trials.work + max(allowance - len(self.held) * each, each)
        width = max(_FINALISTS, int((end - self.trials.work) / (each * len(first))))  # had the first round all of it
        before = len(self.known)
        wave = _distinct([*more, *self.proposals(full_steps)])[: max(_FINALISTS, width // 4)]
        ranked = self._ranked(wave, first)
        ranked = self._ranked([*ranked, *self._wave(full_steps, width // 8)], first)
        ranked = self._ranked(_by_mask(ranked)[: max(_FINALISTS, width // 9)], second)
        ranked = self._ranked(ranked[: max(_FINALISTS, width // 12)], self.search)
        best = self._improved(ranked[0], end)
        return self._judged(best, len(self.known) - before)

    def proposals(self, full_steps: int) -> list[Candidate]:
        """What the objectives propose, and even masks: turn by turn, the best of each first."""
        count = 2
        by_objective = [
            [Candidate(one, objective.name) for one in best_schedules(objective, [full_steps], count)[full_steps]]
            for objective in self.objectives
        ]
        middle = self.rules[len(self.rules) // 2]
        plain = [
            Candidate(
                even(self.trials.steps, full_steps, middle, warmup=warmup, bend=bend), f"after {warmup}, bent {bend:g}"
            )
            for warmup, bend in ((1, 1.0), (max(1, full_steps // 2), 1.0), (1, 1.3), (3, 1.3))
            if warmup < full_steps
        ]
        turns = [one[rank] for rank in range(count) for one in by_objective if rank < len(one)]
        return _distinct([*turns[:1], *plain, *turns[1:]])

    def _wave(self, full_steps: int, count: int) -> list[Candidate]:
        """What the objective that agrees best with the runs so far proposes besides."""
        if count < 1:
            return []
        objective = self._agreeing(full_steps)
        found = best_schedules(objective, [full_steps], 4 * count)[full_steps]
        candidates = [Candidate(one, objective.name) for one in found]
        return [one for one in candidates if one.key not in self.known][:count]

    def _agreeing(self, full_steps: int) -> Objective:
        """The objective that agrees best with what was measured at as many full steps."""
        alike = [one for one in self.known.values() if sum(one.schedule.mask) == full_steps]
        if len(alike) < 4:
            return self.objectives[0]
        measured = [self.mean(one, self.search[: self.few]) for one in alike]
        return best_fit(self.objectives, [one.schedule for one in alike], measured).objective

    def forecast(self) -> Forecast:
        """How the objectives' values and measured PSNR go together, over all that was run.

        Fitted on the prompts that all candidates were tried on, then moved by how much harder the others turned out.
        """
        schedules, measured = [], []
        for candidate in self.known.values():
            schedules.append(candidate.schedule)
            measured.append(self.mean(candidate, self.search[: self.few]))
        fit = best_fit(self.objectives, schedules, measured)
        harder = []
        for item in self.search:
            known = [one for key, one in self.known.items() if (key, item) in self.measured]
            missed = [self.measured[one.key, item] - fit.at(fit.objective.cost(one.schedule)) for one in known]
            if missed:
                harder.append(float(np.mean(missed)))
        return replace(fit, offset=fit.offset + float(np.mean(harder)))

    def mean(self, candidate: Candidate, items: Sequence[int]) -> float:
        """Mean PSNR over items."""
        self.known.setdefault(candidate.key, candidate)
        for item in items:
            self.measured[candidate.key, item] = self.trials.psnr(candidate.branches, item)
        return float(np.mean([self.measured[candidate.key, item] for item in items]))

    def _ranked(self, candidates: Sequence[Candidate], items: Sequence[int]) -> list[Candidate]:
        return sorted(candidates, key=lambda one: -self.mean(one, items))

    def _improved(self, best: Candidate, end: float) -> Candidate:
        """Take local moves that make it better, the most promising first, while there is work left."""
        queue = self._moves(best)
        while queue and self._affords(best, end):
            move = queue.pop(0)
            if self._beats(move, best):
                best = move
                queue = self._moves(best)
        return best

    def _affords(self, candidate: Candidate, end: float) -> bool:
        """Whether it could be run on all prompts of the search."""
        return self.trials.work + len(self.search) * work_of(candidate.branches, self.trials.steps) <= end

    def _beats(self, candidate: Candidate, best: Candidate) -> bool:
        """Whether it is better over all prompts of the search; given up on fewer where that tells already."""
        for count in (self.few, 2 * self.few):
            items = self.search[:count]
            if self.mean(candidate, items) <= self.mean(best, items) - _HOPELESS:
                return False
        return self.mean(candidate, self.search) > self.mean(best, self.search)

    def _moves(self, best: Candidate) -> list[Candidate]:
        """The neighbours that were not run, the most promising first."""
        objective = self._agreeing(sum(best.schedule.mask))
        moves = _distinct([Candidate(one, "move") for one in neighbours(best.schedule, self.rules)])
        moves = [move for move in moves if move.key not in self.known]
        moves.sort(key=lambda move: objective.cost(move.schedule))
        # a rule moves little, and the objective likes many of them: every other move is one of the mask
        kinds = [
            [move for move in moves if (move.schedule.mask == best.schedule.mask) is same] for same in (False, True)
        ]
        return [move for pair in zip_longest(*kinds) for move in pair if move is not None]

    def _judged(self, best: Candidate, tried: int) -> Outcome:
        """The best on the prompts of the search, with its quality on those that had no say in the choice."""
        values = [self.trials.psnr(best.branches, item) for item in self.held or self.search]
        return Outcome(best, quality(values, self.seed, held_out=bool(self.held)), self._tied(best), tried)

    def _tied(self, best: Candidate) -> bool:
        """Whether the next best with as many full steps may be as good, of those that ran on all prompts."""
        alike = (one for one in self.known.values() if sum(one.schedule.mask) == sum(best.schedule.mask))
        rivals = [
            [self.measured[one.key, item] for item in self.search]
            for one in alike
            if one.key != best.key and all((one.key, item) in self.measured for item in self.search)
        ]
        if not rivals:
            return False
        own = [self.measured[best.key, item] for item in self.search]
        low, high = interval(np.subtract(own, max(rivals, key=np.mean)), self.seed)
        return low <= 0 <= high


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate.key, candidate)
    return list(found.values())


def _by_mask(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first candidate of each mask, then the others."""
    firsts: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        firsts.setdefault(candidate.schedule.mask, candidate)
    return _distinct([*firsts.values(), *candidates])


def quality(
    values: Sequence[float] | np.ndarray[tuple[int, ...], np.dtype[np.float64]], seed: int = 0, *, held_out: bool
) -> Quality:
    """Mean, 5th percentile, minimum of PSNRs in dB, with the bootstrap interval of the mean (95 %)."""
    found = np.asarray(values, dtype=np.float64)
    low, high = interval(found, seed)
    return Quality(
        mean=float(found.mean()),
        p5=float(np.percentile(found, 5)),
        minimum=float(found.min()),
        low=low,
        high=high,
        pictures=len(found),
        held_out=held_out,
        values=tuple(round(float(value), 3) for value in found) if held_out else None,
    )


def interval(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], seed: int = 0) -> tuple[float, float]:
    """The interval of the mean that 95 % of resamplings lie in."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))
