"""Requests that go step by step: what the tests of handles, of random orders and of long service walk through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

import cache_dit
from cache_dit import BasicCacheConfig, CalibratorConfig
from cache_dit.engine.subclass import state_of
from tests.kit.toys import TEXT, WIDTH, PairBlock, Toy, loop, normal


class Attention(nn.Module):
    """Something that looks like an attention: what TeaCache observes the input of."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor) -> Tensor:
        output: Tensor = self.mix(hidden_states)
        return output


class AttendingBlock(PairBlock):
    """A block with one."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(give)
        self.attn = Attention()

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, scale: float = 1.0) -> Any:
        return super().forward(
            hidden_states + 0.1 * torch.tanh(self.attn(2 * hidden_states)), encoder_hidden_states, scale
        )


class Walked(Toy, CacheMixin):
    """A toy with diffusers' ``cache_context``; its blocks have an attention."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__("0", (depth,))
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(AttendingBlock(self.form.give) for _ in range(depth))
        self.requires_grad_(False)


def walked(
    config: BasicCacheConfig | None, calibrator: CalibratorConfig | None = None, *, depth: int = 4, **described: Any
) -> Walked:
    """Such a toy with the cache on, or (None) without one."""
    model = Walked(depth)
    if config is not None:
        cache_dit.enable_cache(model.adapter(**described), config, calibrator)
    return model


class Walk:
    """A denoising loop that goes one step at a time.

    Args:
        model: the toy.
        handle: the session its calls are inside of; None: they are in none.
        steps: how many steps there are.
        seed, batch, tokens: of its first input.
        branches: the calls of a step, by the name of their branch.
        named: whether ``cache_context`` tells the names.
        first: the first step's number, for a walk that takes over from another one.
    """

    def __init__(
        self,
        model: Any,
        handle: Any = None,
        *,
        steps: int = 8,
        seed: int = 0,
        batch: int = 1,
        tokens: int = 6,
        branches: Sequence[str] = ("cond",),
        named: bool = False,
    ) -> None:
        self.model, self.handle, self.named, self.branches = model, handle, named, branches
        self.timesteps = [timestep**1.5 for timestep in loop(steps)]  # unevenly spread
        self.hidden = normal(batch, tokens, WIDTH, seed=seed)
        self.texts = {name: normal(batch, TEXT, WIDTH, seed=seed + 100 + i) for i, name in enumerate(branches)}
        self.outputs: list[Tensor] = []
        self.at = 0

    @property
    def done(self) -> bool:
        """Whether it has made all its steps."""
        return self.at == len(self.timesteps)

    @torch.no_grad()
    def step(self) -> None:
        """The next step."""
        timestep = torch.tensor(self.timesteps[self.at])
        with contextlib.nullcontext() if self.handle is None else self.handle:
            for name in self.branches:
                with self.model.cache_context(name) if self.named else contextlib.nullcontext():
                    self.outputs.append(self.model(self.hidden, self.texts[name], timestep))
        self.hidden = self.hidden + 0.1 * self.outputs[-len(self.branches)]
        self.at += 1

    def go(self, steps: int | None = None) -> list[Tensor]:
        """So many steps, or all that are left; gives all outputs so far."""
        for _ in range(len(self.timesteps) - self.at if steps is None else steps):
            self.step()
        return self.outputs


def nbytes(model: Any) -> int:
    """Bytes of all tensors that the cache of a model holds."""
    state = state_of(model)
    known = [*state.sessions.values(), *([] if state.latest is None else [state.latest])]
    return sum(session.nbytes for session in {id(session): session for session in known}.values())
