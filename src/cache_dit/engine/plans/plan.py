"""A plan: which steps are computed and how the others are predicted, what that gives, and what it holds for.

Numbers and names only: `planned.py` runs a plan, `plan_file.py` writes it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from cache_dit.config.base import GUARD_IS_GONE, as_number, bad_value, check_integer, check_number
from cache_dit.engine.plans.schedule import BranchSchedule, GapRule
from cache_dit.errors import ConfigError

__all__ = [
    "ANY_BRANCH",
    "BranchSchedule",
    "Conditions",
    "GapRule",
    "Plan",
    "PlanPoint",
    "Quality",
    "branch_name",
    "latent_tokens",
]

VERSION = 1
"""The version of the file format."""

ANY_BRANCH = "*"
"""The name of the schedule for every branch that has none of its own."""

UNNAMED = "default"
"""The branch of calls that nobody named: the only one, or the first of guidance's two as may turn out."""

SIGMA_TOLERANCE = 1e-3
"""How far a run's noise levels may lie from the plan's, as a share of the highest of them."""


@dataclass(frozen=True)
class Quality:
    """How near to the uncached picture a plan comes, over some pictures.

    Args:
        mean, p5, minimum: of the metric: mean, 5th percentile, minimum.
        low, high: the interval that the mean is known to lie in.
        pictures: how many there were.
        metric: which one it is; PSNR in dB.
        lpips: mean LPIPS, where it was measured.
        held_out: whether they were pictures that the search did not see.
        values: the metric of each picture, where they are kept; None: they are not.
    """

    mean: float
    p5: float
    minimum: float
    low: float
    high: float
    pictures: int
    metric: str = "psnr"
    lpips: float | None = None
    held_out: bool = False
    values: tuple[float, ...] | None = None

    def __str__(self) -> str:
        unit = " dB" if self.metric == "psnr" else f" {self.metric}"
        return f"{self.mean:.1f}{unit}, 5th percentile {self.p5:.1f}"


@dataclass(frozen=True)
class PlanPoint:
    """One plan of the curve: so many full steps, this schedule, that quality.

    Args:
        full_steps: how many steps are computed; where branches have masks of their own, on average.
        branches: by the name of the guidance branch, its schedule; `"*"`: that of every branch without one.
        predicted, measured: the quality that was estimated, and that of real runs.
        ideal_speedup: block calls without the plan over block calls with it.
        measured_speedup: by the clock, where it was measured.

    Raises:
        ConfigError: there is no branch, the masks differ in length, or a number cannot work.
    """

    full_steps: int
    branches: Mapping[str, BranchSchedule]
    predicted: Quality | None = None
    measured: Quality | None = None
    ideal_speedup: float = 1.0
    measured_speedup: float | None = None

    def __post_init__(self) -> None:
        check_integer("full_steps", self.full_steps, minimum=1)
        check_number("ideal_speedup", self.ideal_speedup, above=0)
        if not self.branches or len({len(schedule.mask) for schedule in self.branches.values()}) > 1:
            masks = {name: schedule.text for name, schedule in self.branches.items()}
            raise bad_value("branches", masks, "at least one branch, and masks of one length")

    @property
    def steps(self) -> int:
        """The length of its masks."""
        return len(next(iter(self.branches.values())).mask)

    @property
    def quality(self) -> Quality | None:
        """The measured quality, else the predicted one."""
        return self.measured or self.predicted

    def schedule(self, branch: Hashable) -> BranchSchedule | None:
        """The schedule of a branch, or of the branch that a variant (a tuple, its name first) is of; None: unknown."""
        return self.branches.get(branch_name(branch), self.branches.get(ANY_BRANCH))


