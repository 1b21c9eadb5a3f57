"""The peer's package is asked for what a setting says, and its answers are held against our own pictures."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers.client import Peer, PeerError
from bench.peers.environment import VERSIONS, Environment, PeerUnavailableError
from bench.quality import blackbox
from bench.quality.blackbox import BLACK_BOXES, CALIBRATORS, BlackBox, full_steps
from bench.quality.masks import CANDIDATES
from bench.quality.method import Context, NotRun, Picture

STEPS = 8
PICTURE = Picture("noto emoji of cat face", 5)
BLOCKS, BRANCHES = 12, 2


def named(name: str) -> BlackBox:
    return next(method for method in BLACK_BOXES if method.name == name)


@pytest.mark.parametrize("method", BLACK_BOXES, ids=lambda method: method.name)
def test_candidates_are_different_and_no_more_than_others_have(method: BlackBox) -> None:
    settings = method.settings(28)
    assert 8 <= len(settings) <= CANDIDATES
    assert len({repr(setting) for setting in settings}) == len(settings)


@pytest.mark.parametrize("budget", [1.5, 2.0, 3.0, 4.0, 5.7])
def test_a_mask_uses_a_budget_with_the_block_that_is_always_computed(budget: float) -> None:
    def speedup(full: int) -> float:
        return 28 * BLOCKS / (full * BLOCKS + (28 - full))

    full = full_steps(28, budget)
    assert speedup(full) >= 0.98 * budget > speedup(full + 1)


def test_the_newer_predictors_are_asked_of_the_version_that_has_them() -> None:
    asked = {(method.version, setting["predictor"]) for method in BLACK_BOXES for setting in method.settings(28)}
    assert {name for version, name in asked if version == "1.5.3"} == set(CALIBRATORS)
    assert {name for version, name in asked if version == "1.2.0"} == {"reuse", "taylor1"}


def test_an_environment_that_cannot_be_built_is_a_method_that_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Environment) -> Path:
        raise PeerUnavailableError("no index could be reached")

    monkeypatch.setattr(blackbox.Environment, "make", fail)
    with pytest.raises(NotRun, match="no index"), BLACK_BOXES[0].drawer(Context(STEPS)):
        pass


class FakePeer:
    """Answers as a worker does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        np.save(arguments["out"], np.zeros((64, 64, 3), np.float32))
        return {"seconds": 1.0, "work": 5, "blocks": BLOCKS * 4, "calls": 4}


def test_a_setting_is_sent_as_the_peers_own_options(tmp_path: Path) -> None:
    method: Any = named("cache-dit 1.5.3 even mask, other predictors")
    peer: Any = FakePeer()
    drawer = blackbox._BlackBoxDrawer(method, Context(STEPS, "wall"), peer, tmp_path / "p.npy", BLOCKS)
    drawing = drawer.draw({"full": 3, "warmup": 2, "predictor": "taylor2"}, PICTURE)
    (asked,) = peer.asked
    assert asked["cache"] == {
        "config": {
            "Fn_compute_blocks": 1,
            "enable_separate_cfg": True,
            "steps_computation_mask": [1, 1, 0, 0, 0, 0, 0, 1],
            "steps_computation_policy": "static",
            "max_warmup_steps": 2,
        },
        "calibrator": {"name": "taylorseer", "taylorseer_order": 2},
    }
    assert (asked["caption"], asked["seed"], asked["steps"], asked["clock"]) == (*vars(PICTURE).values(), STEPS, "wall")
    assert drawing.note == "nothing was cached"


# -- with the real packages, where their environments are


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    if not Environment(request.param).ready:
        pytest.skip(f"no environment with cache-dit {request.param}")
    return str(request.param)


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    yield Context(STEPS)


@pytest.mark.slow
def test_uncached_it_draws_our_picture_and_with_a_mask_it_runs_one_block_in_each_cached_step(
    version: str, context: Context
) -> None:
    ours = context.draw(PICTURE, STEPS, counted=True)
    with named(f"cache-dit {version} even mask, reuse").drawer(context) as drawer:
        before = drawer.draw(None, PICTURE)
        cached = drawer.draw({"full": 3, "warmup": 2, "predictor": "reuse"}, PICTURE)
        again = drawer.draw({"full": 3, "warmup": 2, "predictor": "reuse"}, PICTURE)
        predicted = drawer.draw({"full": 5, "warmup": 4, "predictor": "taylor1"}, PICTURE)
        after = drawer.draw(None, PICTURE)
    for uncached in (before, after):
        assert np.array_equal(uncached.pixels, ours.pixels)
        assert (uncached.work, uncached.blocks) == (ours.work, ours.blocks)
    assert cached.blocks == BRANCHES * (3 * BLOCKS + 5)
    assert predicted.blocks == BRANCHES * (5 * BLOCKS + 3)
    assert ours.work is not None
    assert cached.work == pytest.approx(ours.work * cached.blocks / (BRANCHES * STEPS * BLOCKS), rel=0.01)
    assert np.array_equal(cached.pixels, again.pixels)
    assert not np.array_equal(cached.pixels, ours.pixels)


@pytest.mark.slow
def test_the_workers_package_is_the_peers_and_not_ours(version: str) -> None:
    with Peer(Environment(version).python) as peer:
        assert peer.ask("versions")["cache-dit"] == version
    ours = Path(importlib.import_module("cache_dit").__file__ or "")
    assert not ours.is_relative_to(Environment(version).path)
    assert Path(sys.executable) != Environment(version).python


@pytest.mark.slow
def test_an_option_that_the_peer_has_not_is_an_error_and_the_next_picture_is_uncached(
    version: str, context: Context
) -> None:
    with named(f"cache-dit {version} even mask, reuse").drawer(context) as drawer:
        assert isinstance(drawer, blackbox._BlackBoxDrawer)
        with pytest.raises(PeerError, match="TypeError"):
            drawer.peer.ask("draw", out=str(drawer.pixels), caption="x", seed=0, cache={"config": {"sauce": 1}})
        after = drawer.draw(None, PICTURE)
    assert np.array_equal(after.pixels, context.draw(PICTURE, STEPS, counted=False).pixels)
