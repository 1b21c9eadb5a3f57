"""Which steps to compute, planned before the run: a list of 1 (compute) and 0 (cache)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, zip_longest

from cache_dit.config.base import bad_value, check_integer, check_number, unknown_key
from cache_dit.errors import ConfigError

# Lengths of runs of computed and cached steps in turn, computed first. A row stands for as many steps as its runs add
# up to; that of 15 is cut for 10 to 14 steps, and that of 28 is stretched or trimmed for 16 steps and more.
PRESETS: dict[str, dict[int, tuple[int, ...]]] = {
    "slow": {
        4: (2, 1, 1),
        5: (3, 1, 1),
        6: (3, 2, 1),
        7: (4, 1, 1, 0, 1),
        8: (5, 1, 1, 0, 1),
        9: (5, 1, 2, 0, 1),
        15: (4, 1, 2, 1, 2, 1, 2, 1, 1),
        28: (8, 1, 3, 2, 3, 2, 2, 2, 1, 3, 1),
    },
    "medium": {
        4: (2, 1, 1),
        5: (3, 1, 1),
        6: (3, 2, 1),
        7: (3, 1, 1, 1, 1),
        8: (4, 1, 1, 1, 1),
        9: (5, 1, 1, 1, 1),
        15: (4, 1, 2, 1, 1, 2, 1, 2, 1),
        28: (6, 1, 2, 3, 2, 3, 2, 3, 2, 3, 1),
    },
    "fast": {
        4: (2, 1, 1),
        5: (3, 1, 1),
        6: (3, 2, 1),
        7: (2, 1, 1, 2, 1),
        8: (3, 1, 1, 2, 1),
        9: (4, 1, 1, 2, 1),
        15: (3, 1, 1, 2, 1, 2, 1, 3, 1),
        28: (6, 1, 1, 3, 1, 4, 1, 5, 1, 4, 1),
    },
    "ultra": {
        4: (2, 1, 1),
        5: (3, 1, 1),
        6: (3, 2, 1),
        7: (2, 1, 1, 2, 1),
        8: (2, 2, 1, 2, 1),
        9: (3, 2, 1, 2, 1),
        15: (2, 1, 1, 2, 1, 3, 1, 3, 1),
        28: (4, 2, 1, 5, 1, 6, 1, 7, 1),
    },
}
_FITTED_ROW = 28


class PresetMask(list[int]):
    """The mask of a preset, which can be made for another number of steps.

    Args:
        preset: the preset's name.
        total_steps: the number of steps.
    """

    def __init__(self, preset: str, total_steps: int) -> None:
        super().__init__(steps_mask(total_steps=total_steps, mask_policy=preset) or [])
        self.preset = preset


def fitted_mask(mask: list[int], total_steps: int) -> list[int]:
    """A mask for a run of so many steps: a preset's is made for them; of another, what is too long is cut.

    The last step of a mask that is cut is computed, and so is every step past the end of one that is too short.
    """
    if len(mask) == total_steps:
        return mask
    if isinstance(mask, PresetMask):
        return PresetMask(mask.preset, total_steps)
    return [*mask[: total_steps - 1], 1] if len(mask) > total_steps else mask


def steps_mask(
    compute_bins: Sequence[int] | None = None,
    cache_bins: Sequence[int] | None = None,
    total_steps: int | None = None,
    mask_policy: str | None = "medium",
    *,
    full_steps: int | None = None,
    warmup: int = 3,
    bend: float = 1.0,
    last: bool = True,
) -> list[int] | None:
    """A plan of the steps to compute (1) and to cache (0), for `DBCacheConfig(steps_computation_mask=…)`.

    Spelled out by the lengths of its runs, made from a preset, or even. A preset computes the first and the last
    step, and "slow" computes at least as many steps as "medium", "medium" as "fast", and "fast" as "ultra". For 1 to
    3 steps it computes all. An even mask computes the warm-up, spreads the other full steps evenly, and computes the
    last step: `steps_mask(total_steps=10, mask_policy="even", full_steps=5, warmup=2)` is `1100100101`. With a `bend`
    above 1 its gaps grow from step to step, for models whose early steps matter more.

    Args:
        compute_bins: lengths, in steps, of the runs of computed steps; needs `cache_bins`. They take turns, computed
            first; when one list has ended, the other goes on: `steps_mask([4, 2], [2, 4])` is `111100110000`.
        cache_bins: lengths, in steps, of the runs of cached steps.
        total_steps: number of steps. Without bins it is needed; with bins the plan is cut to it, by default it is
            their sum.
        mask_policy: the preset, when no bins are given: `"slow"`, `"medium"`, `"fast"` or `"ultra"`; `"even"`, which
            needs `full_steps`; None or `"none"`: no mask.
        full_steps: for `"even"`: how many steps to compute, at least 1 and at most `total_steps`.
        warmup: for `"even"`: how many of them come first, at least 1; fewer where `full_steps` leaves no room for the
            last step beside them.
        bend: for `"even"`: at least 1; the n-th of N full steps after the warm-up lies at (n / N)^bend of the way to
            the last step.
        last: for `"even"`: whether the last step is one of the full ones; if not, what follows the last full step is
            a gap like the others: as if the N-th were one past the end.

    Returns:
        One entry per step, or None for no mask.

    Raises:
        ConfigError: an unknown preset, only one list of bins, bins that are no lengths or too short, no number of
            steps, or `full_steps` that are missing, too many, or given without `"even"`.
    """
    if total_steps is not None:
        check_integer("total_steps", total_steps, minimum=1)
    if full_steps is not None and mask_policy != "even":
        raise ConfigError(f"full_steps={full_steps!r} is for an even mask: pass mask_policy='even' with it")
    if compute_bins is not None and cache_bins is not None:
        return _explicit(compute_bins, cache_bins, total_steps)
    if compute_bins is not None or cache_bins is not None:
        raise ConfigError("only one of compute_bins and cache_bins was given: expected both, or none and a mask_policy")
    if mask_policy is None or mask_policy == "none":
        return None
    if mask_policy not in (*PRESETS, "even"):
        raise unknown_key(str(mask_policy), [*PRESETS, "even", "none"], where="mask_policy")
    if total_steps is None:
        raise ConfigError(
            f"mask_policy={mask_policy!r} needs total_steps, the number of steps: pass e.g. total_steps=28"
        )
    if mask_policy == "even":
        return _even(total_steps, full_steps, warmup, bend, last=last)
    return _preset(PRESETS[mask_policy], total_steps)


def _even(total_steps: int, full_steps: int | None, warmup: int, bend: float, *, last: bool) -> list[int]:
    if full_steps is None:
        raise ConfigError(
            "mask_policy='even' needs full_steps, the number of steps to compute: pass e.g. full_steps=12"
        )
    check_integer("warmup", warmup, minimum=1)
    check_integer("full_steps", full_steps, minimum=1)
    check_number("bend", bend, minimum=1)
    if full_steps > total_steps:
        raise bad_value("full_steps", full_steps, f"at most total_steps={total_steps}")
    warmup = min(warmup, max(full_steps - 1, 1)) if last else min(warmup, full_steps)
    rest = full_steps - warmup
    gaps, length = (rest, total_steps - warmup) if last else (rest + 1, total_steps - warmup + 1)
    computed = list(range(warmup))
    for place in range(1, rest + 1):
        wanted = warmup - 1 + math.floor(length * (place / gaps) ** bend + 0.5)
        computed.append(min(max(wanted, computed[-1] + 1), total_steps - 1 - (rest - place)))
    return [int(step in computed) for step in range(total_steps)]


def _explicit(compute_bins: Sequence[int], cache_bins: Sequence[int], total_steps: int | None) -> list[int]:
    for name, bins in (("compute_bins", compute_bins), ("cache_bins", cache_bins)):
        if not hasattr(bins, "__iter__"):
            raise bad_value(name, bins, "a list of lengths, e.g. [4, 1, 1]")
        for length in bins:
            check_integer(f"an entry of {name}", length, minimum=0)
    mask = _unrolled(compute_bins, cache_bins)
    if not mask or len(mask) < (total_steps or 0):
        expected = f"bins that add up to at least {total_steps or 1} steps, not {len(mask)}"
        raise bad_value("compute_bins, cache_bins", (list(compute_bins), list(cache_bins)), expected)
    return mask[:total_steps]


def _preset(rows: dict[int, tuple[int, ...]], total_steps: int) -> list[int]:
    if total_steps < min(rows):
        return [1] * total_steps
    if total_steps in rows or total_steps < 15:
        runs = rows[min(steps for steps in rows if steps >= total_steps)]
        mask = _unrolled(runs[0::2], runs[1::2])[:total_steps]
    else:
        mask = _fitted(rows[_FITTED_ROW], total_steps)
    return [*mask[:-1], 1]


def _fitted(runs: Sequence[int], total_steps: int) -> list[int]:
    """Stretch runs in turn, in proportion to their length, until they hold `total_steps`; then trim from the end."""
    stretched = list(runs)
    growth = [max(run * total_steps // (2 * _FITTED_ROW), 1) for run in runs[:-1]] + [1]
    turns = cycle(range(len(runs)))
    while sum(stretched) < total_steps:
        turn = next(turns)
        stretched[turn] += growth[turn]
    compute, cache = stretched[0::2], stretched[1::2]
    for bins in cycle((cache, compute)):
        if sum(compute) + sum(cache) <= total_steps:
            break
        bins[-1] -= 1
        if bins[-1] == 0:
            bins.pop()
    return _unrolled(compute, cache)


def _unrolled(compute_bins: Sequence[int], cache_bins: Sequence[int]) -> list[int]:
    mask = []
    for computed, cached in zip_longest(compute_bins, cache_bins, fillvalue=0):
        mask += [1] * computed + [0] * cached
    return mask
