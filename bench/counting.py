"""What a run does, counted: multiply-adds and blocks, tensors that stay alive, numbers that the host reads.

Nothing here looks inside a cache: the same lines count for everybody. It needs torch alone.
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
        ran: the numbers of the blocks that ran.
    """

    def __init__(self, transformer: Any) -> None:
        self.reset()
        self._hooks: list[Any] = [transformer.register_forward_pre_hook(self._count_call, with_kwargs=True)]
        for number, block in enumerate(blocks_of(transformer)):
            linears = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
            self._hooks += [linear.register_forward_pre_hook(self._count_linear) for linear in linears]
            self._hooks.append(linears[0].register_forward_pre_hook(self._block_counter(number)))
            for module in block.modules():
                seen: dict[int, int] = {}
                for query in filter(None, (getattr(module, name, None) for name in _QUERIES)):
                    self._hooks.append(query.register_forward_pre_hook(self._attention_counter(seen)))

    def reset(self) -> None:
        self.work = self.attention = self.blocks = self.calls = 0
        self.ran: list[int] = []

    def remove(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> WorkMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _count_call(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls += (args[0] if args else kwargs["hidden_states"]).shape[0]

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

#: Methods of a tensor that bring numbers to the host, and operators that do.
_READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__"}
_OPERATORS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")
#: Where the numbers come from; see ``HostReads``.
ORIGINS = ("model", "timestep", "own")


class HostReads:
    """Counts, inside, how often numbers of tensors are read by the host, by where the numbers come from.

    ``"model"``: computed with the model's weights or from its hidden states, so that on an accelerator the host waits;
    ``"timestep"``: computed from the timestep alone; ``"own"``: what a cache made on the host by itself, for which
    nothing waits anywhere.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.count: Counter[str] = Counter()
        self._origin: Any = WeakTensorKeyDictionary()
        self._reading = False
        for tensor in (*model.parameters(), *model.buffers()):
            self._origin[tensor] = "model"

    def mark(self, arguments: Any) -> None:
        """Take note of the arguments of a step: nested ones too."""
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                self._origin[value] = "timestep" if name == "timestep" else "model"
            elif isinstance(value, dict):
                self.mark(value)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with _Operators(self), _Functions(self):
            yield

    def origin(self, *values: Any) -> str:
        origins = {self._origin.get(leaf) for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}
        return next((name for name in ORIGINS[:2] if name in origins), "own")

    def read(self, run: Callable[[], Any], *values: Any) -> Any:
        """Run what reads, and count it once, however many operators it is made of."""
        outer, self._reading = self._reading, True
        try:
            if not outer:
                self.count[self.origin(*values)] += 1
            return run()
        finally:
            self._reading = outer

    def passed_on(self, result: Any, *values: Any) -> Any:
        """The result of an operator, with the origin of what it was made of."""
        origin = self.origin(*values)
        if origin != "own":
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._origin[leaf] = origin
        return result


class _Functions(TorchFunctionMode):
    """Sees the methods; some of them never come to the dispatcher."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _READS:
            return self.reads.read(lambda: func(*args, **kwargs), args)
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):
    """Sees what methods and functions are made of."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in _OPERATORS:
            return self.reads.read(lambda: func(*args, **kwargs), args, kwargs)
        return self.reads.passed_on(func(*args, **kwargs), args, kwargs)


def reads_by_step(model: torch.nn.Module, call: Callable[..., Any], inputs: Inputs) -> list[Counter[str]]:
    """The host's reads in each step of one request, by origin."""
    reads, steps = HostReads(model), []
    for arguments in inputs:
        before = reads.count.copy()
        reads.mark(arguments)
        with torch.no_grad(), reads():
            call(**arguments)
        steps.append(reads.count - before)
    return steps
