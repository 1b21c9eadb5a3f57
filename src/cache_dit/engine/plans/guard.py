"""The guard of a plan: it watches how well each gap was predicted, estimates the picture's final error, and acts.

Numbers only. At each full step after a cached one the lane measures by how much the prediction that would have been
used misses the truth; the guard reads that when the next step begins. An estimate is not a promise: `conformal` makes
one of it, from calibration pictures whose true error is known (split conformal prediction: Vovk, Gammerman and Shafer,
*Algorithmic Learning in a Random World*, 2005; Lei et al., arXiv 1604.04173, section 2.2). That a miss at a full step
tells which samples need more of them is SpeCa's idea (arXiv 2509.11628).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from cache_dit.config.base import bad_value, check_integer, check_number
from cache_dit.config.cache import check_share
from cache_dit.errors import ConfigError

if TYPE_CHECKING:
    from cache_dit.engine.plans.plan import Plan

CAP = 100.0
"""PSNRs above this, infinite ones included, count as this many dB: such pictures are the same to anyone."""

FAR = 3.0
"""So many dB above what it acts at the guard takes a picture for far better than asked."""

EARLY = 0.1
"""The guard does not act before this share of the usual error is behind it: less tells nothing of a picture."""


@dataclass(frozen=True)
class GuardCalibration:
    """What the guard learned from pictures whose true error is known; see `guard_run.calibrate_guard`.

    Args:
        full_steps: those of the plan's point that it was made with.
        level: the share of pictures that it was made for.
        scale: per step, what a relative error of its prediction counts for in the final picture.
        pace: per step, the share of a picture's whole error that is usually behind it then, ascending to 1.
        branches: the guidance branches that are listened to; none: all.
        offset, slope: the estimate in dB is offset + slope · (−10 log₁₀ of the weighted error).
        target: the PSNR that the guard works for, in dB.
        margin: it acts where the estimate is less than so many dB above the target.
        scores: for each held-out picture, by how many dB its true PSNR was below the estimate, under the guard.
        psnrs: the true PSNRs of these pictures, in dB, in the same order.

    Raises:
        ConfigError: a field cannot work.
    """

    full_steps: int
    scale: tuple[float, ...]
    pace: tuple[float, ...]
    offset: float
    slope: float
    target: float
    level: float = 0.9
    margin: float = 0.0
    branches: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    psnrs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("scale", "pace", "scores", "psnrs", "branches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_integer("full_steps", self.full_steps, minimum=1)
        check_share("level", self.level)
        if not self.scale or any(not weight >= 0 or math.isinf(weight) for weight in self.scale):
            raise bad_value("scale", self.scale, "one number >= 0 for each step")
        if len(self.pace) != len(self.scale) or list(self.pace) != sorted(self.pace):
            raise bad_value("pace", self.pace, f"{len(self.scale)} ascending numbers, as many as scale has")
        check_number("slope", self.slope, minimum=0)
        for name in ("offset", "target", "margin"):
            check_number(name, getattr(self, name))
        if len(self.scores) != len(self.psnrs):
            raise bad_value("scores", self.scores, f"{len(self.psnrs)} numbers, as many as psnrs has")

    def estimate(self, error: float) -> float:
        """The PSNR in dB that a weighted error stands for, at most `CAP`; −infinity where it is no finite number."""
        if not math.isfinite(error) or error < 0:
            return -math.inf
        if self.slope == 0:
            return min(self.offset, CAP)
        return CAP if error == 0 else min(self.offset - 10 * self.slope * math.log10(error), CAP)

    def below(self, level: float | None = None) -> float:
        """By how many dB at most a picture is below its estimate, for at least this share of pictures.

        Raises:
            ConfigError: there are too few held-out pictures for the level.
        """
        return conformal(self.scores, self.level if level is None else level)

    def promise(self, level: float | None = None) -> float:
        """The PSNR in dB that a picture under the guard has with at least this probability.

        Raises:
            ConfigError: there are too few held-out pictures for the level.
        """
        return -conformal([-psnr for psnr in self.psnrs], self.level if level is None else level)

    def adapted(self, old: Sequence[float], new: Sequence[float]) -> GuardCalibration:
        """An estimate of the calibration for a run of other steps over the same noise levels.

        Args:
            old: the noise level of each step that it was made with, descending.
            new: those of the run to come.
        """
        places = [_place(old, level) for level in new]
        share = len(old) / len(new)  # a step that is half as long counts for half as much
        scale = tuple(share * _between(self.scale, place) for place in places)
        return replace(self, scale=scale, pace=tuple(_between(self.pace, place) for place in places))


def conformal(scores: Sequence[float], level: float) -> float:
    """The score that at least a share `level` of further pictures does not exceed, on average over calibrations.

    Split conformal prediction: of n exchangeable scores the ⌈(n + 1) · level⌉-th smallest.

    Raises:
        ConfigError: there are too few scores for the level; the message says how many are needed.
    """
    check_share("level", level)
    count = len(scores)
    rank = math.ceil((count + 1) * level - 1e-9)
    if rank > count:
        needed = math.ceil(level / (1 - level) - 1e-9)
        raise ConfigError(
            f"{count} held-out pictures are too few to promise anything for a share of {level:g}: calibrate with "
            f"at least {needed} held-out ones (twice as many prompts), or ask for a level of at most "
            f"{count / (count + 1):.2f}"
        )
    return sorted(scores)[rank - 1]


def gap_weight(scale: Sequence[float], last: int, step: int) -> float:
    """What the relative squared miss at a full step counts for: (Σ_t scale_t · (t − last) / (step − last))².

    The sum is over the cached steps t between the full steps `last` and `step`. A prediction's error is taken to grow
    evenly with the distance from `last`, and the errors of one gap to point one way. The weight is 0 where no step was
    cached.
    """
    inner = range(last + 1, step)
    total = sum(scale[min(t, len(scale) - 1)] * (t - last) for t in inner)
    return (total / (step - last)) ** 2 if inner else 0.0


class Sent(Protocol):
    """Numbers on their way to the host; see `measure.Landing`."""

    def numbers(self) -> list[float]:
        """The numbers, once they are there."""


@dataclass(frozen=True)
class Miss:
    """What was measured at one full step of one branch.

    Args:
        step: the full step.
        last: the full step before it.
        branch: the branch's name.
        errors: the relative squared miss, Σ|F − F̂|² / Σ|F|²: one number, or one per sample.
    """

    step: int
    last: int
    branch: str
    errors: tuple[float, ...]


@dataclass
class Guard:
    """One request's guard: fed by its lanes, asked by its policies once a step.

    Args:
        calibration: what it acts and estimates by; None: it only keeps what was measured.
        optional: the full steps that may be dropped where a picture does far better than asked, each with the next
            full step of the plan; see `optional_steps`.
        level: the share of pictures that its promises are for; None: the calibration's.
        acts: whether it changes the plan, or only watches.
    """

    calibration: GuardCalibration | None = None
    optional: Mapping[int, int] = field(default_factory=dict)
    level: float | None = None
    acts: bool = True
    #: What was measured and read so far.
    misses: list[Miss] = field(default_factory=list)
    #: The steps that were computed though the plan would have cached them, and the other way round.
    inserted: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    #: How often numbers were taken from where they landed.
    reads: int = 0
    _sent: list[tuple[int, int, str, Sent]] = field(default_factory=list)
    _step: int = -1
    _full: int = -1  # the last step that was to be computed
    _verdict: str = "planned"

    def decide(self, step: int, planned: bool) -> bool:
        """Whether a step is computed; its branches act alike where the guard changes anything.

        Args:
            step: the step's index in its request.
            planned: whether the plan computes it.
        """
        if step != self._step:
            self.settle()
            self._step, self._verdict = step, self._judged(step)
        computes = planned
        if self._verdict == "insert" and not planned:
            computes = True
            self._enter(self.inserted, step)
        if self._verdict == "drop" and planned:
            computes = False
            self._enter(self.dropped, step)
        if computes:
            self._full = step
        return computes

    @staticmethod
    def _enter(steps: list[int], step: int) -> None:
        if step not in steps:
            steps.append(step)

    def _judged(self, step: int) -> str:
        """What to do about a step, by all that is known when it begins."""
        if self.calibration is None or not self.acts or self.calibration.slope == 0:
            return "planned"
        expected, asked = self._pace(), self.calibration.target + self.calibration.margin
        if expected < EARLY:
            return "planned"
        errors = [error / expected for error in self.errors]
        if not self._worst(errors) >= asked:
            return "insert"
        rests = bool(self.dropped) and self.dropped[-1] >= self._full  # nothing was measured since the last one
        if step not in self.optional or rests:
            return "planned"
        longer = self._without(self.calibration, step)
        return "drop" if self._worst(error + longer for error in errors) >= asked + FAR else "planned"

    def _without(self, calibration: GuardCalibration, step: int) -> float:
        """What the gap that dropping a step makes is expected to add to the weighted error, by the last gap's miss.

        The squared miss of a prediction of order 1 grows with the fourth power of the distance.
        """
        heard = _heard(self.misses, calibration.branches)
        if not heard:
            return math.inf
        newest = [miss for miss in heard if miss.step == heard[-1].step]
        end, known = self.optional[step], sum(max(miss.errors) for miss in newest)
        reach = (end - self._full) / min(miss.step - miss.last for miss in newest)
        return known * reach**4 * gap_weight(calibration.scale, self._full, end)

    def _pace(self) -> float:
        """The share of a picture's error that is usually behind it at the last full step."""
        pace = () if self.calibration is None else self.calibration.pace
        return pace[min(self._full, len(pace) - 1)] if pace and self._full >= 0 else 0.0

    def wants(self, step: int, last: int | None) -> bool:
        """Whether there is anything to measure at a full step: cached ones since the last full one."""
        return last is not None and step - last > 1

    def note(self, step: int, last: int, branch: Hashable, sent: Sent) -> None:
        """Take note of what is being measured at a full step; read when the next step begins."""
        name = str(branch[0] if isinstance(branch, tuple) else branch)
        self._sent.append((step, last, name, sent))
        self._full = max(self._full, step)

    def settle(self) -> None:
        """Read what is on its way."""
        sent, self._sent = self._sent, []
        for step, last, branch, numbers in sent:
            self.misses.append(Miss(step, last, branch, tuple(numbers.numbers())))
            self.reads += 1

    @property
    def errors(self) -> list[float]:
        """The weighted error of each sample, as far as it was read; see `weighted_errors`."""
        calibration = self.calibration
        if calibration is None:
            return [0.0]
        return weighted_errors(self.misses, calibration.scale, calibration.branches)

    def _worst(self, errors: Iterable[float]) -> float:
        """The estimated PSNR of the worst sample, in dB."""
        calibration = self.calibration
        return math.nan if calibration is None else min(map(calibration.estimate, errors), default=CAP)

    @property
    def estimated_psnr(self) -> float | None:
        """What the picture is estimated to have lost, as its PSNR in dB, the worst of a batch; None: not calibrated."""
        self.settle()
        return None if self.calibration is None else self._worst(self.errors)

    @property
    def promise_level(self) -> float | None:
        """The share of pictures that promises are for."""
        return self.level if self.level is not None or self.calibration is None else self.calibration.level

    @property
    def promised_psnr(self) -> float | None:
        """What the picture's PSNR is not below, for a share `level` of pictures; None: nothing is promised."""
        estimate = self.estimated_psnr
        if self.calibration is None or estimate is None or not self.calibration.scores:
            return None
        return estimate - self.calibration.below(self.level)


