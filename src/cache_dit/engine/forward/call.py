"""One call of the transformer under way: what the caches of its branch must know of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any

import torch

#: What decides instead of a measurement: whether a step may be skipped, and the diff if it tells one.
SimilarityOverride = Callable[..., tuple[bool, float | None]]


class Call:
    """What the caches of a branch must know of one call of the transformer."""

    #: The step's number in its request.
    step: int
    #: What tells the call from the others of its step.
    branch: Hashable
    #: The step's place on each coordinate that is asked for, its number under ``"step"``; all ascend over the steps.
    times: Mapping[str, float]
    #: Why this step must compute whatever a policy says, or None.
    compute: str | None = None
    #: The process group that decides together, or None.
    group: Any = None
    #: What the call looks like on all ranks of the group: another one than at the last computed step is a miss.
    key_of_ranks: Hashable = None
    #: Measures by how much a conditioning tensor differs from the last computed step's, at most, or of each sample
    #: where their number is given; gives None where none can. None: nobody asks.
    jump: Callable[..., torch.Tensor | None] | None = None
    #: The same where nothing else of the step is read: numbers, or None where there are none, or none yet.
    look: Callable[..., list[float] | None] | None = None
    #: What decides instead of a measurement, or None.
    similarity: SimilarityOverride | None = None
    #: Told of every computed step; None: nobody asks.
    observer: Callable[[Any, Any], None] | None = None

    def read_latent(self) -> tuple[torch.Tensor | None, int]:
        """The transformer's first input, or None, and its number of samples."""
        raise NotImplementedError

    def next_pass(self, before: Any) -> Any:
        """A chain's blocks are called again: another pass over them, with a cache of its own.

        Args:
            before: the forward over the chain that ends with it.
        """
        raise NotImplementedError

    @cached_property
    def _latent(self) -> tuple[torch.Tensor | None, int]:
        return self.read_latent()

    @property
    def latent(self) -> torch.Tensor | None:
        """The transformer's first input."""
        return self._latent[0]

    @property
    def batch(self) -> int:
        """Its number of samples."""
        return self._latent[1]
