"""What changed between two results of one bench, and whether it is more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bench.findings import Finding
from bench.report.parts import Marked, Table, findings_table
from bench.results import Results, differences, machine_differences
from cache_dit.errors import ConfigError


@dataclass(frozen=True)
class Change:
    """A finding before and now; the verdict is by its target, and "moved" where none tells."""

    before: Finding
    now: Finding
    beyond_noise: bool
    verdict: str
    newly_missed: bool
    newly_reached: bool

    @classmethod
    def of(cls, before: Finding, now: Finding, tolerance: float) -> Change:
        wanted = {"≤": -1, "<": -1, "≥": 1, ">": 1}.get(now.target[:1], 0)
        better = (now.value - before.value) * wanted
        told = before.unit == now.unit and better != 0
        return cls(
            before,
            now,
            before.unit != now.unit or beyond_noise(before, now, tolerance),
            "moved" if not told else "better" if better > 0 else "worse",
            now.reached is False and before.reached is not False,
            now.reached is True and before.reached is False,
        )


@dataclass(frozen=True)
class Comparison:
    """A fresh run against a committed one; where machine or settings differ (conditions), numbers may for that."""

    conditions: list[str]
    changes: list[Change]
    appeared: list[Finding]
    gone: list[Finding]
    unchanged: int

    @property
    def worse(self) -> int:
        """How many moved away from their target by more than noise, or newly miss it."""
        return sum(one.newly_missed or (one.beyond_noise and one.verdict == "worse") for one in self.changes)

    @property
    def counted(self) -> str:
        """How much there is of what, in a line."""
        moved, missed, reached = (
            sum(getattr(one, name) for one in self.changes)
            for name in ("beyond_noise", "newly_missed", "newly_reached")
        )
        targets = f"{missed} targets newly missed, {reached} targets newly reached"
        apart = f"{len(self.appeared)} appeared, {len(self.gone)} went away"
        return f"{self.unchanged} unchanged, {moved} moved, {targets}, {apart}"

    def tables(self) -> Iterator[Table]:
        """What moved, what appeared and what went away, as far as there is any."""
        rows = []
        for one in self.changes:
            sides = (f"{side.value_text}\n{side.interval_text}".rstrip() for side in (one.before, one.now))
            said = [one.verdict] * one.beyond_noise + [f"misses {one.now.target}"] * one.newly_missed
            said += [f"reaches {one.now.target}"] * one.newly_reached
            rows.append((one.now.group, one.now.name, *sides, Marked("\n".join(said))))
        if rows:
            yield Table(("group", "what", "committed", "fresh", ""), rows, left=2, title="what moved")
        for title, findings in (("appeared", self.appeared), ("went away", self.gone)):
            if findings:
                yield findings_table(findings, title, grouped=True)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {**asdict(self), "worse": self.worse}


def compare(fresh: Results, committed: Results, *, tolerance: float = 0.02) -> Comparison:
    """What moved, by group and name of the findings; changes up to a share of the committed value are not told.

    Raises:
        ConfigError: they are of different benches, or one of them has no findings.
    """
    if fresh.bench != committed.bench:
        raise ConfigError(
            f"{fresh.path} is of the bench {fresh.bench!r}, {committed.path} of {committed.bench!r}: pass two of one"
        )
    for results in (fresh, committed):
        if not results.finished:
            raise ConfigError(f"{results.path} has no findings yet: its run was not finished; run the bench again")
    before, now = ({(one.group, one.name): one for one in results.findings} for results in (committed, fresh))
    pairs = [Change.of(before[key], now[key], tolerance) for key in now if key in before]
    changes = [one for one in pairs if one.beyond_noise or one.newly_missed or one.newly_reached]
    return Comparison(
        machine_differences(committed.machine, fresh.machine) + differences(committed.settings, fresh.settings),
        changes,
        appeared=[now[key] for key in now if key not in before],
        gone=[before[key] for key in before if key not in now],
        unchanged=len(pairs) - len(changes),
    )


def beyond_noise(before: Finding, now: Finding, tolerance: float) -> bool:
    """Whether a value moved: the intervals do not meet, and it changed by more than the tolerance.

    A value without an interval, e.g. a count, is its own.
    """
    low, other_low = (one.value if one.low is None else one.low for one in (before, now))
    high, other_high = (one.value if one.high is None else one.high for one in (before, now))
    apart = other_low > high or other_high < low
    return apart and abs(now.value - before.value) > tolerance * abs(before.value)
