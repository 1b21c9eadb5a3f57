"""The policy of DBCache: what the first blocks add to their input tells."""

from __future__ import annotations

import math
from typing import Any

from cache_dit.config.base import as_number
from cache_dit.engine.policies.base import Probe, StepPolicy


class DBCachePolicy(StepPolicy):
    """The decisions of DBCache: the residual of the first blocks tells.

    A step is skipped if its relL1 against the last computed step is below `residual_diff_threshold`. A threshold of 1
    or more skips without measuring, unless the accumulated diff is limited. With a positive
    `l1_hidden_states_diff_threshold` that is the threshold, and the first blocks' output is compared, not what they
    add to their input.
    """

    def prepare(self, calibration: Any, *, num_inference_steps: int | None) -> None:
        """Choose what is measured, and the threshold for it."""
        name = "l1_hidden_states_diff_threshold"
        value = getattr(self.config.extra_cache_config, name, None)
        threshold = 0.0 if value is None else as_number(name, value)
        if threshold > 0:
            self.probe, self.threshold = Probe.STATE, threshold
        if self.threshold >= 1 and self._max_accumulated == math.inf:
            self.probe = None

    def refusal(self, diff: float) -> str | None:
        """`threshold` where the diff is not below it, and the threshold below 1."""
        return None if diff < self.threshold or self.threshold >= 1 else "threshold"
