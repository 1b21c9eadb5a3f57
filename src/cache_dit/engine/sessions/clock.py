"""Counting the steps of one request from what its calls look like: a branch's name, and a timestep where known.

Pure: numbers and names in, numbers out. What must hold is that a call that a pipeline leaves out (no unconditional
call outside a guidance interval, say) shifts nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable


class Arrival(enum.IntEnum):
    """What a call begins."""

    BRANCH = 0
    """Nothing but another branch of the step under way."""
    STEP = 1
    REQUEST = 2


class StepClock:
    """The step counter of one request.

    Args:
        direction: the sign of the timestep's change from step to step where it is known from an earlier request of
            the same model (−1 falling, +1 rising), else 0: learned from the first change.
    """

    def __init__(self, direction: int = 0) -> None:
        self.step = -1
        self.direction = direction
        self._timestep: float | None = None
        self._leader: Hashable = None
        self._seen: set[Hashable] = set()
        self._calls_at_timestep = 0

    def parity_branch(self, timestep: float | None, *, cfg_first: bool) -> str:
        """The CFG branch of an unnamed call: calls alternate, and a new timestep begins with the first of the pair."""
        if timestep is not None and timestep != self._timestep:
            self._calls_at_timestep = 0
        second = self._calls_at_timestep % 2 == 1
        self._calls_at_timestep += 1
        return "uncond" if second != cfg_first else "cond"

    def arrival(self, branch: Hashable, timestep: float | None, num_inference_steps: int | None) -> Arrival:
        """What a call of ``branch`` begins, if anything.

        It cannot belong to this request where it would be one step too many, or the timestep jumps back. Where
        timesteps are known to move, a first step that comes again is the start of another run too: schedulers that call
        the model twice at one timestep never do so at the first. Where none has moved yet, a first step that comes
        again may as well be the second of a run at one timestep, and is taken for that.
        """
        if self.step < 0:
            return Arrival.STEP
        moved = timestep is not None and self._timestep is not None
        if branch not in self._seen and (timestep == self._timestep if moved else branch != self._leader):
            return Arrival.BRANCH
        if num_inference_steps is not None and self.step + 1 >= num_inference_steps:
            return Arrival.REQUEST
        if timestep is None or self._timestep is None or not self.direction:
            return Arrival.STEP
        if timestep == self._timestep:
            return Arrival.REQUEST if self.step == 0 else Arrival.STEP
        return Arrival.REQUEST if (timestep - self._timestep) * self.direction < 0 else Arrival.STEP

    def at_unmoved_start(self, timestep: float | None) -> bool:
        """Whether a call comes at the first timestep again, before any other was seen."""
        return self.step == 0 and timestep is not None and timestep == self._timestep

    def take_turns(self, *, cfg_first: bool) -> str:
        """The first call turns out to be one of a pair: gives its branch."""
        first = "uncond" if cfg_first else "cond"
        self._leader, self._seen, self._calls_at_timestep = first, {first}, 1
        return first

    def enter(self, branch: Hashable, timestep: float | None, *, begins_step: bool) -> int:
        """Count a call of ``branch`` and give the number of its step, from 0."""
        if begins_step:
            if self.step < 0:
                self._leader = branch
            elif not self.direction and timestep is not None and self._timestep is not None:
                self.direction = (timestep > self._timestep) - (timestep < self._timestep)
            self.step += 1
            self._seen.clear()
            self._timestep = timestep
        self._seen.add(branch)
        return self.step
