"""What a run does, counted: multiply-adds and blocks, tensors that stay alive, numbers that the host reads.

Nothing here looks inside a cache: the same lines count for everybody. It needs torch alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from bench.models import blocks_of

Inputs = Sequence[dict[str, Any]]
_QUERIES = ("to_q", "add_q_proj")


# -- work


class WorkMeter:
    """Counts the work of a transformer from when it is made to the end of the ``with``.

    A linear layer counts rows · in · out. Attention counts twice (scores, and the sum of the values) queries · keys ·
    width, seen at its query projections: the tokens of a joint attention are those of all its query projections. What
    is left out (norms, rotations, softmax, gates, the modules outside the blocks) is below a hundredth of it. A layer
    is counted when it is called, so a method that skips must not call it; one that replaces the ``forward`` of single
    linear layers would be counted in full.

    Attributes:
        work: multiply-adds of everything in the blocks.
        attention: the part of them that is scores and sums of values.
        blocks: calls of blocks that ran, seen at each block's first linear layer; a batch of two counts as two.
        ran: the numbers of the blocks that ran.
    """

    def __init__(self, transformer: Any) -> None:
        self.reset()
        self._hooks: list[Any] = []
        for number, block in enumerate(blocks_of(transformer)):
            linears = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
            self._hooks += [linear.register_forward_pre_hook(self._count_linear) for linear in linears]
            self._hooks.append(linears[0].register_forward_pre_hook(self._block_counter(number)))
            for module in block.modules():
                seen: dict[int, int] = {}
                for query in filter(None, (getattr(module, name, None) for name in _QUERIES)):
                    self._hooks.append(query.register_forward_pre_hook(self._attention_counter(seen)))

    def reset(self) -> None:
        self.work = self.attention = self.blocks = 0
        self.ran: list[int] = []

    def __enter__(self) -> WorkMeter:
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _count_linear(self, linear: Any, args: tuple[Any, ...]) -> None:
        self.work += args[0].numel() * linear.out_features

    def _block_counter(self, number: int) -> Callable[..., None]:
        def count(_: Any, args: tuple[Any, ...]) -> None:
            self.blocks += args[0].shape[0]
            self.ran.append(number)

        return count

    def _attention_counter(self, seen: dict[int, int]) -> Callable[..., None]:
        """For one query projection; ``seen``: the tokens of the projections of this attention that have run."""

        def count(linear: Any, args: tuple[Any, ...]) -> None:
            if id(linear) in seen:  # the next call of the attention
                seen.clear()
            batch, tokens = args[0].shape[0], args[0].shape[1]
            before = sum(seen.values())
            seen[id(linear)] = tokens
            # All tokens attend to all: what grows from before² to (before + tokens)² with these.
            added = 2 * batch * ((before + tokens) ** 2 - before**2) * linear.out_features
            self.attention += added
            self.work += added

        return count


def executed_blocks(model: Any, call: Callable[..., Any], inputs: Inputs) -> tuple[list[int], list[int]]:
    """Calls of blocks in each step of one request, by samples, and the numbers of those that run in every step."""
    counts, kept = [], set(range(len(blocks_of(model))))
    with WorkMeter(model) as meter:
        for arguments in inputs:
            meter.reset()
            call(**arguments)
            counts.append(meter.blocks)
            kept &= set(meter.ran)
    return counts, sorted(kept)


# -- live state


def most_alive(model: Callable[..., Any], inputs: Inputs) -> int:
    """The most bytes of tensors alive after a step, beyond those alive before the first."""
    most = 0
    gc.collect()
    before = _alive()
    gc.freeze()  # what is there already is not looked at again
    try:
        for arguments in inputs:
            model(**arguments)
            gc.collect()
            alive = _alive()
            most = max(most, sum(alive[pointer] for pointer in alive.keys() - before.keys()))
    finally:
        gc.unfreeze()
    return most


def _alive() -> dict[int, int]:
    """Address and bytes of the memory behind every tensor that the garbage collector knows."""
    found = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    real = [tensor for tensor in found if not isinstance(tensor, FakeTensor)]  # a compiler leaves such behind
    tensors = [tensor for tensor in real if tensor.layout is torch.strided and not tensor.is_meta]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


# -- host reads

#: What brings numbers to the host: operators, and methods that never come to the dispatcher.
_OPERATORS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero")
_METHODS = ("tolist", "numpy", "cpu", "__array__")


class _Reads(TorchDispatchMode):
    """Counts how often the host reads numbers that were computed with a model's weights or from its hidden states.

    On an accelerator the host waits for these, and not for what a cache or the timestep alone gave.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.count, self.methods = 0, _Methods(self)
        self._of_model: Any = WeakTensorKeyDictionary()
        self.mark((*model.parameters(), *model.buffers()))

    def mark(self, values: Any) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, torch.Tensor):
                self._of_model[leaf] = True

    def arrived(self, arguments: dict[str, Any]) -> None:
        """Take note of the arguments of a step: nested ones too."""
        for name, value in arguments.items():
            if isinstance(value, dict):
                self.arrived(value)
            elif name != "timestep":
                self.mark(value)

    def of_model(self, values: Any) -> bool:
        return any(isinstance(leaf, torch.Tensor) and leaf in self._of_model for leaf in tree_leaves(values))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, from_model = func(*args, **(kwargs or {})), self.of_model((args, kwargs))
        if from_model:
            self.count += func._schema.name in _OPERATORS
            self.mark(result)
        return result


class _Methods(TorchFunctionMode):
    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in _METHODS:
            return func(*args, **(kwargs or {}))
        before, from_model = self.reads.count, self.reads.of_model(args)
        result = func(*args, **(kwargs or {}))
        self.reads.count = before + from_model  # once, however many operators it is made of
        return result


def reads_by_step(model: torch.nn.Module, call: Callable[..., Any], inputs: Inputs) -> list[int]:
    """The host's reads of the model's numbers in each step of one request."""
    reads, steps = _Reads(model), []
    for arguments in inputs:
        before = reads.count
        reads.arrived(arguments)
        with torch.no_grad(), reads, reads.methods:
            call(**arguments)
        steps.append(reads.count - before)
    return steps
