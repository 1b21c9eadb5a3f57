"""Muon for many small matrices: those of one shape are orthogonalised together, as one batch."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon` without weight decay, with a few large operations where it has thousands of small ones.

    A step of it on a GPU costs what its slowest launches cost, not what its matrices do. Nesterov's momentum.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, lr, weight_decay=0.0, momentum=momentum)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; raises ValueError for a closure, which no caller here has."""
        if closure is not None:
            raise ValueError("StackedMuon takes no closure: compute the gradients before step()")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self._momentum(parameter) for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            for indices in _by_shape(parameters):
                update = orthogonalised(torch.stack([directions[index] for index in indices]), group)
                rows, columns = update.shape[1:]
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                some = [parameters[index] for index in indices]
                torch._foreach_add_(some, list(update.to(some[0].dtype).unbind()), alpha=-rate)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum_buffer"]
        return momentum


def _by_shape(parameters: list[torch.Tensor]) -> list[list[int]]:
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        groups[parameter.shape].append(index)
    return list(groups.values())


def orthogonalised(matrices: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Each of (N, rows, columns) with its singular values brought near 1, by Newton and Schulz' iteration, in bfloat16.

    See https://kellerjordan.github.io/posts/muon/, whose coefficients these are.
    """
    first, second, third = group["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    wide = (matrices.mT if tall else matrices).bfloat16()
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), wide, beta=first)
    return wide.mT if tall else wide
