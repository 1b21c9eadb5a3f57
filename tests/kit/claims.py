"""What the tests of families share: calls of a tiny model, and the claims that several files make of their families."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor, nn

import cache_dit
from cache_dit.models import adapter_of
from tests.kit.equality import close, unlike
from tests.kit.row import normal
from tests.kit.tiny_models import TINY, inputs, tiny
from tests.kit.toys import counted, dynamic, lines, static

Given = dict[str, Any]

LINE = "FFCCFC"

#: Unnamed calls are all of one branch: the tests call a transformer once per step.
ONE_BRANCH: dict[str, Any] = {"enable_separate_cfg": False}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """A family's blocks in call order."""
    return [block for chain in adapter_of(model).targets()[0].chains for _, block in chain.ordered()]


def call(model: nn.Module, given: dict[str, Any]) -> Tensor:
    """One call of a transformer."""
    asks = "return_dict" in inspect.signature(type(model).forward).parameters
    output = model(**given, return_dict=False) if asks else model(**given)
    output = output if isinstance(output, Tensor) else output[0]
    return torch.stack(output) if isinstance(output, list) else output


@torch.no_grad()
def run(model: nn.Module, timesteps: Sequence[float], **shape: Any) -> list[Tensor]:
    """One call for each timestep."""
    name = next(cls.__name__ for cls in type(model).__mro__ if cls.__name__ in TINY)
    return [call(model, inputs(name, timestep=timestep, **shape)) for timestep in timesteps]


def frozen(model: nn.Module) -> list[Tensor]:
    """As many calls as ``LINE`` has steps, all of them the same."""
    return run(model, [0.6] * len(LINE))


@torch.no_grad()
def once(model: nn.Module, given: Given) -> Tensor:
    """One call."""
    return call(model, given)


def repeated(model: nn.Module, given: Given, steps: int = len(LINE)) -> list[Tensor]:
    """So many calls, all of them the same."""
    return [once(model, given) for _ in range(steps)]


def moving(name: str, step: int) -> Given:
    """Arguments for a batch of two whose second sample alone moves from step to step."""
    given = inputs(name, batch=2, timestep=0.6)
    given["hidden_states"][1] += step * normal(*given["hidden_states"].shape[1:], seed=7)
    return given


class Variant(NamedTuple):
    """A model as some of its pipelines use it.

    Args:
        name: its class.
        changes: what differs from the row in its constructor's arguments.
        extra: what it is called with besides the row's inputs, of random numbers of a seed.
        conditioned: whether that seed makes another condition, which must be obeyed.
    """

    name: str
    changes: dict[str, Any]
    extra: Callable[[int], dict[str, Any]]
    conditioned: bool = True

    def model(self) -> nn.Module:
        """The model; the test is skipped where this diffusers cannot make it so."""
        cls = getattr(diffusers, self.name, None)
        known = inspect.signature(cls.__init__).parameters if cls else self.changes
        for argument in self.changes:
            if argument not in known:
                pytest.skip(f"{self.name} of this diffusers has no {argument}")
        return tiny(self.name, **self.changes)

    def given(self, seed: int = 10) -> dict[str, Any]:
        """What it is called with."""
        return {**inputs(self.name, timestep=0.6), **self.extra(seed)}


def skipped_steps_give_the_true_output(model: nn.Module, given: Given, config: Any) -> None:
    """With the same inputs at every step, and fewer blocks run than without the cache."""
    expected = once(model, given)
    assert expected.isfinite().all()
    cache_dit.enable_cache(model, config)
    blocks = blocks_of(model)
    with counted(blocks) as fired:
        assert close(repeated(model, given), expected)
    assert fired.total() < len(LINE) * len(blocks)


def another_condition_is_obeyed_at_once(model: nn.Module, first: Given, second: Given) -> None:
    """In the middle of a run, at a step that a plan would skip."""
    before, after = once(model, first), once(model, second)
    assert unlike(after, before, by=1e-3)
    cache_dit.enable_cache(model, static("FCCCCC", **ONE_BRANCH))
    assert close(repeated(model, first, 3), before)
    assert close(repeated(model, second, 3), after)
    assert lines(model) == {"default": "FCCFCC"}


def samples_decide_for_themselves(
    name: str,
    caplog: pytest.LogCaptureFixture,
    *,
    moving: Callable[[str, int], Given] = moving,
    alone: Callable[[Given, int], Given],
    once: Callable[[nn.Module, Given], Tensor] = once,
    growth: float = 1,
) -> None:
    """A batch of two, of which one moves: each computes the steps, and gives the output, that it does alone.

    Args:
        name: the transformer's class.
        caplog: must not say that samples could not be told apart.
        moving: the arguments at a step.
        alone: a sample's part of them.
        once: one call.
        growth: how much the model multiplies a rounding error.
    """
    config = dynamic(decision="sample", residual_diff_threshold=0.01, **ONE_BRANCH)
    apart: list[list[Tensor]] = []
    for sample, line in ((0, "FCCC"), (1, "FFFF")):
        model = tiny(name)
        cache_dit.enable_cache(model, config)
        apart.append([once(model, alone(moving(name, step), sample)) for step in range(4)])
        assert lines(model) == {"default[0]": line}
    model = tiny(name)
    cache_dit.enable_cache(model, config)
    caplog.clear()
    together = [once(model, moving(name, step)) for step in range(4)]
    assert lines(model) == {"default[0]": "FCCC", "default[1]": "FFFF"}
    assert close(together, [torch.cat(pair) for pair in zip(*apart, strict=True)], growth=growth)
    assert "all samples are computed" not in caplog.text