def conformal(scores: Sequence[float], level: float) -> float:
    """The score that at least a share `level` of further ones does not exceed, on average over sets of scores.

    Split conformal prediction: of n exchangeable scores the ⌈(n + 1) · level⌉-th smallest (Vovk, Gammerman and Shafer,
    *Algorithmic Learning in a Random World*, 2005; Lei et al., arXiv 1604.04173, section 2.2).

    Raises:
        ConfigError: the level is not above 0 and below 1, or there are too few scores for it; the message says how many
            are needed.
    """
    check_number("level", level, above=0)
    if as_number("level", level) >= 1:
        raise bad_value("level", level, "a share below 1, e.g. 0.9: no finite number of pictures can promise all")
    count = len(scores)
    rank = math.ceil((count + 1) * level - 1e-9)
    if rank > count:
        needed = math.ceil(level / (1 - level) - 1e-9)
        raise ConfigError(
            f"{count} pictures kept apart are too few to promise anything for a share of {level:g}: plan with at least "
            f"{needed} kept apart (twice as many prompts), or ask for a level of at most {count / (count + 1):.2f}"
        )
    return sorted(scores)[rank - 1]


def branch_name(branch: Hashable) -> str:
    """The name of a branch as plans know it."""
    return str(branch[0] if isinstance(branch, tuple) else branch)


