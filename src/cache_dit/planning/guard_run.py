"""Calibrating the guard of a plan: pictures with and without it, and what the estimate was worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from cache_dit.api import cached_transformers, disable_cache, enable_cache
from cache_dit.config.base import bad_value
from cache_dit.config.cache import DBCacheConfig, check_share
from cache_dit.engine.attach.transformer import TransformerState
from cache_dit.engine.plans.guard import CAP, Guard, GuardCalibration, conformal, optional_steps
from cache_dit.engine.plans.guard_fit import FEWEST, Observation, fit
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.subclass import state_of
from cache_dit.errors import ConfigError


class Draw(Protocol):
    """Draws one picture: the same for the same prompt and number, whatever was drawn before."""

    def __call__(self, prompt: Any, number: int) -> Any:
        """The picture: a numpy array of any shape with values from 0 to 1."""


@dataclass(frozen=True)
class Outcome:
    """One picture under the guard.

    Args:
        psnr: in dB against the uncached picture, at most `CAP`.
        estimated: what the guard estimated, in dB.
        inserted, dropped: steps computed beyond the plan, and left out of it.
        computed: steps computed in all, of the branch with the most.
        reads: how often the host took numbers of the device, over all steps.
    """

    psnr: float
    estimated: float
    inserted: tuple[int, ...]
    dropped: tuple[int, ...]
    computed: int
    reads: int


def calibrate_guard(
    pipe: Any,
    plan: Plan,
    prompts: Sequence[Any],
    *,
    level: float = 0.9,
    target_psnr: float | None = None,
    sensitivities: Sequence[float] | None = None,
    draw: Draw | None = None,
    call: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, runs: None,
) -> Plan:
    """Teach a plan's guard what its estimates are worth on a model.

    Half of the prompts are drawn by the plan alone: from them comes how the guard estimates. The other half is drawn
    under the guard: from them comes what it can promise (split conformal prediction, see `guard.conformal`). All are
    drawn uncached too, so there are two runs a prompt. The promise holds for prompts like these: take them at random
    from what will be drawn. It is on average over calibrations: few pictures make one that may lie either way.

    Args:
        pipe: a pipeline with one transformer. No cache is on it afterwards.
        plan: with a point chosen.
        prompts: what to draw; every other one is held out.
        level: the share of pictures that the promise is for; 0.9 needs at least 9 held-out pictures, 18 prompts.
        target_psnr: the PSNR in dB that the guard works for; None: what three quarters of the pictures reach without.
        sensitivities: how much a relative error at each step moves the final picture; None: what the plan says.
        draw: draws a picture; None: calls the pipeline with the prompt, the plan's steps and a generator.
        call: further arguments of the pipeline's call, those that the plan was made with, e.g. its guidance and size.
        seed: of the first picture's noise, for the pipeline; each further picture has the next one.
        progress: told how many of the runs are done.

    Returns:
        The plan with what the guard learned, for `Plan.with_guard`.

    Raises:
        ConfigError: both ``draw`` and ``call`` are given, there are too few prompts for the level, no point is chosen,
            the plan has no cached step, or there is not exactly one transformer.
    """
    check_share("level", level)
    plan = plan.with_guard(None)
    conformal([0.0] * (len(prompts) // 2), level)  # too few are refused before anything is drawn
    if draw is not None and call:
        raise bad_value("call", call, "None beside draw, which makes the call itself")
    if len(prompts) < 2 * FEWEST:
        raise bad_value("prompts", list(prompts), f"at least {2 * FEWEST}")
    runner = Runner(
        pipe, plan, draw or _pipeline_draw(pipe, plan, seed, call or {}), _counted(progress, 2 * len(prompts))
    )
    fitted = range(0, len(prompts), 2)
    calibration = fit(
        [runner.observe(prompts[number], number) for number in fitted],
        full_steps=plan.point.full_steps,
        sigmas=plan.conditions.sigmas or [1 - step / plan.steps for step in range(plan.steps)],
        level=level,
        target=target_psnr,
        sensitivities=plan.sensitivities if sensitivities is None else sensitivities,
    )
    held_out = [runner.guarded(prompts[number], number, calibration) for number in range(1, len(prompts), 2)]
    scored = replace(
        calibration,
        scores=tuple(outcome.estimated - outcome.psnr for outcome in held_out),
        psnrs=tuple(outcome.psnr for outcome in held_out),
    )
    return replace(plan, guard=scored)


def _counted(progress: Callable[[int, int], None], runs: int) -> Callable[[], None]:
    done = iter(range(1, runs + 1))
    return lambda: progress(next(done, runs), runs)


def _pipeline_draw(pipe: Any, plan: Plan, seed: int, call: Mapping[str, Any]) -> Draw:
    def draw(prompt: Any, number: int) -> Any:
        generator = torch.Generator().manual_seed(seed + number)
        options = {"num_inference_steps": plan.conditions.num_inference_steps, "generator": generator, **call}
        return pipe(prompt, **options, output_type="np").images[0]

    return draw


class Runner:
    """Draws pictures uncached and by a plan, and keeps the uncached ones.

    Args:
        pipe: a pipeline with one transformer.
        plan: with a point chosen.
        draw: draws a picture.
        note: called after each run.
    """

    def __init__(self, pipe: Any, plan: Plan, draw: Draw, note: Callable[[], None] = lambda: None) -> None:
        self.pipe = pipe
        self.plan = plan
        self.draw = draw
        self.note = note
        self._references: dict[int, Any] = {}

    def reference(self, prompt: Any, number: int) -> Any:
        """The uncached picture."""
        if number not in self._references:
            disable_cache(self.pipe)
            self._references[number] = self.draw(prompt, number)
            self.note()
        return self._references[number]

    def observe(self, prompt: Any, number: int) -> Observation:
        """A picture by the plan alone, with the guard watching."""
        guard = Guard(acts=False)
        fidelity, _ = self._drawn(prompt, number, guard)
        return Observation(tuple(guard.misses), fidelity)

    def guarded(self, prompt: Any, number: int, calibration: GuardCalibration, *, acts: bool = True) -> Outcome:
        """A picture by the plan under the guard; or beside it, where it does not act."""
        guard = Guard(calibration, optional_steps(self.plan), acts=acts)
        fidelity, computed = self._drawn(prompt, number, guard)
        estimated = guard.estimated_psnr
        if estimated is None or not math.isfinite(estimated):
            estimated = 0.0
        return Outcome(fidelity, estimated, tuple(guard.inserted), tuple(guard.dropped), computed, guard.reads)

    def _drawn(self, prompt: Any, number: int, guard: Guard) -> tuple[float, int]:
        """A picture's PSNR, and its computed steps."""
        from cache_dit.metrics.pixels import psnr

        reference = self.reference(prompt, number)
        enable_cache(self.pipe, DBCacheConfig(plan=self.plan))
        try:
            with _watched_by(self.pipe, guard) as state:
                picture = self.draw(prompt, number)
                session = state.latest
            guard.settle()
        finally:
            disable_cache(self.pipe)
        self.note()
        lanes = [] if session is None else list(session.lanes.values())
        computed = max((len(policy.computed_steps) for lane in lanes for policy in lane.policies().values()), default=0)
        found = psnr(reference, picture, peak=1.0)
        return 0.0 if math.isnan(found) else min(found, CAP), computed


@contextmanager
def _watched_by(pipe: Any, guard: Guard) -> Iterator[TransformerState]:
    """The requests inside have this guard."""
    found = cached_transformers(pipe)
    if len(found) != 1:
        raise ConfigError(f"there are {len(found)} transformers: the guard is calibrated for one")
    state: TransformerState = state_of(found[0])
    state.watching = lambda: guard
    try:
        yield state
    finally:
        state.watching = None
