"""A plan: which steps are computed and how the others are predicted, what that gives, and what it holds for.

Numbers and names only: `policies/plan.py` runs a plan.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from cache_dit.config.base import GUARD_IS_GONE, bad_value, check_flag, check_integer, check_number
from cache_dit.engine.plans.adapt import adapted
from cache_dit.engine.plans.file import plain, plan_of, read, write
from cache_dit.engine.plans.point import PlanPoint
from cache_dit.engine.plans.report import described
from cache_dit.engine.plans.scope import PlanScope, branch_name
from cache_dit.errors import ConfigError

VERSION = 1
"""The version of the file format."""


@dataclass(frozen=True)
class Plan:
    """The plans of a model by their full steps, with what they hold for; one of them is chosen.

    Made by `cache_dit.plan`, kept in a small JSON file, used by `enable_cache(pipe, plan)` or
    `DBCacheConfig(plan=…)`, which take the path as well.

    Args:
        scope: what it holds for; it is refused elsewhere.
        points: one for each number of full steps.
        chosen: the full steps of the one to run; None: none yet, see `select`.
        cost: what the planning cost, by name, e.g. `{"runs": 42, "seconds": 61.5}`.
        note: what to know of it, e.g. that it is an estimate.
        version: the version of the file format.
        strict: whether a run is refused whose call (guidance, size, …) differs from that which it was made with. False:
            it runs, a line of log and the summary say what differed, and its quality is unknown.

    Raises:
        ConfigError: a field cannot work; the message names it.
    """

    scope: PlanScope
    points: tuple[PlanPoint, ...]
    chosen: int | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    version: int = VERSION
    strict: bool = field(default=True, metadata={"left_out": True})

    def __post_init__(self) -> None:
        check_flag("strict", self.strict)
        if self.version != VERSION:
            raise bad_value("version", self.version, f"{VERSION}, the format that this release reads; plan anew")
        check_integer("num_inference_steps", self.scope.num_inference_steps, minimum=1)
        points = tuple(sorted(self.points, key=lambda point: -point.full_steps))
        counts = [point.full_steps for point in points]
        if not points or len(set(counts)) < len(counts):
            raise bad_value("points", counts, "at least one, each with another number of full steps")
        if len({point.steps for point in points}) > 1 or points[0].steps < (self.scope.num_inference_steps or 0):
            lengths = [point.steps for point in points]
            raise bad_value("masks", lengths, f"one length, of at least {self.scope.num_inference_steps} steps")
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
            raise bad_value(name, value, f"what a point of the plan reaches:\n{self}")
        return replace(self, chosen=(found[-1] if name == "target_psnr" else found[0]).full_steps)

    def promise(self, level: float = 0.9) -> float:
        """The PSNR in dB that a further picture of the chosen point reaches with at least this probability.

        By split conformal prediction over the PSNRs of the pictures that were kept apart; see `point.conformal`. It
        holds for pictures that are like these: of prompts drawn from where theirs came from. The probability is over
        both, those kept apart and the further one.

        Args:
            level: the probability, above 0 and below 1.

        Raises:
            ConfigError: no point is chosen, it does not know the PSNRs of pictures kept apart, or they are too few for
                the level; the message says how many are needed.
        """
        measured = self.point.measured
        found = None if measured is None else measured.promise(level)
        if found is None:
            raise ConfigError(
                f"the plan {self.tag} has no PSNRs of pictures kept apart, so that it promises nothing: plan anew with "
                "cache_dit.plan(…), which keeps half of four or more prompts apart"
            )
        return found

    def with_guard(self, level: float | None = None) -> NoReturn:
        """Refused: there is no guard any more; see `promise`."""
        raise ConfigError(f"with_guard({level}): {GUARD_IS_GONE}")

    def adapt(self, num_inference_steps: int, sigmas: Sequence[float] | None = None) -> Plan:
        """An estimate of the plan for another number of steps: full steps where the noise levels are the same.

        Args:
            num_inference_steps: steps of the runs to come.
            sigmas: their noise levels, one per step; None: those of the plan's run, interpolated.

        Returns:
            A plan whose qualities are unknown, and whose note says that it is an estimate. Points that do not fit so
            few steps are left out.

        Raises:
            ConfigError: the number or the levels cannot work, or no point is left.
        """
        points, scope, note = adapted(self.points, self.scope, num_inference_steps, sigmas)
        kept = self.chosen in [point.full_steps for point in points]
        return replace(
            self,
            scope=scope,
            points=tuple(points),
            chosen=self.chosen if kept else None,
            note=f"{self.note}; {note}" if self.note else note,
        )

    def check(self, run: PlanScope | None = None, **seen: Any) -> list[str]:
        """Raise `ConfigError`, with everything that differs, unless the plan holds for a run like this.

        Args:
            run: what is known of it.
            **seen: further fields of `PlanScope`; those that are left out or None are unknown, and not compared.

        Returns:
            What differs in the call, where the plan is not strict.
        """
        run = replace(run or PlanScope(), **seen)
        different, of_call = self.scope.differences(run), self.scope.call_differences(run)
        if not self.strict:
            different = [one for one in different if one not in of_call]
        if different:
            way = "for another number of steps, plan.adapt gives an estimate"
            if all(one in of_call for one in different):
                way = "to allow it, pass Plan.load(path, strict=False) or dataclasses.replace(plan, strict=False)"
            raise ConfigError(
                f"the plan {self.tag} was made with {'; '.join(different)}: plan anew, or run what it was made for "
                f"({way})"
            )
        return of_call

    def knows(self, branch: Hashable) -> bool:
        """Whether the plan says something for this branch, and it is one that it was made with, where it is strict."""
        name = branch_name(branch)
        made = not self.strict or self.scope.has_branch(name)
        return all(point.schedule(name) is not None and (made or name in point.branches) for point in self.points)

    def __str__(self) -> str:
        return "\n".join(described(self.scope, self.points, self.chosen, self.note))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, with sorted keys."""
        write(self.as_dict(), path)

    def as_dict(self) -> dict[str, Any]:
        """What `save` writes; `of` reads it."""
        found: dict[str, Any] = plain(self)
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, strict: bool | None = None) -> Plan:
        """Read the file that `save` wrote.

        Args:
            path: the file.
            strict: see `Plan`; None: as the file says.

        Raises:
            ConfigError: the file is missing or no JSON, or a field of it is missing, unknown or cannot work; the
                message names the file and the field.
        """
        content = read(path)
        try:
            return plan_of(cls, content if strict is None else {**content, "strict": strict})
        except ConfigError as error:
            raise ConfigError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def of(cls, value: Any) -> Plan:
        """A plan, given as one, as the path of one, or as what `as_dict` gave.

        Raises:
            ConfigError: it is none of them, or cannot work.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return plan_of(cls, value)
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
