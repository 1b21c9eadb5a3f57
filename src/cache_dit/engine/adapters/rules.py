"""What a model's record says of the calls of its transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CallRules:
    """What a model's record says of the calls of its transformer.

    Args:
        computes: whether a call, seen by its arguments by name, must compute all blocks; it counts as a step.
        bypasses: the same, for a call that is no step at all.
        branch_arguments: arguments that change which blocks run, or how: calls that differ in them are branches of
            their own. A default says nothing.
        timestep: gives a call's timestep, where that is not the largest value of the argument of such a name.
    """

    computes: Callable[[Mapping[str, Any]], bool] | None = None
    bypasses: Callable[[Mapping[str, Any]], bool] | None = None
    branch_arguments: tuple[str, ...] = ()
    timestep: Callable[[Mapping[str, Any]], Any] | None = None
