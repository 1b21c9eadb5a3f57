"""When to compute: the decisions of DBCache as a state machine of numbers, without tensors."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cache_dit.config.base import as_number
from cache_dit.config.cache import BasicCacheConfig


class Action(enum.Enum):
    """What to do with the middle blocks of a step."""

    COMPUTE = enum.auto()
    """Run them."""
    SKIP = enum.auto()
    """Predict what they would have added."""
    MEASURE = enum.auto()
    """Measure the diff of the first blocks' residual, and ask `accept`."""


class StepRecord(NamedTuple):
    """What happened to one step of one branch and chain.

    Args:
        step: the step's index in its request, from 0.
        computed: whether the middle blocks ran.
        diff: relL1 of the first blocks' residual against the last computed step's, or None if nothing was measured.
        why: a short reason code. Computed: `off`, `first`, `warmup`, `mask`, `max_cached`, `max_continuous`,
            `accumulated`, `threshold`, `nonfinite`, or what the engine gave, e.g. `shape`. Cached: `mask` (a static
            mask) or `hit`.
    """

    step: int
    computed: bool
    diff: float | None
    why: str


class Policy(Protocol):
    """Decides, step by step, whether the middle blocks run.

    The engine asks `decide` once a step, `accept` if that said MEASURE, and reports with `commit` what then really
    happened.
    """

    def decide(self, step: int) -> Action:
        """What to do in this step."""
        ...

    def accept(self, diff: float) -> bool:
        """Whether the step may be skipped, given its measured diff."""
        ...

    def commit(self, step: int, *, computed: bool, diff: float | None = None, why: str | None = None) -> None:
        """Take note of what was done in this step."""
        ...


class DBCachePolicy:
    """The decisions of DBCache (`BasicCacheConfig` says what each option means).

    A step is computed if the request is too short, nothing was computed yet, it belongs to the warm-up, the mask says
    so or has ended, or a limit is reached. What then remains is skipped by a static mask, to which the limits do not
    apply, and measured otherwise. A threshold of 1 or more skips without measuring too, unless the accumulated diff is
    limited.

    Args:
        config: complete cache options, as `effective` makes them.
        num_inference_steps: the steps of this request, if known; None: as the options say.

    Raises:
        ConfigError: the threshold or the accumulated limit is no number.
    """

    def __init__(self, config: BasicCacheConfig, *, num_inference_steps: int | None = None) -> None:
        mask = config.steps_computation_mask
        warmup = warmup_steps(config)
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        self.records: list[StepRecord] = []
        self.static = config.is_static
        self.off = not self.static and steps is not None and steps < warmup + 2
        self._warmup = range(0, warmup, config.warmup_interval)
        self._mask = None if mask is None else tuple(mask)
        self._max_cached = _limit(config.max_cached_steps)
        self._max_continuous = _limit(config.max_continuous_cached_steps)
        self._max_accumulated = _accumulated_limit(config)
        self._threshold = as_number("residual_diff_threshold", config.residual_diff_threshold)
        unmeasured = self.static or (self._threshold >= 1 and self._max_accumulated == math.inf)
        self._unforced = Action.SKIP if unmeasured else Action.MEASURE
        self._computed = 0
        self._cached = 0
        self._continuous = 0
        self._accumulated = 0.0
        self._diff: float | None = None
        self._why = ""

    @property
    def measures(self) -> bool:
        """Whether `decide` can ever say MEASURE; if not, the residual to measure against need not be kept."""
        return self.caches and self._unforced is not Action.SKIP

    @property
    def caches(self) -> bool:
        """Whether a step can ever be skipped; if not, nothing need be kept."""
        if self.off or (self._mask is not None and 0 not in self._mask):
            return False
        return self.static or (self._threshold > 0 and self._max_cached > 0 and self._max_continuous > 0)

    def decide(self, step: int) -> Action:
        """What to do in this step.

        Args:
            step: the step's index in its request, from 0.
        """
        self._diff = None
        forced = self._forced(step)
        if forced is not None:
            self._why = forced
            return Action.COMPUTE
        self._why = "mask" if self.static else "hit"
        return self._unforced

    def _forced(self, step: int) -> str | None:
        """Why this step is computed whatever its diff, or None."""
        if self.off:
            return "off"
        if not self._computed:
            return "first"
        if step in self._warmup:
            return "warmup"
        if self._mask is not None and (step >= len(self._mask) or self._mask[step]):
            return "mask"
        if self.static:
            return None
        if self._cached >= self._max_cached:
            return "max_cached"
        if self._continuous >= self._max_continuous:
            return "max_continuous"
        if self._accumulated >= self._max_accumulated:
            return "accumulated"
        return "threshold" if self._threshold <= 0 else None

    def accept(self, diff: float) -> bool:
        """Whether the step that `decide` answered with MEASURE may be skipped.

        Args:
            diff: relL1 of the first blocks' residual against that of the last computed step, dimensionless. A NaN or an
                infinity is refused.
        """
        self._diff = diff
        if not math.isfinite(diff):
            self._why = "nonfinite"
        elif diff >= self._threshold and self._threshold < 1:
            self._why = "threshold"
        elif self._accumulated + diff > self._max_accumulated:
            self._why = "accumulated"
        else:
            self._why = "hit"
        return self._why == "hit"

    def commit(self, step: int, *, computed: bool, diff: float | None = None, why: str | None = None) -> None:
        """Take note of what was done in this step, and count it.

        Args:
            step: the step's index in its request, from 0.
            computed: whether the middle blocks ran; the engine may have turned a skip into a compute.
            diff: the measured diff; None: the one that `accept` was given in this step, if any.
            why: a reason code that overrides the policy's own, e.g. `"shape"`.
        """
        diff = self._diff if diff is None else diff
        self.records.append(StepRecord(step, computed, diff, self._why if why is None else why))
        self._diff, self._why = None, ""
        if computed:
            self._computed += 1
            self._continuous = 0
            self._accumulated = 0.0
        else:
            self._cached += 1
            self._continuous += 1
            self._accumulated += diff or 0.0

    @property
    def computed_steps(self) -> list[int]:
        """The steps whose middle blocks ran, in order."""
        return [record.step for record in self.records if record.computed]

    @property
    def cached_steps(self) -> list[int]:
        """The steps whose middle blocks were skipped, in order."""
        return [record.step for record in self.records if not record.computed]

    @property
    def diffs(self) -> dict[int, float]:
        """The finite diffs by step. Those that are not finite are in `records` only."""
        return {r.step: r.diff for r in self.records if r.diff is not None and math.isfinite(r.diff)}


