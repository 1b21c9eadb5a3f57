"""Work: the multiply-adds that a run executes inside a FLUX transformer's blocks.

One measure for everybody, also for methods that skip only the attention of a block. It needs torch alone, so that a
process that has not our package can count by the very same rule.
"""

from typing import Any

import torch

LISTS = ("transformer_blocks", "single_transformer_blocks")
_QUERIES = ("to_q", "add_q_proj")


class WorkMeter:
    """Counts the work of a transformer from when it is made until ``remove``; a context manager.

    A linear layer counts rows · in · out. Attention counts twice (scores, and the sum of the values) queries · keys ·
    width, seen at its query projections: the tokens of a joint attention are those of all its query projections. What
    is left out (norms, rotations, softmax, gates, the modules outside the blocks) is below a hundredth of it. A layer
    is counted when it is called, so a method that skips must not call it; one that replaces the ``forward`` of single
    linear layers would be counted in full.

    Attributes:
        work: multiply-adds of everything in the blocks.
        attention: the part of them that is scores and sums of values.
        blocks: calls of blocks that ran, seen at each block's first linear layer; a batch of two counts as two.
        calls: calls of the transformer, by the same rule.
    """

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.work = self.attention = self.blocks = self.calls = 0
        self._hooks: list[Any] = [transformer.register_forward_pre_hook(self._count_call, with_kwargs=True)]
        for block in (block for name in LISTS for block in getattr(transformer, name)):
            linears = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
            self._hooks += [linear.register_forward_pre_hook(self._count_linear) for linear in linears]
            self._hooks.append(linears[0].register_forward_pre_hook(self._count_block))
            for module in block.modules():
                queries = [getattr(module, name) for name in _QUERIES if getattr(module, name, None) is not None]
                seen: dict[int, int] = {}
                for query in queries:
                    hook = _attention_counter(self, seen)
                    self._hooks.append(query.register_forward_pre_hook(hook))

    def reset(self) -> None:
        self.work = self.attention = self.blocks = self.calls = 0

    def remove(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> "WorkMeter":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _count_call(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls += (args[0] if args else kwargs["hidden_states"]).shape[0]

    def _count_linear(self, linear: Any, args: tuple[Any, ...]) -> None:
        self.work += args[0].numel() * linear.out_features

    def _count_block(self, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.blocks += args[0].shape[0]


def _attention_counter(meter: WorkMeter, seen: dict[int, int]) -> Any:
    """A hook for one query projection; `seen` holds the tokens of the projections of this attention that have run."""

    def count(linear: Any, args: tuple[Any, ...]) -> None:
        if id(linear) in seen:  # the next call of the attention
            seen.clear()
        batch, tokens = args[0].shape[0], args[0].shape[1]
        before = sum(seen.values())
        seen[id(linear)] = tokens
        # All tokens attend to all: what grows from before² to (before + tokens)² with these.
        added = 2 * batch * ((before + tokens) ** 2 - before**2) * linear.out_features
        meter.attention += added
        meter.work += added

    return count
