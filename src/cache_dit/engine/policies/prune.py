"""Which blocks to skip: the decisions of DBPrune, block by block, as a state machine of numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice

from cache_dit.config.base import as_number
from cache_dit.config.prune import DBPruneConfig
from cache_dit.engine.policies.base import Action, StepRecord, StepRules

_DIFFS_OF_THRESHOLD = 5


class PrunePolicy(StepRules):
    """The decisions of DBPrune (`DBPruneConfig` says what each option means).

    `decide` says for a step whether all blocks run (COMPUTE), each is decided by itself (MEASURE), or all that may be
    are skipped (SKIP: a static mask, or a threshold of 1 or more and no limit to the accumulated diff). What is decided
    by itself is asked of `accept_block` with the diff measured on that block, or, with `prune_decision="previous"`, of
    `decide_blocks` with those of the step before (`note_diffs`). `commit` reports what was done.

    With a positive `l1_hidden_states_diff_threshold` that is the threshold: what is compared are hidden states anyway.

    A step in which any block was skipped counts once as a cached one, however many blocks it was, and its diff is the
    largest that a block was skipped with. The diff of a step in which none was is the smallest one measured.

    Args:
        config, num_inference_steps, records, origin: as for `StepRules`.

    Raises:
        ConfigError: a threshold or the accumulated limit is no number.
    """

    def __init__(
        self,
        config: DBPruneConfig,
        *,
        num_inference_steps: int | None = None,
        records: Iterable[StepRecord] = (),
        origin: int = 0,
    ) -> None:
        super().__init__(config, num_inference_steps=num_inference_steps, records=records, origin=origin)
        self.config = config
        asked = getattr(config.extra_cache_config, "l1_hidden_states_diff_threshold", None)
        l1 = 0.0 if asked is None else as_number("l1_hidden_states_diff_threshold", asked)
        self.threshold = l1 if l1 > 0 else self.threshold
        self._first, self._last = config.Fn_compute_blocks, config.Bn_compute_blocks
        self._kept = frozenset(config.non_prune_block_ids)
        cap = config.max_dynamic_prune_threshold
        self._dynamic = config.enable_dynamic_prune_threshold
        self._cap = 2 * self.threshold if cap is None else as_number("max_dynamic_prune_threshold", cap)
        self._relax = config.dynamic_prune_threshold_relax_ratio
        self._unmeasured = self.static or (self.threshold >= 1 and self._max_accumulated == math.inf)
        self._noted: tuple[int, dict[int, float]] = (-1, {})
        self._begin("")
        self.replay()

    def _begin(self, why: str) -> None:
        self._why = why
        self._diffs: dict[int, float] = {}
        self._refusals: Counter[str] = Counter()
        self._largest = 0.0  # of the blocks skipped in this step

    @property
    def measures(self) -> bool:
        """Whether `decide` can ever say MEASURE; if not, the blocks' inputs need not be kept."""
        return self.caches and not self._unmeasured

    def excluded(self, num_blocks: int) -> frozenset[int]:
        """The blocks of a chain of `num_blocks` that always run: the first Fn, the last Bn, and those named."""
        ends = {*range(self._first), *range(num_blocks - self._last, num_blocks)}
        return frozenset(block for block in ends | self._kept if 0 <= block < num_blocks)

    def decide(self, step: int) -> Action:
        """What to do in this step.

        Args:
            step: the step's index in its request, from 0.
        """
        forced = self.forced(step)
        self._begin(forced or ("mask" if self.static else "hit"))
        if forced is not None:
            return Action.COMPUTE
        return Action.SKIP if self._unmeasured else Action.MEASURE

    def accept_block(self, block: int, diff: float) -> bool:
        """Whether a block of the step that `decide` answered with MEASURE may be skipped.

        Args:
            block: the block's index in its chain; ask for each once, in ascending order.
            diff: relL1 of the block's input against the one when it last ran, dimensionless. A NaN or an infinity is
                refused.
        """
        threshold = self._block_threshold()
        self._diffs[block] = diff
        largest = max(self._largest, diff)
        if not math.isfinite(diff):
            self._refusals["nonfinite"] += 1
        elif diff >= threshold and self.threshold < 1:
            self._refusals["threshold"] += 1
        elif self._accumulated + largest > self._max_accumulated:
            self._refusals["accumulated"] += 1
        else:
            self._largest = largest
            return True
        return False

    def _block_threshold(self) -> float:
        """The threshold of the next block: a dynamic one follows the first diffs of the step."""
        if not self._dynamic:
            return self.threshold
        positive = (diff for diff in self._diffs.values() if 0 < diff < math.inf)
        first = list(islice(positive, _DIFFS_OF_THRESHOLD))
        if not first:
            return self.threshold
        relaxed = sum(first) / len(first) * self._relax
        return max(relaxed, self.threshold) if relaxed < self._cap else self.threshold

    def note_judgement(self, block: int, diff: float | None, *, accepted: bool) -> None:
        """Take note of a block that somebody else decided, by a diff or by none."""
        if diff is not None:
            self._diffs[block] = diff
        if not accepted:
            self._refusals["threshold"] += 1
        elif diff is not None and math.isfinite(diff):
            self._largest = max(self._largest, diff)

    @property
    def step_diffs(self) -> dict[int, float]:
        """The diffs by block of the step under way."""
        return self._diffs

    def note_diffs(self, step: int, diffs: Mapping[int, float]) -> None:
        """Take the diffs measured in a step, by block, to decide the next step by (`prune_decision="previous"`)."""
        self._noted = step, dict(diffs)

    @property
    def previous_diffs(self) -> dict[int, float]:
        """The diffs noted for the step that was committed last, by block; empty where none were."""
        step, diffs = self._noted
        return dict(sorted(diffs.items())) if self.records and self.records[-1].step == step else {}

    def decide_blocks(self, step: int) -> frozenset[int]:
        """The blocks to skip in a step that `decide` answered with MEASURE, by the diffs of the step before it.

        Args:
            step: the step's index in its request, from 0.

        Returns:
            Indices of blocks; a block whose diff was not noted runs. `excluded` is for the caller to take out, or not
            to measure.
        """
        return frozenset(block for block, diff in self.previous_diffs.items() if self.accept_block(block, diff))

    def commit(
        self,
        step: int,
        *,
        pruned: int,
        blocks: int,
        diffs: Mapping[int, float] | None = None,
        why: str | None = None,
    ) -> None:
        """Take note of what was done in this step, and count it.

        Args:
            step: the step's index in its request, from 0.
            pruned: how many blocks did not run; the engine may have run some that could have been skipped.
            blocks: how many blocks the chain has.
            diffs: the diffs that the blocks were decided by; None: those that `accept_block` was given in this step.
            why: a reason code that overrides the policy's own, e.g. `"shape"`.
        """
        decided = self._diffs if diffs is None else diffs
        values = tuple(decided[block] for block in sorted(decided))
        finite = [diff for diff in values if math.isfinite(diff)]
        diff = None
        if finite:
            diff = self._largest if pruned else min(finite)
        elif values:
            diff = values[0]
        if why is None:
            why = self._why
            if not pruned and why == "hit":
                why = self._refusals.most_common(1)[0][0] if self._refusals else "not_measured"
        self.record(StepRecord(step, not pruned, diff, why, pruned, blocks, values))
        self._begin("")

    @property
    def pruned_steps(self) -> list[int]:
        """The steps in which a block was skipped, in order."""
        return [record.step for record in self.records if record.pruned]

    @property
    def pruned_blocks(self) -> list[int]:
        """For each step that was decided block by block, how many blocks were skipped."""
        return [record.pruned for record in self.records if record.blocks]

    @property
    def actual_blocks(self) -> list[int]:
        """For each step that was decided block by block, how many blocks there are."""
        return [record.blocks for record in self.records if record.blocks]

    @property
    def pruned_ratio(self) -> float:
        """The share of all blocks of all steps that were skipped; 0 before the first step."""
        return sum(self.pruned_blocks) / max(1, sum(self.actual_blocks))

    @property
    def block_diffs(self) -> dict[int, list[float]]:
        """For each step that measured, the diffs that its blocks were decided by, in the order of the blocks."""
        return {record.step: list(record.block_diffs) for record in self.records if record.block_diffs}
