"""One request on one transformer: its steps and branches, and for each branch of a chain its cache.

A request is one run of a denoising loop. A pipeline call is a request of its own; around a bare transformer,
``cache_dit.session`` names the request that the calls inside belong to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from cache_dit.engine.forward.branch_cache import BranchCache
from cache_dit.engine.forward.chain import Chain
from cache_dit.engine.forward.conditioning import ConditioningMonitor
from cache_dit.engine.options import ChainOptions
from cache_dit.engine.sessions.clock import StepClock

#: Of which branch of guidance, pass over the blocks and chain a cache is.
CacheKey = tuple[Hashable, int, int]


class Session:
    """All that is kept of one request on one transformer.

    Args:
        options: the configuration of each chain.
        direction: in which direction the model's timesteps go (see ``StepClock``).
        num_inference_steps: the number of steps where it is known.
        exact: whether it is that of this run for sure; else it is what was asked for.
        counts_down: whether reaching that number ends the request; see ``Request``.
        keep: whether its tensors stay when its steps are done.
    """

    def __init__(
        self,
        options: Sequence[ChainOptions] = (),
        *,
        direction: int = 0,
        num_inference_steps: int | None = None,
        exact: bool = False,
        counts_down: bool = True,
        keep: bool = False,
    ) -> None:
        self.clock = StepClock(direction)
        self.counts_down = counts_down
        self.keep = keep
        #: The handle by which it was reached last, and which of that handle's updates ``options`` stand for.
        self.handle: Any = None
        self.revision: object = None
        #: Whether ``cache_context`` has named a call, and whether unnamed ones turned out to take turns.
        self.named = False
        self.turns = False
        self.num_inference_steps = num_inference_steps
        self.exact = exact
        #: Kept by ``SessionPool``: how many forwards of it are under way, whether its tensors are to go as soon as none
        #: is, and whether it has ended.
        self.users = 0
        self.unwanted = False
        self.closed = False
        self.caches: dict[CacheKey, BranchCache] = {}
        self.monitors: dict[Hashable, ConditioningMonitor] = {}  # of what conditions the run, by branch
        #: What was done by caches that made way for ones of another kind.
        self.replaced: dict[CacheKey, BranchCache] = {}
        self.peak_bytes = 0
        self.bytes_by_device: dict[str, int] = {}  # of snapshots, at that peak
        self.note: str | None = None
        self.explained = False  # whether the log has said why nothing was cached
        self.known: dict[bool, Any] = {}  # what plans can know of the model, without its weights' digest and with it
        self.guidance_checked = False  # whether the branches are known to be those of the plan
        self.differences: list[str] = []  # from the call that the plan was made with
        self.adapters: Any = None  # reads which adapters act in the model
        self.group: Any = None  # the process group that decides together
        self.second_cache = False  # whether a cache of diffusers is on the transformer as well
        self.index = 0  # of the scheduler's step
        self._refreshed = 0
        self._diffs: dict[Chain, list[float]] = {}  # the diffs measured first in this step
        self._diffs_step = -1
        self._first_timestep: float | None = None
        self.use(options)

    def use(self, options: Sequence[ChainOptions]) -> None:
        """Go on with these options, one for each chain."""
        self.options = list(options)
        #: The coordinates that predictors use.
        self.coordinates = {one.coordinate for one in self.options}
        self.refreshes_at = self.options[0].cache.force_refresh_step_hint if self.options else None
        self.settled()

    def settled(self) -> None:
        """What the answers of before were made of has changed."""
        #: Whether a step is worth waiting for its timestep; None: to be asked.
        self.reads_timestep: bool | None = None

    def take_turns(self, *, cfg_first: bool) -> None:
        """The calls turn out to be the branches of guidance in turn: the first one gets its name."""
        first = self.clock.take_turns(cfg_first=cfg_first)
        self.turns = True
        self.settled()
        self.caches = {(first, passed, chain): cache for (_, passed, chain), cache in self.caches.items()}
        for cache in self.caches.values():
            for policy in cache.policies().values():
                policy.branch = first
        for branch in list(self.monitors):
            self.monitors[first] = self.monitors.pop(branch)

    def elapsed(self, timestep: float) -> float:
        """How far a timestep is from the request's first one: it ascends, whichever way the model's timesteps go.

        Counted from the first one, what is kept of the first step does not depend on a direction not yet known.
        """
        if self._first_timestep is None:
            self._first_timestep = timestep
        passed = timestep - self._first_timestep
        return passed if self.clock.direction > 0 else -passed

    def caches_of(self, branch: Hashable) -> list[BranchCache]:
        """The caches of a branch."""
        return [cache for (name, _, _), cache in self.caches.items() if name == branch]

    def since(self, branch: Hashable, step: int) -> None:
        """What conditions a branch became another at a step: nothing that was kept before it is used any more."""
        for cache in self.caches_of(branch):
            cache.since(step)

    @property
    def length(self) -> int | None:
        """The number of its steps, where that is known for sure."""
        return self.num_inference_steps if self.exact else None

    @property
    def finished(self) -> bool:
        """Whether its last step was begun, and it keeps nothing beyond it."""
        steps = self.num_inference_steps
        return self.counts_down and not self.keep and steps is not None and self.clock.step >= steps - 1

    @property
    def waits(self) -> bool:
        """Whether a step may wait for the device anyway, since it is measured."""
        if not self.caches:
            return not all(one.cache.is_static for one in self.options)
        return any(cache.waits for cache in self.caches.values())

    @property
    def refreshed(self) -> int:
        """The step at which a hint last let it begin anew."""
        return self._refreshed

    def refresh(self, step: int) -> None:
        """Begin anew at a step where the options' hint says so, once."""
        cache, hint = self.options[0].cache, self.refreshes_at
        if hint is None or step <= self._refreshed:
            return
        if step == hint if cache.force_refresh_step_policy == "once" else step % hint == 0:
            self._refreshed = step
            for branch in self.caches.values():
                branch.refresh(step)

    def shared_diffs(self, chain: Chain, step: int) -> list[float] | None:
        """The diffs that the first branch of this step measured on a chain."""
        return self._diffs.get(chain) if self._diffs_step == step else None

    def share_diffs(self, chain: Chain, step: int, diffs: list[float]) -> None:
        """Keep the diffs that the first branch of a step measured, for the others."""
        if self._diffs_step != step:
            self._diffs_step = step
            self._diffs.clear()
        self._diffs.setdefault(chain, diffs)

    def note_bytes(self) -> None:
        """Bring the peak of live bytes up to date."""
        held = self.nbytes
        if held > self.peak_bytes:
            self.peak_bytes = held
            kept = (one.bytes_by_device for cache in self.caches.values() for one in cache.snapshots)
            self.bytes_by_device = dict(sum(map(Counter, kept), Counter()))

    @property
    def nbytes(self) -> int:
        """Bytes of live tensors now."""
        samples = sum(monitor.nbytes for monitor in self.monitors.values())
        return samples + sum(cache.nbytes for cache in self.caches.values())

    def free(self) -> None:
        """Drop all tensors; what is known of the steps stays for ``summary``."""
        self.monitors.clear()
        self.adapters = None
        for cache in self.caches.values():
            cache.free()
