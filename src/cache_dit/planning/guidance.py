"""How guidance mixes the branches, read off a run.

Each new latent is fitted by the one before and the branches' outputs. A first-order solver makes x_{t+1} = a x_t + b v
with v = Σ_b ρ_b v_b, whatever a and b are at that step: the coefficients of the branches' outputs in the fit are b ρ_b,
and the fit leaves nothing. Where it leaves something (a solver that remembers, a guidance that is not linear), nothing
is told.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_LEFT = 1e-2
"""The most that the fit may leave of the latent's change, for it to be believed."""

_FEWEST = 3


class MixtureWatch:
    """Told of each call of the model in a run; ``shares`` tells what the run showed."""

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
