"""What changed between two results of one bench, and whether it is more than noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.findings import Finding
from bench.results import Results, differences, machine_differences
from cache_dit.errors import ConfigError

TOLERANCE = 0.02
"""A change of at most this share is not told, however narrow the intervals are."""

Verdict = Literal["better", "worse", "moved"]


@dataclass(frozen=True)
class Change:
    """A finding that is another one now.

    Args:
        before: as it was committed.
        now: as it is in the fresh run.
        beyond_noise: whether its value moved by more than noise and tolerance.
        verdict: by its target: nearer to what it should be or farther from it; ``"moved"`` where no target tells.
    """

    before: Finding
    now: Finding
    beyond_noise: bool
    verdict: Verdict

    @property
    def newly_missed(self) -> bool:
        """Whether a target that was not missed is missed now."""
        return self.now.reached is False and self.before.reached is not False

    @property
    def newly_reached(self) -> bool:
        """Whether a target that was missed is reached now."""
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
        """What got worse: it moved away from its target by more than noise, or newly misses it."""
        return [one for one in self.changes if one.newly_missed or (one.beyond_noise and one.verdict == "worse")]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        changes = [
            {**asdict(one), "newly_missed": one.newly_missed, "newly_reached": one.newly_reached}
            for one in self.changes
        ]
        return {**asdict(self), "changes": changes, "worse": len(self.worse)}


def compare(fresh: Results, committed: Results, *, tolerance: float = TOLERANCE) -> Comparison:
    """What moved, by group and name of the findings.

    Args:
        fresh, committed: results of one bench, both finished.
        tolerance: the share of the committed value below which a change is not told.

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
    before, now = _by_name(committed.findings), _by_name(fresh.findings)
    pairs = [(before[key], now[key]) for key in now if key in before]
    changes = [change for one, other in pairs if (change := _change(one, other, tolerance))]
    return Comparison(
        conditions=[
            *machine_differences(committed.machine, fresh.machine),
            *differences(committed.settings, fresh.settings),
        ],
        changes=changes,
        appeared=[now[key] for key in now if key not in before],
        gone=[before[key] for key in before if key not in now],
        unchanged=len(pairs) - len(changes),
    )


def beyond_noise(before: Finding, now: Finding, tolerance: float) -> bool:
    """Whether a value moved: the intervals do not meet, and it changed by more than the tolerance.

    A value without an interval, e.g. a count, is its own.
    """
    (low, high), (other_low, other_high) = _interval(before), _interval(now)
    apart = other_low > high or other_high < low
    return apart and abs(now.value - before.value) > tolerance * abs(before.value)


def _change(before: Finding, now: Finding, tolerance: float) -> Change | None:
    """The change between two findings of one name; None where there is none to tell."""
    moved = before.unit != now.unit or beyond_noise(before, now, tolerance)
    change = Change(before, now, moved, _verdict(before, now))
    return change if moved or change.newly_missed or change.newly_reached else None


def _verdict(before: Finding, now: Finding) -> Verdict:
    wanted = {"≤": -1, "<": -1, "≥": 1, ">": 1}.get(now.target[:1], 0)
    if wanted == 0 or before.unit != now.unit or before.value == now.value:
        return "moved"
    return "better" if (now.value - before.value) * wanted > 0 else "worse"


def _interval(finding: Finding) -> tuple[float, float]:
    low = finding.value if finding.low is None else finding.low
    high = finding.value if finding.high is None else finding.high
    return low, high


def _by_name(findings: Iterable[Finding]) -> dict[tuple[str, str], Finding]:
    return {(finding.group, finding.name): finding for finding in findings}
