"""What a run shows to the planner: its features, how guidance mixes its branches, and what it ran with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.forward.branch_cache import ChainForward
from cache_dit.engine.plans.scope import branch_name, latent_tokens
from cache_dit.engine.sessions.model_facts import scheduler_facts
from cache_dit.planning.gram import GramStream
from cache_dit.planning.runs import Observer

_LEFT = 1e-2
"""The most that the fit may leave of the latent's change, for it to be believed."""

_FEWEST = 3


class FeatureObserver(Observer):
    """Its features go to a `GramStream`, and what the run is like is noted.

    Args:
        state: of the transformer.
        stream: takes the features.
    """

    def __init__(self, state: TransformerState, stream: GramStream) -> None:
        super().__init__(state)
        self.stream = stream
        self.mixture = MixtureWatch()
        self.resolution: int | None = None
        self._scheduler: dict[str, Any] = {}

    def see(self, made: ChainForward, output: torch.Tensor | None) -> None:
        """Take note of a step."""
        call, branch = made.call, branch_name(made.call.branch)
        if self.scheduler is not None and not self._scheduler:  # before it has moved on
            sigmas = _sigmas(self.scheduler, self.stream.steps)
            self._scheduler = {**scheduler_facts(self.scheduler), "sigmas": sigmas}
        if self.resolution is None and call.latent is not None:
            self.resolution = latent_tokens(call.latent.shape)
        self.mixture.see(call.step, branch, call.latent, output)
        chains = [chain for chain, _ in self.state.chains]
        self.stream.add(branch, call.step, made.snapshot_hidden, chain=chains.index(made.cache.chain))

    @property
    def facts(self) -> dict[str, Any]:
        """What the run was like: `PlanScope`'s fields, and how the branches share in the result, where it told."""
        branches = self.stream.branches
        return {
            "branches": branches,
            "shares": self.mixture.shares(branches),
            "scheduler": None,
            "shift": None,
            "sigmas": None,
            **self._scheduler,
            "resolution": self.resolution,
        }


def _sigmas(scheduler: Any, steps: int) -> list[float] | None:
    """The noise level of each step of the run that a scheduler has begun; None where it has none."""
    begin = getattr(scheduler, "begin_index", None) or 0
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) < begin + steps:
        return None
    return [float(sigma) for sigma in sigmas[begin : begin + steps]]


class MixtureWatch:
    """How guidance mixes the branches, read off a run: told of each call of the model.

    Each new latent is fitted by the one before and the branches' outputs. A first-order solver makes
    x_{t+1} = a x_t + b v with v = Σ_b ρ_b v_b, whatever a and b are at that step: the coefficients of the branches'
    outputs in the fit are b ρ_b, and the fit leaves nothing. Where it leaves something (a solver that remembers, a
    guidance that is not linear), nothing is told.
    """

    def __init__(self) -> None:
        self._step = -1
        self._latent: Any = None
        self._outputs: dict[str, Any] = {}
        self._found: dict[tuple[str, ...], list[Any]] = {}

    def see(self, step: int, branch: str, latent: Any, output: Any) -> None:
        """Take note of a call.

        Args:
            step, branch: of the call.
            latent: the model's input, a tensor or None.
            output: what it made of it, a tensor or None.
        """
        if latent is None or output is None or latent.shape != output.shape:
            return
        if step != self._step:
            now = _flat(latent)
            if self._latent is not None and step == self._step + 1 and len(self._outputs) > 1:
                self._fit(now)
            self._step, self._latent, self._outputs = step, now, {}
        self._outputs[branch] = _flat(output)

    def shares(self, branches: list[str]) -> tuple[float, ...] | None:
        """ρ in the order of the branches, Σ|ρ| = 1; None where the run did not tell."""
        found = self._found.get(tuple(sorted(branches)), [])
        if len(found) < _FEWEST:
            return None
        middle = np.median(found, axis=0)
        ordered = dict(zip(sorted(branches), middle / np.abs(middle).sum(), strict=True))
        sign = np.sign(sum(ordered.values())) or 1.0
        return tuple(float(sign * ordered[branch]) for branch in branches)

    def _fit(self, now: Any) -> None:
        names = tuple(sorted(self._outputs))
        columns = np.stack([self._latent, *(self._outputs[name] for name in names)], axis=1)
        norms = np.linalg.norm(columns, axis=0)
        change = np.linalg.norm(now - self._latent)
        if columns.shape[0] < 2 * columns.shape[1] or not (norms.all() and change > 0):
            return
        coefficients, *_ = np.linalg.lstsq(columns / norms, now, rcond=None)
        left = now - columns @ (coefficients / norms)
        if np.linalg.norm(left) > _LEFT * change:
            return
        of_branches = (coefficients / norms)[1:]
        total = of_branches.sum()
        if np.isfinite(of_branches).all() and abs(total) > 1e-6 * np.abs(of_branches).sum():
            self._found.setdefault(names, []).append(of_branches / total)


def _flat(tensor: Any) -> Any:
    return tensor.detach().double().reshape(-1).cpu().numpy()
