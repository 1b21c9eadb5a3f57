"""What changed between two results of one bench, and whether it is more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.findings import Finding
from bench.report.parts import Marked, Table, findings_table
from bench.results import Results, differences, machine_differences
from cache_dit.errors import ConfigError

#: A change of at most this share is not told, however narrow the intervals are.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Change:
    """A finding that is another one now; ``beyond_noise``: its value moved by more than noise and tolerance."""

    before: Finding
    now: Finding
    beyond_noise: bool

    @property
    def verdict(self) -> str:
        """By its target: nearer to what it should be or farther from it; "moved" where no target tells."""
        wanted = {"≤": -1, "<": -1, "≥": 1, ">": 1}.get(self.now.target[:1], 0)
        if wanted == 0 or self.before.unit != self.now.unit or self.before.value == self.now.value:
            return "moved"
        return "better" if (self.now.value - self.before.value) * wanted > 0 else "worse"

    @property
    def newly_missed(self) -> bool:
        return self.now.reached is False and self.before.reached is not False

    @property
    def newly_reached(self) -> bool:
        return self.now.reached is True and self.before.reached is False


@dataclass(frozen=True)
class Comparison:
    """A fresh run against a committed one.

    Args:
        conditions: in what machine, versions and settings differ: where there are any, numbers may differ for that.
        changes: findings that moved, or whose target is newly missed or reached.
        appeared, gone: findings that only one of the two has.
        unchanged: how many are as they were.
    """

    conditions: list[str]
    changes: list[Change] = field(default_factory=list)
    appeared: list[Finding] = field(default_factory=list)
    gone: list[Finding] = field(default_factory=list)
    unchanged: int = 0

    @property
    def worse(self) -> list[Change]:
        """What moved away from its target by more than noise, or newly misses it."""
        return [one for one in self.changes if one.newly_missed or (one.beyond_noise and one.verdict == "worse")]

    @property
    def counted(self) -> str:
        """How much there is of what, in a line."""
        moved = sum(change.beyond_noise for change in self.changes)
        missed, reached = (sum(getattr(one, f"newly_{how}") for one in self.changes) for how in ("missed", "reached"))
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
        names = ("verdict", "newly_missed", "newly_reached")
        changes = [{**asdict(one), **{name: getattr(one, name) for name in names}} for one in self.changes]
        return {**asdict(self), "changes": changes, "worse": len(self.worse)}


def compare(fresh: Results, committed: Results, *, tolerance: float = TOLERANCE) -> Comparison:
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
    pairs = [(before[key], now[key]) for key in now if key in before]
    changes = [Change(*pair, pair[0].unit != pair[1].unit or beyond_noise(*pair, tolerance)) for pair in pairs]
    changes = [one for one in changes if one.beyond_noise or one.newly_missed or one.newly_reached]
    conditions = machine_differences(committed.machine, fresh.machine)
    return Comparison(
        conditions=[*conditions, *differences(committed.settings, fresh.settings)],
        changes=changes,
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
