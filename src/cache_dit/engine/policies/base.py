"""What every policy has in common: warm-up, mask, limits, and the record of what was done. Numbers, no tensors."""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from cache_dit.config.base import as_number
from cache_dit.config.cache import BasicCacheConfig
from cache_dit.engine.predictors.base import Predictor


class Action(enum.Enum):
    """What to do with the middle blocks of a step."""

    COMPUTE = enum.auto()
    """Run them."""
    SKIP = enum.auto()
    """Predict what they would have added."""
    MEASURE = enum.auto()
    """Measure the diff of what `Probe` says, and ask `accept`."""


class Probe(enum.Enum):
    """What the diff of a step is measured on."""

    RESIDUAL = enum.auto()
    """What the first blocks add to their input; relL1."""
    STATE = enum.auto()
    """What the first blocks return; relL1."""
    MODULATED = enum.auto()
    """The modulated input of the first block; relL1."""
    LATENT = enum.auto()
    """The transformer's own input and output x and v: k · ‖x_t − x_{t−1}‖₁ / ‖v‖₁ (see `EasyCachePolicy`)."""


class StepRecord(NamedTuple):
    """What happened to one step of one branch and chain.

    Args:
        step: the step's index in its request, from 0.
        computed: whether all middle blocks ran.
        diff: the diff that the step was decided by, or None if nothing was measured.
        why: a short reason code. Computed: `off`, `first`, `warmup`, `mask`, `last`, `max_cached`, `max_continuous`,
            `accumulated`, `threshold`, `nonfinite`, `uncalibrated`, `plan`, or what the engine gave, e.g.
            `shape`. Cached: `mask` (a static mask), `hit`, or `plan`.
        pruned: of a step that is decided block by block, how many of its blocks did not run.
        blocks: how many blocks such a step has.
        block_diffs: the diffs that its blocks were decided by, in the order of the blocks.
    """

    step: int
    computed: bool
    diff: float | None
    why: str
    pruned: int = 0
    blocks: int = 0
    block_diffs: tuple[float, ...] = ()


class StepRules:
    """Which steps are computed whatever their diff, and the count of what was done.

    A step is computed if the request is too short, nothing was computed yet, it belongs to the warm-up, the mask says
    so or has ended, or a limit is reached. To a static mask the limits do not apply.

    Args:
        config: complete cache options, as `effective` makes them; they say what each option means.
        num_inference_steps: the steps of this request, if known; None: as the options say.
        records: what an earlier policy of the same branch and chain did. The steps from `origin` on count as if this
            policy had done them; those before it are kept for reports only.
        origin: the step from which warm-up and mask count: 0, or the one at which the request was refreshed.

    Raises:
        ConfigError: the threshold or the accumulated limit is no number.
    """

    def __init__(
        self,
        config: BasicCacheConfig,
        *,
        num_inference_steps: int | None = None,
        records: Iterable[StepRecord] = (),
        origin: int = 0,
    ) -> None:
        mask = config.steps_computation_mask
        warmup = warmup_steps(config)
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        self.origin = origin
        self.records: list[StepRecord] = list(records)
        self._max_cached = _limit(config.max_cached_steps)
        self._max_continuous = _limit(config.max_continuous_cached_steps)
        self._max_accumulated = _accumulated_limit(config)
        self.static = config.is_static
        # Whether a request is worth caching is judged once, on the whole of it.
        self.off = not self.static and origin == 0 and steps is not None and steps < warmup + 2
        self._last_step = None if steps is None or not config.compute_last_step else steps - 1
        self._warmup = range(0, warmup, config.warmup_interval)
        self._mask = None if mask is None else tuple(mask)
        self._all_computed = mask is not None and 0 not in mask
        #: The budget of the policy: what a diff, or what is added up, is compared with.
        self.threshold = as_number("residual_diff_threshold", config.residual_diff_threshold)
        self._computed = 0
        self._cached = 0
        self._continuous = 0
        self._accumulated = 0.0

    def replay(self) -> None:
        """Count the records from `origin` on; a subclass calls it once, when it is ready for `count`."""
        for record in self.records:
            if record.step >= self.origin:
                self.count(record)

    @property
    def caches(self) -> bool:
        """Whether a step can ever be skipped; if not, nothing need be kept."""
        if self.off or self._all_computed:
            return False
        return self.static or (self.threshold > 0 and self._max_cached > 0 and self._max_continuous > 0)

    def forced(self, step: int) -> str | None:
        """Why this step is computed whatever its diff, or None.

        Args:
            step: the step's index in its request, from 0.
        """
        place = step - self.origin
        if self.off:
            return "off"
        if not self._computed:
            return "first"
        if place in self._warmup:
            return "warmup"
        if self._mask is not None and (place >= len(self._mask) or self._mask[place]):
            return "mask"
        if self.static:
            return None
        if step == self._last_step:
            return "last"
        if self._cached >= self._max_cached:
            return "max_cached"
        if self._continuous >= self._max_continuous:
            return "max_continuous"
        if self._accumulated >= self._max_accumulated:
            return "accumulated"
        return "threshold" if self.threshold <= 0 else None

    def count(self, record: StepRecord) -> None:
        """Bring the counts up to date with a step that was done."""
        if record.computed:
            self._computed += 1
            self._continuous = 0
            self._accumulated = 0.0
        else:
            self._cached += 1
            self._continuous += 1
            self._accumulated += record.diff or 0.0

    def record(self, record: StepRecord) -> None:
        """Keep a step's record, and count it."""
        self.records.append(record)
        self.count(record)

    @property
    def computed_steps(self) -> list[int]:
        """The steps whose middle blocks ran, in order."""
        return [record.step for record in self.records if record.computed]

    @property
    def cached_steps(self) -> list[int]:
        """The steps whose middle blocks were skipped, all or some, in order."""
        return [record.step for record in self.records if not record.computed]

    @property
    def diffs(self) -> dict[int, float]:
        """The finite diffs by step. Those that are not finite are in `records` only."""
        return {r.step: r.diff for r in self.records if r.diff is not None and math.isfinite(r.diff)}