def guard_for(plan: Plan) -> Guard | None:
    """The guard of a request that runs a plan; None where the plan asks for none (`Plan.with_guard`).

    Raises:
        ConfigError: the plan was not calibrated for the guard, or with another point, or with too few pictures for the
            level.
    """
    if plan.guard_level is None:
        return None
    calibration = plan.guard
    if calibration is None or calibration.full_steps != plan.chosen:
        made = "was never calibrated" if calibration is None else f"was made with {calibration.full_steps} full steps"
        raise ConfigError(
            f"the plan's guard {made}, and the chosen point has {plan.chosen} full steps: call "
            "cache_dit.calibrate_guard(pipe, plan, prompts) first, or run it without (plan.with_guard(None))"
        )
    calibration.below(plan.guard_level)
    return Guard(calibration, optional_steps(plan), plan.guard_level)


def optional_steps(plan: Plan) -> dict[int, int]:
    """The full steps that the guard may drop, each with the next full step: those that the next faster point lacks.

    Never the first or the last step; none where the chosen point is the fastest.
    """
    full = {point.full_steps: {s for one in point.branches.values() for s in one.full} for point in plan.points}
    chosen = sorted(full[plan.point.full_steps])
    faster = max((count for count in full if count < plan.point.full_steps), default=None)
    if faster is None:
        return {}
    return {step: after for step, after in pairwise(chosen) if step and step not in full[faster]}