@dataclass(frozen=True)
class Conditions:
    """What a plan holds for, or what a run is like; None: unknown, holds for any.

    Args:
        model_class: the transformer's class name.
        weights: the digest of its weights; see `digest.weights_digest`.
        num_inference_steps: steps of a run.
        scheduler: the scheduler's class name.
        shift: the shift of its configuration.
        sigmas: its noise levels, one per step. Not compared where `resolution` is None: many depend on it.
        branches: the guidance branches that the first step of a run calls; not in an order.
        resolution: how many tokens the latent has; see `latent_tokens`.
        dtype: of the transformer's parameters, e.g. `"bfloat16"`.
        predictors: the names of the rules that were searched; not compared with a run's.
    """

    model_class: str | None = None
    weights: str | None = None
    num_inference_steps: int | None = None
    scheduler: str | None = None
    shift: float | None = None
    sigmas: tuple[float, ...] | None = None
    branches: tuple[str, ...] | None = None
    resolution: int | None = None
    dtype: str | None = None
    predictors: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("sigmas", "branches", "predictors"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", tuple(round(float(sigma), 6) for sigma in self.sigmas))
        if self.branches is not None:
            object.__setattr__(self, "branches", tuple(sorted(map(branch_name, self.branches))))

    def differences(self, other: Conditions) -> list[str]:
        """What is known of both and differs, as sentences: `num_inference_steps=28, not 50`."""
        found = []
        for name in ("model_class", "weights", "num_inference_steps", "scheduler", "shift", "branches", "resolution"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "branches" and _one_unnamed(mine, theirs):
                continue
            if mine is not None and theirs is not None and mine != theirs:
                found.append(f"{name}={mine!r}, not {theirs!r}")
        if self.dtype is not None and other.dtype is not None and self.dtype != other.dtype:
            found.append(f"dtype={self.dtype!r}, not {other.dtype!r}")
        if self.sigmas and other.sigmas and self.resolution is not None:
            found += _differing_sigmas(self.sigmas, other.sigmas)
        return found


def _one_unnamed(mine: Sequence[str] | None, theirs: Sequence[str] | None) -> bool:
    """Whether both have one branch, and one of them no name for it: a loop of one's own needs none."""
    return (
        bool(mine and theirs)
        and len(mine or ()) == len(theirs or ()) == 1
        and UNNAMED in (*(mine or ()), *(theirs or ()))
    )


def _differing_sigmas(mine: Sequence[float], theirs: Sequence[float]) -> list[str]:
    allowed = SIGMA_TOLERANCE * max(map(abs, mine))
    pairs = enumerate(zip(mine, theirs, strict=False))
    step = next((step for step, (one, other) in pairs if not abs(one - other) <= allowed), None)
    return [] if step is None else [f"sigmas[{step}]={mine[step]:.4f}, not {theirs[step]:.4f}"]


def latent_tokens(shape: Sequence[int]) -> int:
    """How many tokens a latent has: of (batch, tokens, width) the tokens, of (batch, channels, …) its positions."""
    return math.prod(shape[1:2] if len(shape) == 3 else shape[2:])


@dataclass(frozen=True)
class Plan:
    """The plans of a model by their full steps, with what they hold for; one of them is chosen.

    Made by `cache_dit.plan`, kept in a small JSON file, used by `enable_cache(pipe, plan)` or
    `DBCacheConfig(plan=…)`, which take the path as well.

    Args:
        conditions: what it holds for; it is refused elsewhere.
        points: one for each number of full steps.
        chosen: the full steps of the one to run; None: none yet, see `select`.
        cost: what the planning cost, by name, e.g. `{"runs": 42, "seconds": 61.5}`.
        note: what to know of it, e.g. that it is an estimate.
        version: the version of the file format.

    Raises:
        ConfigError: a field cannot work; the message names it.
    """

    conditions: Conditions
    points: tuple[PlanPoint, ...]
    chosen: int | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise bad_value("version", self.version, f"{VERSION}, the format that this release reads; plan anew")
        check_integer("num_inference_steps", self.conditions.num_inference_steps, minimum=1)
        points = tuple(sorted(self.points, key=lambda point: -point.full_steps))
        counts = [point.full_steps for point in points]
        if not points or len(set(counts)) < len(counts):
            raise bad_value("points", counts, "at least one, each with another number of full steps")
        if len({point.steps for point in points}) > 1 or points[0].steps < (self.conditions.num_inference_steps or 0):
            lengths = [point.steps for point in points]
            raise bad_value("masks", lengths, f"one length, of at least {self.conditions.num_inference_steps} steps")
        if self.chosen is not None and self.chosen not in counts:
            raise bad_value("chosen", self.chosen, f"one of the points' full steps: {', '.join(map(str, counts))}")
        object.__setattr__(self, "points", points)

    @property
    def steps(self) -> int:
        """The steps that it has masks for."""
        return self.points[0].steps

    @property
    def point(self) -> PlanPoint:
        """The chosen point.

        Raises:
            ConfigError: none is chosen.
        """
        for point in self.points:
            if point.full_steps == self.chosen:
                return point
        raise ConfigError(
            f"no point of the plan is chosen, and there are {len(self.points)}: pass plan.select(target_psnr=35), "
            f"plan.select(speedup=2.5) or plan.select(full_steps={self.points[-1].full_steps})"
        )

    @property
    def tag(self) -> str:
        """For file names: `12of28`, or `28` with nothing chosen."""
        return str(self.steps) if self.chosen is None else f"{self.chosen}of{self.steps}"

    def select(
        self, *, target_psnr: float | None = None, speedup: float | None = None, full_steps: int | None = None
    ) -> Plan:
        """The same plan with a point chosen by exactly one of these.

        Args:
            target_psnr: the fewest full steps whose mean PSNR (measured, else predicted) is at least this, in dB.
            speedup: the most full steps whose ideal speed-up is at least this.
            full_steps: those of the point.

        Raises:
            ConfigError: none or more than one is given, or no point is as good, as fast, or has as many.
        """
        asked = {"target_psnr": target_psnr, "speedup": speedup, "full_steps": full_steps}
        given = {name: value for name, value in asked.items() if value is not None}
        if len(given) != 1:
            raise bad_value("select", given, f"exactly one of {', '.join(asked)}")
        ((name, value),) = given.items()
        check_number(name, value, above=0)
        found = [point for point in self.points if _reaches(point, name, value)]
        if not found:
            raise bad_value(name, value, f"what a point of the plan reaches:\n{self.summary()}")
        return replace(self, chosen=(found[-1] if name == "target_psnr" else found[0]).full_steps)

    def promise(self, level: float = 0.9) -> float:
        """The PSNR in dB that a further picture of the chosen point reaches with at least this probability.

        By split conformal prediction over the PSNRs of the pictures kept apart when it was planned; see `conformal`.
        It holds for pictures that are like these: of prompts drawn from where theirs came from. The probability is over
        both, those kept apart and the further one.

        Args:
            level: the probability, above 0 and below 1.

        Raises:
            ConfigError: no point is chosen, it does not know the PSNRs of pictures kept apart, or they are too few for
                the level; the message says how many are needed.
        """
        found = self.point.measured
        if found is None or not found.held_out or not found.values or found.metric != "psnr":
            raise ConfigError(
                f"the plan {self.tag} has no PSNRs of pictures kept apart, so that it promises nothing: plan anew with "
                "cache_dit.plan(…), which keeps half of four or more prompts apart"
            )
        return -conformal([-psnr for psnr in found.values], level)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            told = GUARD_IS_GONE if name == "with_guard" else f"a Plan has no attribute {name!r}"
            raise AttributeError(told)

    def adapt(self, num_inference_steps: int, sigmas: Sequence[float] | None = None) -> Plan:
        """An estimate of the plan for another number of steps: full steps where the noise levels are the same.

        Args:
            num_inference_steps: steps of the runs to come.
            sigmas: their noise levels, one per step; None: those of the plan's run, interpolated.

        Returns:
            A plan whose qualities are the old ones, as predictions, and whose note says that it is an estimate. Points
            that do not fit so few steps are left out.

        Raises:
            ConfigError: the number or the levels cannot work, or no point is left.
        """
        from cache_dit.engine.plans.adapt import adapted

        return adapted(self, num_inference_steps, sigmas)

    def check(self, run: Conditions | None = None, **seen: Any) -> None:
        """Raise `ConfigError`, with everything that differs, unless the plan holds for a run like this.

        Args:
            run: what is known of it.
            **seen: further fields of `Conditions`; those that are left out or None are unknown, and not compared.
        """
        different = self.conditions.differences(replace(run or Conditions(), **seen))
        if different:
            raise ConfigError(
                f"the plan {self.tag} was made with {'; '.join(different)}: plan anew, or run what it was made for "
                "(for another number of steps, plan.adapt gives an estimate)"
            )

    def knows(self, branch: Hashable) -> bool:
        """Whether the plan says something for this branch, and it is one that it was made with."""
        name, known = branch_name(branch), self.conditions.branches
        made = known is None or name in known or _one_unnamed(known, (name,))
        return all(point.schedule(name) is not None and (made or name in point.branches) for point in self.points)

    def summary(self) -> str:
        """A table of the points in Markdown; the chosen one is marked."""
        from cache_dit.engine.plans.file import table

        return table(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, with sorted keys."""
        from cache_dit.engine.plans.file import write

        write(self, path)

    def as_dict(self) -> dict[str, Any]:
        """What `save` writes; `of` reads it."""
        from cache_dit.engine.plans.file import to_dict

        return to_dict(self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read the file that `save` wrote.

        Raises:
            ConfigError: the file is missing or no JSON, or a field of it is missing, unknown or cannot work; the
                message names the file and the field.
        """
        from cache_dit.engine.plans.file import read

        return read(path)

    @classmethod
    def of(cls, value: Any) -> Plan:
        """A plan, given as one, as the path of one, or as what `as_dict` gave.

        Raises:
            ConfigError: it is none of them, or cannot work.
        """
        from cache_dit.engine.plans.file import from_dict

        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return from_dict(value)
        if isinstance(value, (str, os.PathLike)):
            return cls.load(value)
        raise bad_value("plan", value, "a Plan, or the path of its JSON file")


def _reaches(point: PlanPoint, name: str, value: float) -> bool:
    if name == "full_steps":
        return point.full_steps == value
    if name == "speedup":
        return point.ideal_speedup >= value
    quality = point.quality
    return quality is not None and quality.metric == "psnr" and quality.mean >= value
