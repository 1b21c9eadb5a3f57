"""How a diff is measured, beyond its threshold: on what, over which tokens, on how many of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from cache_dit.config.base import SparseConfig, as_number, check_integer, check_number

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(repr=False)
class ExtraCacheConfig(SparseConfig):
    """How the diff of a step is measured; goes into `DBCacheConfig(extra_cache_config=…)`.

    Args:
        l1_hidden_states_diff_threshold: compare the hidden states after the F blocks, not what these blocks add, and
            with this threshold in place of `residual_diff_threshold`. A number or a tensor of one element; None: off.
        important_condition_threshold: where the relative diff of any token (its mean over the width) is above this,
            the diff is taken over those tokens alone. At least 0; 0: over all tokens.
        downsample_factor: only every such element of the last dimension is kept and compared. At least 1.

    Raises:
        ConfigError: a value cannot work; the message says what was seen and what was expected.
    """

    l1_hidden_states_diff_threshold: float | Tensor | None = None
    important_condition_threshold: float = 0.0
    downsample_factor: int = 1

    _checks: ClassVar[dict[str, Callable[[str, Any], object]]] = {
        "l1_hidden_states_diff_threshold": as_number,
        "important_condition_threshold": partial(check_number, minimum=0),
        "downsample_factor": partial(check_integer, minimum=1),
    }
