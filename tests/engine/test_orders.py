"""Block lists that take turns, and modules between blocks that have nothing to do when these are skipped."""

from __future__ import annotations

import torch
from torch import nn

import cache_dit
from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern
from tests.kit.equality import close, same


class Block(nn.Module):
    """A residual layer over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.calls = 0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Adds what the layer makes of it."""
        self.calls += 1
        return hidden_states + torch.tanh(self.linear(hidden_states))


class Latte(nn.Module):
    """Spatial blocks see (frames, tokens, width), temporal ones (tokens, frames, width), in turn."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spatial = nn.ModuleList(Block(4) for _ in range(depth))
        self.temporal = nn.ModuleList(Block(4) for _ in range(depth))

    def forward(self, hidden_states: torch.Tensor, timestep: float) -> torch.Tensor:
        """One pass."""
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            hidden_states = spatial(hidden_states).transpose(0, 1)
            hidden_states = temporal(hidden_states).transpose(0, 1)
        return hidden_states


class Face(nn.Module):
    """Costly attention to a face, added between blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, face: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """A part of the face."""
        self.calls += 1
        return torch.sin(face + hidden_states)


class WithFace(nn.Module):
    """Blocks with a module of another kind after each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(4) for _ in range(4))
        self.faces = nn.ModuleList(Face() for _ in range(4))

    def forward(self, hidden_states: torch.Tensor, timestep: float) -> torch.Tensor:
        """One pass."""
        for block, face in zip(self.blocks, self.faces, strict=True):
            hidden_states = block(hidden_states)
            hidden_states = hidden_states + face(torch.ones(4), hidden_states=hidden_states)
        return hidden_states


def config(**options: int) -> DBCacheConfig:
    """Computes the first step, caches what may be cached."""
    return DBCacheConfig(max_warmup_steps=1, residual_diff_threshold=0.5, **options)


@torch.no_grad()
def test_lists_that_take_turns_are_one_chain_in_call_order() -> None:
    model = Latte()
    hidden = torch.randn(2, 3, 4)
    truth = model(hidden, 0.0)
    adapter = BlockAdapter(
        transformer=model,
        blocks=[model.spatial, model.temporal],
        forward_pattern=ForwardPattern.Pattern_3,
        merge=True,
        interleave=True,
    )
    for front, back in ((1, 0), (1, 1), (2, 1)):
        cache_dit.enable_cache(adapter, config(Fn_compute_blocks=front, Bn_compute_blocks=back))
        for step in range(3):
            for block in (*model.spatial, *model.temporal):
                block.calls = 0
            assert close(model(hidden, 1.0 - step / 3), truth, depth=16)
        # Fn rounds and the spatial block of the next compute, then the last Bn rounds.
        assert [block.calls for block in model.spatial] == [1] * (front + 1) + [0] * (3 - front - back) + [1] * back
        assert [block.calls for block in model.temporal] == [1] * front + [0] * (4 - front - back) + [1] * back
        assert cache_dit.summary(adapter, logging=False)[0].steps_line == {"default": "FCC"}


@torch.no_grad()
def test_a_module_between_skipped_blocks_is_not_run_and_the_result_is_the_same() -> None:
    model = WithFace()
    hidden = torch.randn(1, 3, 4)
    truth = model(hidden, 0.0)
    adapter = BlockAdapter(
        transformer=model,
        blocks=model.blocks,
        forward_pattern=ForwardPattern.Pattern_3,
        idle={"faces": "hidden_states"},
    )
    cache_dit.enable_cache(adapter, config(Fn_compute_blocks=1))
    assert same(model(hidden, 1.0), truth)
    for face in model.faces:
        face.calls = 0
    assert close(model(hidden, 0.5), truth, depth=16)
    # The first follows a computed block; the last follows the block that hands out the prediction.
    assert [face.calls for face in model.faces] == [1, 0, 0, 1]
    cache_dit.disable_cache(adapter)
    assert {type(face) for face in model.faces} == {Face}
