"""The speed-ups that are asked for, how many settings a method may try, and the masks that all methods can take."""

from typing import Any

from cache_dit import steps_mask

#: Speed-ups by work.
BUDGETS = (1.5, 2.0, 2.33, 2.8, 3.0, 4.0, 5.7)
#: The most settings of a method that are tried, the same for all.
CANDIDATES = 28


def even_mask(steps: int, full: int, **shape: Any) -> list[int]:
    """A mask of so many full steps, in the shape that `steps_mask` takes: `warmup`, `bend`, `last`."""
    mask = steps_mask(total_steps=steps, mask_policy="even", full_steps=full, **{"warmup": 1, **shape})
    assert mask is not None
    return mask
