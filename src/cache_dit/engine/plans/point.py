"""One point of a plan: so many full steps, their schedule, and how near to the uncached picture it comes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from cache_dit.config.base import as_number, bad_value, check_integer, check_number
from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.engine.plans.scope import branch_name
from cache_dit.errors import ConfigError

ANY_BRANCH = "*"
"""The name of the schedule for every branch that has none of its own."""


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
        return f"{self.mean:.1f}{unit}, mean of {self.of} (5th percentile {self.p5:.1f})"

    @property
    def of(self) -> str:
        """Which pictures it is of: `16 held-out pictures`, or `4 pictures of the search`."""
        return f"{self.pictures} held-out pictures" if self.held_out else f"{self.pictures} pictures of the search"

    def promise(self, level: float) -> float | None:
        """What a further picture reaches with at least this probability; None where nothing tells. See `Plan.promise`.

        Raises:
            ConfigError: there are too few pictures for the level.
        """
        if not self.held_out or not self.values or self.metric != "psnr":
            return None
        return -conformal([-value for value in self.values], level)


@dataclass(frozen=True)
class PlanPoint:
    """One plan of the curve: so many full steps, this schedule, that quality.

    Args:
        full_steps: how many steps are computed; where branches have masks of their own, on average.
        branches: by the name of the guidance branch, its schedule; `"*"`: that of every branch without one.
        predicted, measured: the quality that was estimated, and that of real runs.
        ideal_speedup: block calls without the plan over block calls with it.
        measured_speedup: by the clock, where it was measured.
        note: what to know of this point alone.
        adapted_from: the steps of the plan that its schedule was carried over from, which nothing was measured after;
            None: it was not.

    Raises:
        ConfigError: there is no branch, the masks differ in length, or a number cannot work.
    """

    full_steps: int
    branches: Mapping[str, BranchSchedule]
    predicted: Quality | None = None
    measured: Quality | None = None
    ideal_speedup: float = 1.0
    measured_speedup: float | None = None
    note: str = field(default="", metadata={"left_out": ""})
    adapted_from: int | None = None

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

    @property
    def told(self) -> str:
        """Its quality for people, or that it is unknown, and why."""
        quality = self.quality
        if quality is None:
            return "not known" if self.adapted_from is None else "unknown: an estimate"
        return str(quality) if self.measured is not None else f"predicted: {quality}"

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
