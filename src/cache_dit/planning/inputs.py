"""What a planning is asked for, checked: targets, prompts, and what makes one run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dit.config.base import bad_value, check_integer, check_number, unknown_key
from cache_dit.engine.plans.call import parameters_of
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.schedule import GapRule
from cache_dit.errors import ConfigError
from cache_dit.planning.results import PERFECT


@dataclass(frozen=True)
class Targets:
    """What is asked for: exactly one, or none for the curve."""

    target_psnr: float | None = None
    speedup: float | None = None
    full_steps: int | None = None

    def checked(self, steps: int) -> Targets:
        """These, once it is clear that a plan of so many steps can be asked for them.

        Raises:
            ConfigError: there are two, or one that no plan reaches.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise bad_value("targets", given, "one of target_psnr, speedup, full_steps, or none for the whole curve")
        if self.target_psnr is not None:
            check_number("target_psnr", self.target_psnr, above=0)
            if self.target_psnr >= PERFECT:
                raise bad_value("target_psnr", self.target_psnr, f"a number of dB below {PERFECT:g}")
        if self.speedup is not None:
            check_number("speedup", self.speedup, minimum=1)
            if self.speedup > steps / 2:
                expected = f"at most {steps / 2:g}: the first and the last of {steps} steps are always computed"
                raise bad_value("speedup", self.speedup, expected)
        if self.full_steps is not None:
            check_integer("full_steps", self.full_steps, minimum=2)
            if self.full_steps > steps:
                raise bad_value("full_steps", self.full_steps, f"at most num_inference_steps={steps}")
        return self

    def number(self, steps: int) -> int | None:
        """The number of full steps that is meant; None where real runs must tell."""
        if self.speedup is not None:
            return max(2, int(steps / self.speedup + 1e-9))
        return self.full_steps


def check_start(start: Plan | None, steps: int) -> None:
    """Raise ``ConfigError`` unless a plan's schedules can be tried at so many steps."""
    if start is None:
        return
    if not isinstance(start, Plan):
        raise bad_value("start", start, "a Plan, e.g. what plan.adapt(num_inference_steps) gave")
    if start.steps != steps:
        expected = f"one for num_inference_steps={steps}: pass what its adapt({steps}) gives"
        raise bad_value("start", f"a plan of {start.steps} steps", expected)


def items_of(prompts: Sequence[Any] | None, run: Callable[..., Any] | None) -> list[Any]:
    """What the runs are of: the prompts, or None once where ``run`` needs none."""
    if run is not None and not callable(run):
        raise bad_value("run", run, "a function of a prompt that makes one run")
    if prompts is None and run is not None:
        return [None]
    items = [prompts] if isinstance(prompts, str) else list(prompts or [])
    if not items:
        raise ConfigError("there are no prompts: pass prompts=, at least one and better 16, or run=, which makes a run")
    return items


def held_out(count: int, holdout: float | None) -> int:
    """How many prompts are kept apart."""
    if holdout is None:
        return count // 2 if count >= 4 else 0
    check_number("holdout", holdout, minimum=0, maximum=0.9)
    return min(round(count * holdout), count - 1)


def caller(
    holder: Any,
    run: Callable[..., Any] | None,
    prompts: Sequence[Any] | None,
    steps: int,
    seed: int,
    call: Mapping[str, Any],
) -> Callable[[Any, int], Any]:
    """What makes one run, of an item and its index."""
    if run is not None:
        if call:
            raise ConfigError("call= is for a pipeline's own call: with run=, let run pass these arguments")
        given = run
        return (lambda item, index: given()) if prompts is None else (lambda item, index: given(item))
    import torch

    if isinstance(holder, torch.nn.Module):
        raise ConfigError(
            "a bare transformer cannot be run by itself: pass run=, a function that makes one run with it"
        )
    check_call(holder, call)
    return _pipeline_run(holder, steps, seed, call)


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for arguments that a pipeline's call does not take."""
    known, anything = parameters_of(pipe)
    for name in call:
        if name not in known and not anything:
            raise unknown_key(name, known, where=f"call of {type(pipe).__name__}")


def settings_of(
    items: Sequence[Any],
    steps: int,
    rules: Sequence[GapRule],
    call: Mapping[str, Any] | None,
    holdout: float | None,
    seed: int,
) -> dict[str, Any]:
    """What a checkpoint must have been begun with."""
    return {
        "prompts": hashlib.sha256(repr([str(item) for item in items]).encode()).hexdigest(),
        "num_inference_steps": steps,
        "predictors": [rule.name for rule in rules],
        "call": sorted(f"{name}={value!r}" for name, value in (call or {}).items()),
        "holdout": holdout,
        "seed": seed,
    }


def _pipeline_run(pipe: Any, steps: int, seed: int, call: Mapping[str, Any]) -> Callable[[Any, int], Any]:
    """What draws a prompt with a pipeline: with noise of its own, as numbers.

    Raises:
        ConfigError: the pipeline takes no ``num_inference_steps``.
    """
    known, anything = parameters_of(pipe)
    if "num_inference_steps" not in known and not anything:
        raise ConfigError(f"{type(pipe).__name__} takes no num_inference_steps: pass run=, a function of a prompt")

    def run(prompt: Any, index: int) -> Any:
        import torch

        options: dict[str, Any] = {"num_inference_steps": steps}
        if "generator" in known or anything:
            options["generator"] = torch.Generator().manual_seed(seed + index)
        if "output_type" in known or anything:
            options["output_type"] = "np"
        return pipe(prompt, **{**options, **call})

    return run