def weighted_errors(misses: Iterable[Miss], scale: Sequence[float], branches: Sequence[str] = ()) -> list[float]:
    """The weighted error of each sample: Σ over full steps and branches of `gap_weight` · miss.

    Where none of the branches asked for was called, all count.

    Args:
        misses: what was measured.
        scale: see `GuardCalibration`.
        branches: the branches that count; none: all.
    """
    chosen = _heard(misses, branches)
    totals = [0.0] * max((len(miss.errors) for miss in chosen), default=1)
    for miss in chosen:
        weight = gap_weight(scale, miss.last, miss.step)
        for sample in range(len(totals)):  # one number for the whole batch counts for each sample
            totals[sample] += weight * miss.errors[sample if len(miss.errors) == len(totals) else 0]
    return totals


def _heard(misses: Iterable[Miss], branches: Sequence[str]) -> list[Miss]:
    """Those of the branches that are listened to; all where there are none."""
    misses = list(misses)
    return [miss for miss in misses if miss.branch in branches] or misses


def _place(levels: Sequence[float], level: float) -> float:
    """Where a level lies among descending ones, e.g. 3.5: half-way between those of steps 3 and 4."""
    below = next((index for index, one in enumerate(levels) if one <= level), len(levels) - 1)
    if below == 0 or levels[below] > level:
        return float(below)
    high, low = levels[below - 1], levels[below]
    return below - (level - low) / (high - low)


def _between(values: Sequence[float], place: float) -> float:
    """A sequence between its entries, by linear interpolation; before and beyond it its ends."""
    place = min(max(place, 0.0), len(values) - 1.0)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
