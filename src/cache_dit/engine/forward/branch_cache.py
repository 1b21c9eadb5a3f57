"""One branch of one chain in one request, and one forward over its blocks: what all ways to decide have in common.

What blocks call here is what a compiled model traces. It reads only what is the same for every full step and for every
cached step (flags and fixed parts); whatever changes from step to step is decided before the forward, or untraced.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch

from cache_dit.engine.forward.call import Call
from cache_dit.engine.forward.chain import BlockRole, Chain, Layout
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.state.measure import exceeds, read_back
from cache_dit.engine.state.snapshots import Snapshots


class BranchCache:
    """The cache of one branch of a chain: its layout and options, the account of what ran, and what a subclass keeps.

    Args:
        chain: the chain.
        layout: which of its blocks can be skipped.
        options: its configuration.
    """

    def __init__(self, chain: Chain, layout: Layout, options: ChainOptions) -> None:
        self.chain = chain
        self.layout = layout
        self.options = options
        self.executed = 0
        self.possible = 0
        self.call_key: Hashable = None
        #: Why this cache computes everything from now on, once something showed that nothing can be cached.
        self.refused: str | None = None
        #: The form of each block's result when it last ran.
        self.forms = [role.io.form for role in chain.roles]
        #: Whether the bytes that it holds may be others than when they were last counted.
        self.grew = True

    def start(self, call: Call, shared: list[float] | None = None) -> ChainForward:
        """Decide what can be decided before the forward.

        Args:
            call: the call.
            shared: the diffs that another branch measured in this step, to decide by instead of measuring.
        """
        raise NotImplementedError

    def why_compute(self, call: Call, kept: int) -> str | None:
        """Why a step must compute before any policy is asked, or None.

        Args:
            call: the call.
            kept: how many snapshots there are.
        """
        other = kept and call.key_of_ranks != self.call_key
        self.call_key = call.key_of_ranks
        if call.compute or other:
            return call.compute or "shape"
        return self.refused or (None if self.layout.middle else "no_middle")

    def renew(self, options: ChainOptions, layout: Layout, make: Callable[..., Any]) -> None:
        """Go on with other options from the next step on; the steps done so far count.

        Args:
            options, layout: the new ones.
            make: makes the policy.
        """
        raise NotImplementedError

    def refresh(self, step: int) -> None:
        """Begin anew at a step: warm-up and mask count from it, and nothing from before it is used."""
        raise NotImplementedError

    @property
    def waits(self) -> bool:
        """Whether a step may wait for what was measured in it."""
        return any(policy.measures for policy in self.policies().values())

    def policies(self) -> dict[str, Any]:
        """The policies, by what tells them apart within the branch: nothing, or the number of a sample."""
        raise NotImplementedError

    def thinned(self, probe: Any) -> Any:
        """The part of a probe that is compared."""
        factor = self.options.extra.downsample_factor
        return probe[..., ::factor].contiguous() if factor > 1 and isinstance(probe, torch.Tensor) else probe

    def since(self, step: int, places: Sequence[int] | None = None) -> None:
        """What conditions the run became another at a step: drop what was kept before it.

        Args:
            step: the step.
            places: the samples for which it did; None: all. A batch that is decided as a whole is one.
        """
        raise NotImplementedError

    def jumped(self, jumps: Sequence[float]) -> list[int]:
        """The places at which what conditions the run has changed too much."""
        limit = self.options.cache.conditioning_diff_threshold
        return [place for place, jump in enumerate(jumps) if exceeds(jump, limit)]

    def forget(self) -> None:
        """Drop what predictions are made from: the next step computes."""
        raise NotImplementedError

    def free(self) -> None:
        """Drop all tensors; what is known of the steps stays for ``summary``."""
        self.forget()

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors."""
        raise NotImplementedError

    @property
    def snapshots(self) -> Iterable[Snapshots]:
        """All that predictions are made from."""
        raise NotImplementedError


class ChainForward:
    """One forward over a chain, or one of several passes over it: made anew each time, thrown away after it.

    Args:
        cache: the cache of the branch.
        call: the call of the transformer.
        parts: what each block does.
    """

    #: Which of the transformer's chains and passes it is of.
    index = 0
    passed = 0
    #: What was measured, for another branch to decide by.
    diffs: list[float] | None = None
    #: Why the step computes, where that is known already.
    why: str | None = None
    #: Whether blocks were skipped, and none has handed out the prediction yet: the output would be wrong.
    owes = False
    #: What a computed forward adds to H, for observers and for what is kept.
    snapshot_hidden: Any = None
    #: (input, copy of it) pairs to compare after the forward, for blocks that write into their input.
    originals: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    position = -1
    executed = 0
    skipped = 0
    #: The M block that was called last, with its result, where it was not yet looked at.
    last: tuple[BlockRole, Any] | None = None
    #: What of the F blocks is kept for the decision, and the tensor that it is made by.
    watches: Any = None
    probe: Any = None
    #: E out of the last F block, which blocks of patterns 4 and 5 do not read.
    emitted: Any = None

    def __init__(self, cache: Any, call: Call, parts: tuple[int, ...]) -> None:
        self.cache = cache
        self.call = call
        self.parts = parts
        self.layout = cache.layout
        self.forms = cache.forms
        writes_input = cache.chain.writes_input
        self.copies = writes_input is not False
        self.checks = writes_input is None

    def front(self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Compute an F block, and keep what the decision or the M blocks need of it."""
        raise NotImplementedError

    def middle(
        self, role: BlockRole, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Compute an M block, or do what stands for it."""
        raise NotImplementedError

    def next_pass(self) -> ChainForward:
        """The chain's blocks are called again in one forward of the transformer: another pass over them."""
        following: ChainForward = self.call.next_pass(self)
        return following

    def idles(self) -> bool:
        """Whether what the model does between M blocks goes nowhere."""
        return False

    def anchored(self, stream: Any) -> Any:
        """A stream as it is now: a copy of it where blocks write into their input, or may."""
        if not self.copies or not isinstance(stream, torch.Tensor):
            return stream
        copy = stream.clone()
        if self.checks and not torch.compiler.is_compiling():
            self.originals = (*self.originals, (stream, copy))
        return copy

    def check_writes(self) -> None:
        """After a chain's first computed step: do its blocks write into their input?"""
        if self.cache.chain.writes_input is None:
            home = self.originals[0][0].device
            written = [(stream != copy).any().to(home) for stream, copy in self.originals]
            self.cache.chain.writes_input = bool(read_back(torch.stack(written).any().reshape(1))[0])
        self.originals = ()

    @property
    def computed_samples(self) -> list[int] | None:
        """The samples of the batch that computed; None: all did, or none."""
        return None

    def commit(self, output: Any) -> None:
        """Enter what happened into the policy and what is kept.

        Args:
            output: what the transformer returned.
        """
        raise NotImplementedError


def copied(stream: Any) -> Any:
    """A stream of one's own, where it is a tensor."""
    return stream.clone() if isinstance(stream, torch.Tensor) else stream


def difference(after: Any, before: Any, *, state: bool) -> Any:
    """What to keep of a stream: what was added to it, or (``state``, or where none came in) what it is now."""
    if not isinstance(after, torch.Tensor):
        return None
    if not isinstance(before, torch.Tensor):
        return after.clone()
    if after.shape != before.shape or after.dtype != before.dtype or after.device != before.device:
        return None
    return after.clone() if state else after - before