def warmup_steps(config: BasicCacheConfig) -> int:
    """The length of the warm-up: `max_warmup_steps`, but no more than the ones that a mask begins with."""
    mask = config.steps_computation_mask
    if mask is None:
        return config.max_warmup_steps
    leading_ones = mask.index(0) if 0 in mask else len(mask)
    return min(config.max_warmup_steps, leading_ones)


def why_no_hit(records: Sequence[StepRecord], config: BasicCacheConfig) -> str | None:
    """Why no step of a finished request was cached, in one sentence for people.

    Args:
        records: what happened to the steps of one branch and chain.
        config: the options that its policy had.

    Returns:
        The most frequent reason with its figures and what to pass instead, or None if a step was cached or none was
        run.
    """
    if not records or not all(record.computed for record in records):
        return None
    reasons = Counter(record.why for record in records if record.why not in ("first", "warmup"))
    why, count = reasons.most_common(1)[0] if reasons else ("warmup", len(records))
    steps = len(records)
    warmup = warmup_steps(config)
    smallest = min((r.diff for r in records if r.diff is not None and math.isfinite(r.diff)), default=math.nan)
    threshold = as_number("residual_diff_threshold", config.residual_diff_threshold)
    if why == "threshold" and threshold <= 0:
        return f"residual_diff_threshold={threshold:g} caches nothing; pass a value above 0."
    shorter = "pass a smaller max_warmup_steps."
    sentences = {
        "off": f"The request is shorter than its warm-up of {warmup} steps plus 2; {shorter}",
        "warmup": f"The warm-up ({warmup} steps) leaves none of the {steps} steps to cache; {shorter}",
        "mask": f"steps_computation_mask says 1, or has ended, at {count} of {steps} steps; pass one with zeros.",
        "max_cached": f"max_cached_steps={config.max_cached_steps} allows no cached step.",
        "max_continuous": f"max_continuous_cached_steps={config.max_continuous_cached_steps} allows no cached step.",
        "accumulated": f"The smallest diff seen, {smallest:.3g}, is above max_accumulated_residual_diff_threshold="
        f"{config.max_accumulated_residual_diff_threshold}.",
        "threshold": f"residual_diff_threshold={threshold:g} is not above the smallest diff seen, {smallest:.3g}; "
        "pass a larger one.",
        "nonfinite": f"The diff was NaN or infinite in {count} of {steps} steps.",
        "shape": f"The shape, dtype or device of the hidden states changed before {count} of {steps} steps.",
        "shape_changes_inside": "The blocks return another shape than they are given: there is no residual to keep.",
        "no_middle": f"Fn_compute_blocks={config.Fn_compute_blocks} and Bn_compute_blocks={config.Bn_compute_blocks} "
        "leave no block between them to skip; pass smaller ones.",
        "not_called": f"The model did not call the blocks in {count} of {steps} steps.",
    }
    return sentences.get(why, f"{count} of {steps} steps were computed for the reason {why!r}.")


def _limit(steps: int) -> float:
    return math.inf if steps < 0 else steps


def _accumulated_limit(config: BasicCacheConfig) -> float:
    name = "max_accumulated_residual_diff_threshold"
    value = getattr(config, name)
    limit = math.inf if value is None else as_number(name, value)
    return limit if limit > 0 else math.inf
