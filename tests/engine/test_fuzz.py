"""Requests of every kind in flight on one transformer, in random order: each gives bit for bit what it gives alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import cache_dit
from cache_dit import (
    BasicCacheConfig,
    ConfigError,
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    HermiteCalibratorConfig,
    NewtonCalibratorConfig,
    PolicyCalibration,
    TaylorSeerCalibratorConfig,
)
from cache_dit.engine.subclass import state_of
from tests.kit.equality import same
from tests.kit.threads import in_threads
from tests.kit.toys import dynamic
from tests.kit.walks import Walk, Walked, nbytes, walked

RATIOS = PolicyCalibration("magcache", "Walked", 9, None, {"default": [1.0, 0.95, 0.9] * 3})
OPTIONS: list[dict[str, Any]] = [
    {},
    {"residual_diff_threshold": 0.15},
    {"residual_diff_threshold": 0.3, "Fn_compute_blocks": 2},
    {"Bn_compute_blocks": 1, "max_continuous_cached_steps": 2},
    {"steps_computation_mask": [1, 1, 0, 0, 1, 0], "steps_computation_policy": "static"},
    {"steps_computation_mask": [1, 0, 1], "steps_computation_policy": "static", "Fn_compute_blocks": 0},
    {"decision": "sample", "residual_diff_threshold": 0.25},
    {"decision": "any", "residual_diff_threshold": 0.25},
    {"policy": "teacache", "residual_diff_threshold": 0.2},
    {"policy": "easycache", "residual_diff_threshold": 0.15},
    {"policy": "magcache", "policy_calibration": RATIOS, "residual_diff_threshold": 0.2},
    {"cache_config": DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.3)},
    {
        "cache_config": DBPruneConfig(
            Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.4, prune_decision="previous"
        )
    },
    {"force_refresh_step_hint": 4},
    {"cache_dtype": "bfloat16", "max_accumulated_residual_diff_threshold": 0.4},
]
CALIBRATORS = [
    None,
    TaylorSeerCalibratorConfig(),
    TaylorSeerCalibratorConfig(taylorseer_order=2, coordinate="timestep"),
    TaylorSeerCalibratorConfig(calibrator_cache_type="hidden_states"),
    FoCaCalibratorConfig(),
    DMDCalibratorConfig(dmd_history=4),
    HermiteCalibratorConfig(),
    NewtonCalibratorConfig(),
]


@dataclass(frozen=True)
class Kind:
    """A request: all that its outputs depend on."""

    steps: int
    seed: int
    batch: int
    tokens: int
    branches: tuple[str, ...]
    named: bool
    known: bool
    #: At which step which options are given, and at which steps it is disabled.
    updates: dict[int, tuple[int, int]] = field(default_factory=dict)
    off: frozenset[int] = frozenset()

    @classmethod
    def drawn(cls, draw: random.Random) -> Kind:
        """One at random."""
        named = draw.random() < 0.4
        branches = draw.choice([("cond",), ("cond", "uncond"), ("a", "b", "c")] if named else [("default",)])
        steps = draw.choice([1, 2, 3, 5, 6, 7, 9, 9, 9])
        updates = {}
        for at in {0 if draw.random() < 0.8 else 1, draw.randrange(steps)} if draw.random() < 0.9 else ():
            fitting = (
                range(len(OPTIONS))
                if steps == 9
                else [i for i, one in enumerate(OPTIONS) if "policy_c" not in str(one)]
            )
            updates[at] = (draw.choice(fitting), draw.randrange(len(CALIBRATORS)))
        off = frozenset(step for step in range(steps) if draw.random() < 0.5) if draw.random() < 0.2 else frozenset()
        shape = draw.choice([(1, 6), (1, 6), (2, 6), (1, 4), (3, 5)])
        return cls(steps, draw.randrange(1000), *shape, branches, named, draw.random() < 0.5, updates, off)

    def walk(self, model: Walked, name: object, *, turns: bool = False) -> Started:
        """A request of this kind."""
        handle = cache_dit.session(name, num_inference_steps=self.steps if self.known else None)
        if turns:
            handle.update(enable_separate_cfg=True, cfg_diff_compute_separate=True)
        branches = ("cond", "uncond") if turns else self.branches
        shape = {"batch": self.batch, "tokens": self.tokens}
        walk = Walk(model, handle, steps=self.steps, seed=self.seed, branches=branches, named=self.named, **shape)
        return Started(self, handle, walk)


@dataclass
class Started:
    """A request under way."""

    kind: Kind
    handle: Any
    walk: Walk

    def step(self) -> None:
        """Its next step, with what is to be said before it."""
        at = self.walk.at
        if at in self.kind.updates:
            options, calibrator = self.kind.updates[at]
            self.handle.update(calibrator_config=CALIBRATORS[calibrator], **OPTIONS[options])
        self.handle.enabled = at not in self.kind.off
        try:
            self.walk.step()
        except ConfigError:  # some options do not go together: the request goes on with those of before
            self.walk.step()


def base(calibrated: bool) -> tuple[BasicCacheConfig, Any]:
    """What is on the model."""
    config = dynamic(residual_diff_threshold=0.25, max_warmup_steps=2, Fn_compute_blocks=1)
    return config, TaylorSeerCalibratorConfig() if calibrated else None


class Alone:
    """What each kind gives on a model of its own, made when it is asked for."""

    def __init__(self, *, calibrated: bool, turns: bool) -> None:
        self.calibrated, self.turns = calibrated, turns
        self.known: dict[int, list[Tensor]] = {}

    def __call__(self, kind: Kind) -> list[Tensor]:
        if id(kind) not in self.known:
            started = kind.walk(walked(*base(self.calibrated)), "alone", turns=self.turns)
            while not started.walk.done:
                started.step()
            self.known[id(kind)] = started.walk.outputs
        return self.known[id(kind)]


def fail_in_forward(started: Started) -> None:
    """A step in which a block that always runs raises."""

    def fail(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    hook = started.walk.model.leave.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        started.walk.step()
    hook.remove()


def play(seed: int, steps: int, *, calibrated: bool, turns: bool = False, kinds: int = 60, alive: int = 7) -> int:
    """So many steps of requests of so many kinds in random order on one model; gives how many requests came to an end.

    Raises:
        AssertionError: if one gave anything else than alone.
    """
    draw = random.Random(seed)
    model = walked(*base(calibrated))
    alone = Alone(calibrated=calibrated, turns=turns)
    known = [Kind.drawn(draw) for _ in range(kinds)]
    if turns:
        known = [kind for kind in known if not kind.named]
    names, running, ended = iter(range(10**9)), [], 0
    reusable: list[object] = []
    for _ in range(steps):
        while len(running) < alive:
            again = reusable and draw.random() < 0.5
            name = reusable.pop(draw.randrange(len(reusable))) if again else next(names)
            running.append(draw.choice(known).walk(model, name, turns=turns))
        started = draw.choice(running)
        started.step()
        assert same(started.walk.outputs[-1:], alone(started.kind)[: len(started.walk.outputs)][-1:]), started.kind
        if started.walk.done:
            assert same(started.walk.outputs, alone(started.kind))
            ended += 1
            fate = "closed" if draw.random() < 0.5 or started.kind.steps == 1 else "left"
        else:
            fate = draw.choice(["goes on"] * 17 + ["closed", "failed", "left"])
        if fate == "goes on" or (fate == "left" and started.walk.at < 2):  # two steps show where timesteps go
            continue
        if fate == "failed":
            started.handle.enabled = draw.random() < 0.8
            fail_in_forward(started)
        if fate == "left":
            reusable.append(started.handle.key[1])
        else:
            started.handle.close()
        running.remove(started)
    state = state_of(model)
    state.close_all()
    assert nbytes(model) == 0
    assert all(chain.current.forward is None for chain, _ in state.chains)
    return ended


@pytest.mark.parametrize("calibrated", [False, True], ids=["reuse", "predicted"])
@pytest.mark.parametrize("turns", [False, True], ids=["named", "by turns"])
def test_requests_of_every_kind_in_random_order_give_what_each_gives_alone(calibrated: bool, turns: bool) -> None:
    assert play(calibrated + 2 * turns, 900, calibrated=calibrated, turns=turns) > 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10, 16))
def test_the_same_for_many_thousand_steps(seed: int) -> None:
    assert play(seed, 6000, calibrated=seed % 2 == 0, turns=seed % 3 == 2, kinds=150, alive=5 + 3 * (seed % 3)) > 300


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_requests_of_every_kind_in_threads_give_what_each_gives_alone(rounds: int) -> None:
    model = walked(*base(True))
    alone = Alone(calibrated=True, turns=False)
    draw = random.Random(5)
    known = [Kind.drawn(draw) for _ in range(12)]
    for kind in known:
        alone(kind)
    wrong: list[object] = []

    def work(number: int) -> None:
        mine = random.Random(number)
        try:
            for turn in range(rounds):
                running = [mine.choice(known).walk(model, (number, turn, i)) for i in range(3)]
                while running:
                    started = mine.choice(running)
                    started.step()
                    if started.walk.done:
                        running.remove(started)
                        if not same(started.walk.outputs, alone(started.kind)):
                            wrong.append(started.kind)
                        started.handle.close()
        except Exception as error:  # noqa: BLE001 -- told by the main thread
            wrong.append(error)

    in_threads(work, 4)
    assert not wrong
    assert not state_of(model).sessions
    assert nbytes(model) == 0


def test_the_kinds_of_these_tests_are_of_every_sort() -> None:
    draw = random.Random(0)
    known = [Kind.drawn(draw) for _ in range(60)]
    alone = Alone(calibrated=True, turns=False)
    for wanted in (
        bool,
        lambda kind: kind.off,
        lambda kind: kind.named,
        lambda kind: kind.known,
        lambda kind: kind.updates,
    ):
        assert any(map(wanted, known))
    assert {options for kind in known for options, _ in kind.updates.values()} == set(range(len(OPTIONS)))
    assert {one for kind in known for _, one in kind.updates.values()} == set(range(len(CALIBRATORS)))
    plain = sum(same(alone(kind), Walk(walked(None), steps=kind.steps, seed=kind.seed, batch=kind.batch,
                tokens=kind.tokens, branches=kind.branches).go()) for kind in known)  # fmt: skip
    assert plain < len(known) / 2  # most are cached somewhere
    assert all(output.isfinite().all() for kind in known for output in alone(kind))
    assert torch.get_num_threads() == 1
