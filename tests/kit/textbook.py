"""Every predictor's formula, written out over tensors in float64, and a model's own blocks filled by hand with it.

Nothing here is the engine's: polynomials are solved for, Hermite's come from numpy, FoCa is simulated step by step, and
a dynamic mode decomposition is one of the whole matrix of snapshots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: What is predicted for a time, from the times of all snapshots so far and these.
Rule = Callable[[Sequence[float], Sequence[Tensor], float], Tensor]


def reuse(times: Sequence[float], values: Sequence[Tensor], target: float) -> Tensor:
    """The last value."""
    return values[-1]


def polynomial(order: int) -> Rule:
    """The polynomial through the last values: its coefficients are solved for."""

    def rule(times: Sequence[float], values: Sequence[Tensor], target: float) -> Tensor:
        count = min(order + 1, len(times))
        matrix = torch.tensor([[(time - times[-1]) ** p for p in range(count)] for time in times[-count:]])
        flat = torch.stack([value.flatten() for value in values[-count:]])
        coefficients = torch.linalg.solve(matrix.double(), flat)
        powers = torch.tensor([(target - times[-1]) ** p for p in range(count)]).double()
        return (powers @ coefficients).view_as(values[-1])

    return rule


def hermite(order: int, scale: float) -> Rule:
    """F + Σ Δ^i F / i! · σ^i H_i(σ k), with numpy's Hermite polynomials and a table of divided differences."""

    def rule(times: Sequence[float], values: Sequence[Tensor], target: float) -> Tensor:
        count = min(order + 1, len(times))
        places, column = list(times[-count:]), list(values[-count:])
        k, total = target - times[-1], values[-1]
        for degree in range(1, count):
            column = [
                (later - earlier) / (places[index + degree] - places[index])
                for index, (earlier, later) in enumerate(pairwise(column))
            ]
            weight = scale**degree * np.polynomial.hermite.hermval(scale * k, [0] * degree + [1])
            total = total + float(weight) * column[-1]
        return total

    return rule


def foca(times: Sequence[float], values: Sequence[Tensor], target: float) -> Tensor:
    """FoCa with a window of the two latest values, run through all steps since the fourth last computed one."""
    times, values = list(times[-4:]), list(values[-4:])
    if len(times) == 1:
        return values[0]
    window: list[tuple[float, Tensor]] = []
    ahead: Tensor = values[-1]
    for index, (time, value) in enumerate(zip(times, values, strict=True)):
        window.append((time, value))
        if index == 0:
            continue
        until = target if index == len(times) - 1 else times[index + 1] - 1
        slope = (value - values[index - 1]) / (time - times[index - 1])
        for k in range(1, round(until - time) + 1):
            (before, older), (after, newer) = window[-2:]
            reach = min(k, 3)
            ahead = value + reach / 2 * (slope + (newer - older) / (after - before))
            if k <= 3:
                window.append((time + k, ahead))
                third = ahead
            else:
                ahead = value + 3 / k * (third - value)
    return ahead


def dmd(times: Sequence[float], values: Sequence[Tensor], target: float) -> Tensor:
    """The exact dynamic mode decomposition of the evenly spaced end of the last six, else the straight line."""
    times, values = list(times[-6:]), list(values[-6:])
    gaps = [later - earlier for earlier, later in pairwise(times)]
    count = 1 + next((i for i, gap in enumerate(reversed(gaps)) if gap != gaps[-1]), len(gaps))
    if count < 4:
        return polynomial(1)(times, values, target)
    matrix = torch.stack([value.flatten() for value in values[-count:]], dim=1).numpy()
    u, s, vh = np.linalg.svd(matrix[:, :-1], full_matrices=False)
    rank = int((s > 1e-4 * s[0]).sum())
    inverse = vh[:rank].conj().T / (s[:rank] + 1e-8)
    powers, vectors = np.linalg.eig(u[:, :rank].T @ matrix[:, 1:] @ inverse)
    modes = matrix[:, 1:] @ inverse @ vectors
    amplitudes = np.linalg.lstsq(modes, matrix[:, -1].astype(complex), rcond=None)[0]
    horizon = (target - times[-1]) / gaps[-1]
    ahead = np.real(modes @ (powers.astype(complex) ** horizon * amplitudes))
    return torch.from_numpy(ahead).view_as(values[-1])


class Filled:
    """A model without a cache whose skipped steps are filled by hand: its own loop runs, hooks put the streams in.

    Args:
        model: the model; it is not changed after ``close``.
        blocks: its blocks, in call order.
        read: (H, E) of what a block was called with.
        split: (H, E) of what a block returned.
        build: what a block returns, of H and E.
        front, back: how many blocks at each end always compute.
        rules: what H and E are predicted by.
        states: for H and E whether the state after the blocks is predicted, not what they add.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        read: Callable[[Any, Any], tuple[Tensor, Any]],
        split: Callable[[Any], tuple[Tensor, Any]],
        build: Callable[[Tensor, Any], Any],
        front: int,
        back: int,
        rules: tuple[Rule, Rule],
        states: tuple[bool, bool],
    ) -> None:
        self.read, self.split, self.build = read, split, build
        self.rules, self.states = rules, states
        self.times: list[float] = []
        self.kept: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.now, self.skip = math.nan, False
        first, last = blocks[front], blocks[len(blocks) - back - 1]
        self.hooks = [
            first.register_forward_pre_hook(self._enter, with_kwargs=True),
            last.register_forward_hook(self._leave),
        ]

    def step(self, now: float, *, skip: bool) -> None:
        """The next call is of a step at this time."""
        self.now, self.skip = now, skip

    def close(self) -> None:
        """Let the blocks be plain again."""
        for hook in self.hooks:
            hook.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.before = tuple(None if s is None else s.clone() for s in self.read(args, kwargs))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        after = self.split(output)
        if not self.skip:
            self.times.append(self.now)
            for kept, new, old, state in zip(self.kept, after, self.before, self.states, strict=True):
                if new is not None:
                    kept.append(new.clone() if state or old is None else new - old)
            return output
        streams = []
        for kept, old, rule, state in zip(self.kept, self.before, self.rules, self.states, strict=True):
            if not kept:
                streams.append(old)
                continue
            ahead = rule(self.times, [value.double() for value in kept], self.now)
            streams.append((ahead if state or old is None else old.double() + ahead).to(kept[-1].dtype))
        return self.build(*streams)