class StepPolicy(StepRules):
    """Decides, step by step, whether the middle blocks run: the base of every such policy.

    The engine asks `decide` once a step, `accept` if that said MEASURE, and reports with `commit` what then really
    happened. A policy of its own overrides `refusal`, which judges a diff, and where it has more to say `forced` (why a
    step is computed without a measurement), `count` (what it adds up over the steps) and `prepare` (what it reads from
    the options); then `register_policy` gives it a name.

    Args:
        config, num_inference_steps, records, origin: as for `StepRules`.
        calibration: a `PolicyCalibration` or the path of one; None: that of the options, if they have one.
        branch: the name of the guidance branch, for calibrations that tell branches apart.

    Raises:
        ConfigError: an option or the calibration cannot work.
    """

    probe: Probe | None = Probe.RESIDUAL
    """What is measured; None: nothing ever is."""
    against: str = "computed"
    """The step that the probe is compared with: the last `"computed"` one, or the `"previous"` one."""

    def __init__(
        self,
        config: BasicCacheConfig,
        *,
        num_inference_steps: int | None = None,
        calibration: Any = None,
        records: Iterable[StepRecord] = (),
        origin: int = 0,
        branch: Hashable = None,
    ) -> None:
        super().__init__(config, num_inference_steps=num_inference_steps, records=records, origin=origin)
        self.config = config
        self.branch = branch
        self._diff: float | None = None
        self._why = ""
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if self.static:
            self.probe = None
        else:
            given = config.policy_calibration if calibration is None else calibration
            self.prepare(given, num_inference_steps=steps)
        self.replay()

    def prepare(self, calibration: Any, *, num_inference_steps: int | None) -> None:
        """Read what this policy needs from `config` and the calibration; not called where a static mask decides.

        Args:
            calibration: a `PolicyCalibration`, the path of one, or None.
            num_inference_steps: the steps of this request, if known.
        """

    def refusal(self, diff: float) -> str | None:
        """Why a step with this finite diff is computed, as a reason code, or None if it may be skipped."""
        return None if diff < self.threshold else "threshold"

    @property
    def predictor(self) -> Predictor | None:
        """What predicts the skipped steps, where the policy says that too; None: what the calibrator's options say."""
        return None

    @property
    def measures(self) -> bool:
        """Whether `decide` can ever say MEASURE; if not, what the diff is measured against need not be kept."""
        return self.caches and self.probe is not None

    def decide(self, step: int) -> Action:
        """What to do in this step.

        Args:
            step: the step's index in its request, from 0.
        """
        self._diff = None
        forced = self.forced(step)
        if forced is not None:
            self._why = forced
            return Action.COMPUTE
        self._why = "mask" if self.static else "hit"
        return Action.SKIP if self.probe is None else Action.MEASURE

    def accept(self, diff: float) -> bool:
        """Whether the step that `decide` answered with MEASURE may be skipped. Asking changes no count.

        Args:
            diff: how much the probe changed, dimensionless (see `Probe`). A NaN or an infinity is refused.
        """
        self._diff = diff
        if not math.isfinite(diff):
            self._why = "nonfinite"
        elif (refusal := self.refusal(diff)) is not None:
            self._why = refusal
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
        record = StepRecord(step, computed, diff, self._why if why is None else why)
        self.records.append(record)
        self.count(record)
        self._diff, self._why = None, ""


def warmup_steps(config: BasicCacheConfig) -> int:
    """The length of the warm-up: `max_warmup_steps`, but no more than the ones that a mask begins with."""
    mask = config.steps_computation_mask
    if mask is None:
        return config.max_warmup_steps
    leading_ones = mask.index(0) if 0 in mask else len(mask)
    return min(config.max_warmup_steps, leading_ones)


def _limit(steps: int) -> float:
    return math.inf if steps < 0 else steps


def _accumulated_limit(config: BasicCacheConfig) -> float:
    name = "max_accumulated_residual_diff_threshold"
    value = getattr(config, name)
    limit = math.inf if value is None else as_number(name, value)
    return limit if limit > 0 else math.inf
