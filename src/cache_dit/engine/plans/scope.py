"""What a plan holds for: a model, its weights, a scheduler with its noise levels, guidance, a size."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dit.engine.plans.call import differing, host_values

UNNAMED = "default"
"""The branch of calls that nobody named: the only one, or the first of guidance's two as may turn out."""

SIGMA_TOLERANCE = 1e-3
"""How far a run's noise levels may lie from the plan's, as a share of the highest of them."""

_COMPARED = ("model_class", "weights", "num_inference_steps", "scheduler", "shift", "branches", "resolution", "dtype")
_OF_THE_CALL = ("branches", "resolution")


def branch_name(branch: Hashable) -> str:
    """The name of a branch as plans know it."""
    return str(branch[0] if isinstance(branch, tuple) else branch)


@dataclass(frozen=True)
class PlanScope:
    """What a plan holds for, or what a run is like; None: unknown, holds for any.

    Args:
        model_class: the transformer's class name.
        weights: the digest of its weights; see `model_facts.weights_digest`.
        num_inference_steps: steps of a run.
        scheduler: the scheduler's class name.
        shift: the shift of its configuration.
        sigmas: its noise levels, one per step. Not compared where `resolution` is None: many depend on it.
        branches: the guidance branches that the first step of a run calls; not in an order.
        resolution: how many tokens the latent has; see `latent_tokens`.
        dtype: of the transformer's parameters, e.g. `"bfloat16"`.
        predictors: the names of the rules that were searched; not compared with a run's.
        call: the arguments of the pipeline's call, those that lie on the host, by name.
    """

    model_class: str | None = None
    weights: str | None = None
    num_inference_steps: int | None = None
    scheduler: str | None = None
    shift: float | None = None
    sigmas: tuple[float, ...] | None = None
    branches: tuple[str, ...] | None = None
    resolution: int | None = None
    dtype: str | None = None
    predictors: tuple[str, ...] | None = None
    call: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("sigmas", "branches", "predictors"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", tuple(round(float(sigma), 6) for sigma in self.sigmas))
        if self.branches is not None:
            object.__setattr__(self, "branches", tuple(sorted(map(branch_name, self.branches))))
        if self.call is not None:
            object.__setattr__(self, "call", host_values(self.call))

    def differences(self, other: PlanScope) -> list[str]:
        """What is known of both and differs, as sentences: `num_inference_steps=28, not 50`."""
        return self._differing(_COMPARED, other)

    def call_differences(self, other: PlanScope) -> list[str]:
        """Those in a pipeline's call, and in what follows from it: the branches, the size, the noise levels."""
        return self._differing(_OF_THE_CALL, other)

    def unchecked(self, call: Mapping[str, Any] | None) -> str:
        """What of the call that a plan was made with nothing tells of a run, as a sentence; empty: nothing."""
        if self.call is None:
            return "guidance was not checked, as the plan does not know the call that it was made with"
        if call is None:
            return "guidance was not checked, as a transformer without its pipeline does not tell it"
        missing = [name for name in self.call if name not in call]
        return f"not checked, as this pipeline takes none: {', '.join(missing)}" if missing else ""

    def _differing(self, names: Sequence[str], other: PlanScope) -> list[str]:
        found = []
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "branches" and _one_unnamed(mine, theirs):
                continue
            if mine is not None and theirs is not None and mine != theirs:
                found.append(f"{name}={mine!r}, not {theirs!r}")
        if self.sigmas and other.sigmas and self.resolution is not None:
            found += _differing_sigmas(self.sigmas, other.sigmas)
        return found + differing(self.call or {}, other.call or {})

    def has_branch(self, name: str) -> bool:
        """Whether this branch of guidance is one of them."""
        return self.branches is None or name in self.branches or _one_unnamed(self.branches, (name,))


def _one_unnamed(mine: Sequence[str] | None, theirs: Sequence[str] | None) -> bool:
    """Whether both have one branch, and one of them no name for it: a loop of one's own needs none."""
    return (
        bool(mine and theirs)
        and len(mine or ()) == len(theirs or ()) == 1
        and UNNAMED in (*(mine or ()), *(theirs or ()))
    )


def _differing_sigmas(mine: Sequence[float], theirs: Sequence[float]) -> list[str]:
    allowed = SIGMA_TOLERANCE * max(map(abs, mine))
    pairs = enumerate(zip(mine, theirs, strict=False))
    step = next((step for step, (one, other) in pairs if not abs(one - other) <= allowed), None)
    return [] if step is None else [f"sigmas[{step}]={mine[step]:.4f}, not {theirs[step]:.4f}"]


def latent_tokens(shape: Sequence[int]) -> int:
    """How many tokens a latent has: of (batch, tokens, width) the tokens, of (batch, channels, …) its positions."""
    return math.prod(shape[1:2] if len(shape) == 3 else shape[2:])
