"""Real runs of a model: uncached with its features, and under a schedule; each is made once and remembered."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cache_dit.api import cached_transformers, disable_cache, enable_cache
from cache_dit.config.cache import DBCacheConfig
from cache_dit.engine.plans.call import recorded
from cache_dit.engine.plans.plan import Plan
from cache_dit.engine.plans.point import PlanPoint
from cache_dit.engine.plans.schedule import BranchSchedule
from cache_dit.engine.plans.scope import PlanScope
from cache_dit.engine.sessions.model_facts import parameter_dtype, weights_digest
from cache_dit.errors import ConfigError
from cache_dit.planning.checkpoint import Store
from cache_dit.planning.features import FeatureObserver
from cache_dit.planning.gram import MEMORY_LIMIT, Array, GramStream
from cache_dit.planning.results import as_array, is_picture, levels, lpips_network, psnr
from cache_dit.planning.runs import observable, observe

Branches = Mapping[str, BranchSchedule]

_FIXED = 0.08
"""The part of an uncached run that no schedule saves, as it is counted before it was measured."""


@dataclass
class Trials:
    """The runs of one planning, each made once and remembered.

    Args:
        holder: the pipeline or transformer, with no cache on.
        run: called with an item and its index.
        items: the prompts.
        steps: of a run.
        store: where results are kept.
        note: called before each run, with what it is for.
        memory_limit: bytes of features in memory.
        asked: the arguments of a pipeline's call that were asked for.
    """

    holder: Any
    run: Callable[[Any, int], Any]
    items: Sequence[Any]
    steps: int
    store: Store
    note: Callable[[str], None] = lambda what: None
    memory_limit: int = MEMORY_LIMIT
    asked: Mapping[str, Any] = field(default_factory=dict)
    #: Seconds of the runs so far, those that are remembered included, and how many of each kind there were.
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    #: Uncached runs' worth of work so far, by computed steps; the same however fast the machine is.
    work: float = 0.0
    peak_bytes: int = 0
    #: What the first observed run was like; see `FeatureObserver.facts`.
    facts: dict[str, Any] = field(default_factory=dict)
    #: What the pipeline's call of each observed run was like; None where it is not known.
    calls: list[Mapping[str, Any] | None] = field(default_factory=list)
    _references: dict[int, Any] = field(default_factory=dict)
    _scores: dict[tuple[int, str], float] = field(default_factory=dict)
    _uncached: list[float] = field(default_factory=list)
    _cached: dict[str, list[float]] = field(default_factory=dict)

    @property
    def branches(self) -> list[str]:
        """The guidance branches, as the first observed run had them."""
        return list(self.facts["branches"])

    @property
    def unit(self) -> float:
        """Seconds of an uncached run."""
        return statistics.median(self._uncached)

    def gram(self, index: int) -> Array:
        """The inner products of an item's features, from its uncached run."""
        name = f"gram/{index}"
        products: Array = self.store.array(name, lambda: self._observed(index))
        if not self.facts:
            self.facts = self.store.data("facts", dict)
            self._check_model()
        self.calls.append(self.store.data(f"call/{index}", lambda: None))
        self.reference(index)
        return products

    def reference(self, index: int) -> Any:
        """An item's uncached result."""
        if index not in self._references:
            self._references[index] = self.store.array(f"reference/{index}", lambda: self._plain(index))
            seconds = self.store.data(f"reference/{index}/seconds", lambda: 0.0)
            self._count("reference", seconds, 1.0)
            self._uncached.append(seconds)
        return self._references[index]

    def result(self, branches: Branches, index: int) -> Any:
        """An item's result under a schedule."""
        return self._planned(branches, index)[0]

    def psnr(self, branches: Branches, index: int, *, kind: str = "trial") -> float:
        """How near an item's result under a schedule is to its uncached one, in dB."""
        key = key_of(branches)
        if (index, key) in self._scores:
            return self._scores[index, key]

        def measure() -> list[float]:
            reference = self.reference(index)
            made, seconds = self._planned(branches, index)
            if made.shape != reference.shape:
                raise ConfigError(f"run() gave shapes {reference.shape} and {made.shape} for one prompt: fix its size")
            return [psnr(reference, made), seconds]

        value, seconds = self.store.data(f"psnr/{index}/{key}", measure)
        self._count(kind, seconds, work_of(branches, self.steps))
        self._cached.setdefault(key, []).append(seconds)
        self._scores[index, key] = float(value)
        return float(value)

    def response(self, branches: Branches, index: int) -> Any:
        """What a schedule changes in an item's result, as one row of float64 numbers."""

        def measure() -> Any:
            made, seconds = self._planned(branches, index)
            self.store.data(f"response/{index}/{key_of(branches)}/seconds", lambda: seconds)
            scale = 255.0 if np.issubdtype(made.dtype, np.integer) else 1.0
            return (made.astype(np.float64) - self.reference(index).astype(np.float64)).reshape(-1) / scale

        self.reference(index)
        change = self.store.array(f"response/{index}/{key_of(branches)}", measure)
        seconds = self.store.data(f"response/{index}/{key_of(branches)}/seconds", lambda: 0.0)
        self._count("probe", seconds, work_of(branches, self.steps))
        return change

    def check_repeats(self, index: int) -> None:
        """Make an uncached run again.

        Raises:
            ConfigError: it gave something else: its noise is not seeded.
        """

        def again() -> list[float]:
            made, seconds = self._timed("uncached, again", index)
            return [psnr(self.reference(index), made), seconds]

        close, seconds = self.store.data(f"again/{index}", again)
        self._count("reference", seconds, 1.0)
        self._uncached.append(seconds)
        if close < 60:
            raise ConfigError(
                f"run() gave another result for the same prompt ({close:.1f} dB apart): seed its noise, e.g. "
                "generator=torch.Generator().manual_seed(0) made inside run"
            )

    def speedup(self, branches: Branches) -> float | None:
        """Uncached seconds over those under a schedule; None where it was not run.

        Of the fastest runs of each: they are made at different times, and a machine has other things to do.
        """
        seconds = self._cached.get(key_of(branches))
        return None if not seconds or not min(seconds) > 0 else min(self._uncached) / min(seconds)

    def lpips(self, branches: Branches, items: Sequence[int]) -> float | None:
        """Mean LPIPS of items under a schedule; None where its network is not here, or the results are no pictures."""
        network = lpips_network()
        if network is None or not all(is_picture(self.reference(item)) for item in items):
            return None

        def measure(item: int) -> float:
            made, _ = self._planned(branches, item)
            return float(network(*(levels(one) for one in (self.reference(item), made))))

        key = key_of(branches)
        try:
            found = [self.store.data(f"lpips/{item}/{key}", partial(measure, item)) for item in items]
        except ConfigError:  # pictures that are too small for the network
            return None
        return float(np.mean(found))

    def cost(self) -> dict[str, Any]:
        """What it took so far, for the plan."""
        return {
            "runs": dict(self.counts),
            "seconds": round(self.seconds, 1),
            "uncached_runs": round(self.seconds / self.unit, 1),
            "feature_bytes": self.peak_bytes,
        }

    def _observed(self, index: int) -> Array:
        """An uncached run with its features, whose result is kept as the reference."""
        config = DBCacheConfig(
            Fn_compute_blocks=0,
            Bn_compute_blocks=0,
            steps_computation_mask=[1] * self.steps,
            steps_computation_policy="static",
            num_inference_steps=None if self._is_pipeline else self.steps,
        )
        stream = GramStream(self.steps, memory_limit=self.memory_limit)
        several = "plan each by itself, with run= that calls it"
        with contextlib.closing(stream), observable(self.holder, config, several=several) as state:
            seen = FeatureObserver(state, stream)
            made, seconds = observe(seen, lambda: self._timed("uncached", index))
            if seen.steps != self.steps:
                raise ConfigError(
                    f"run() made {seen.steps} steps, and num_inference_steps={self.steps}: pass what it makes"
                )
            transformer = cached_transformers(self.holder)[0]
            self.facts = self.store.data("facts", lambda: {**seen.facts, **_identity(transformer)})
            self.store.data(f"call/{index}", lambda: recorded([seen.call], self.asked))
            products = stream.gram(self.branches)
            self.peak_bytes = max(self.peak_bytes, stream.peak_bytes)
        self.store.data(f"reference/{index}/seconds", lambda: seconds)
        self._references.pop(index, None)
        self.store.array(f"reference/{index}", lambda: made)
        return products

    @property
    def _is_pipeline(self) -> bool:
        import torch

        return not isinstance(self.holder, torch.nn.Module)

    def _check_model(self) -> None:
        """Raise ``ConfigError`` where what is remembered was found with another model."""
        model = self.holder if not self._is_pipeline else getattr(self.holder, "transformer", None)
        model = getattr(model, "_orig_mod", model)
        now = _identity(model) if hasattr(model, "state_dict") else {}
        different = [
            f"{name}={self.facts[name]!r}, not {one!r}" for name, one in now.items() if self.facts[name] != one
        ]
        if different:
            raise ConfigError(
                f"checkpoint={self.store.place!r} is of a planning with {'; '.join(different)}: pass the model it was "
                "begun with, or another path"
            )

    def _plain(self, index: int) -> Any:
        made, seconds = self._timed("uncached", index)
        self.store.data(f"reference/{index}/seconds", lambda: seconds)
        return made

    def _planned(self, branches: Branches, index: int) -> tuple[Any, float]:
        point = PlanPoint(max(sum(one.mask) for one in branches.values()), branches)
        plan = Plan(PlanScope(num_inference_steps=self.steps), (point,), chosen=point.full_steps)
        enable_cache(self.holder, plan)
        try:
            return self._timed(f"{point.full_steps} full steps", index)
        finally:
            disable_cache(self.holder)

    def _timed(self, what: str, index: int) -> tuple[Any, float]:
        self.note(what)
        start = time.perf_counter()
        made = as_array(self.run(self.items[index], index))
        return made, time.perf_counter() - start

    def _count(self, kind: str, seconds: float, work: float) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.seconds += seconds
        self.work += work


def _identity(transformer: Any) -> dict[str, Any]:
    """Which model it is, as a plan's scope has it."""
    return {
        "dtype": parameter_dtype(transformer),
        "model_class": type(transformer).__name__,
        "weights": weights_digest(transformer),
    }


def work_of(branches: Branches, steps: int) -> float:
    """What a run under a schedule costs, in uncached runs."""
    share = float(np.mean([sum(one.mask) / steps for one in branches.values()]))
    return _FIXED + (1 - _FIXED) * share


def key_of(branches: Branches) -> str:
    """What tells a schedule from others."""
    return json.dumps(
        {name: [one.text, *(rule.name for rule in one.rules)] for name, one in sorted(branches.items())},
        separators=(",", ":"),
    )
