"""The methods: few different settings that do what they say and leave nothing behind; what black boxes are asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.peers.client import Environment, Peer, PeerError, PeerUnavailableError
from bench.quality.choose import TOLERANCE, setting_text
from bench.quality.drawing import (
    Context,
    Drawing,
    NotRun,
    Picture,
    Setup,
    captions,
    elsewhere,
    held_out_pictures,
    search_pictures,
)
from bench.quality.methods import BUDGETS, CANDIDATES, PREDICTORS, full_steps, methods
from bench.quality.run import psnr

ALL = methods()
VERSIONS = ("1.2.0", "1.5.3")
HERE = {name: method for name, method in ALL.items() if method.environment == "here"}
STATIC = [name for name in ALL if name.startswith(("even mask", "bent mask"))]
STEPS, BLOCKS, BRANCHES = 8, 12, 2  # as few steps as show each of diffusers' caches skipping
PICTURE = Picture("noto emoji of cat face", 5)
#: A setting of each that skips much, and the share of the work that it executes in 8 steps, computed by hand.
SHARES: dict[str, tuple[dict[str, Any], float]] = {
    "even mask, taylor1": ({"full": 2, "warmup": 1, "predictor": "taylor1"}, 2 / 8),
    "fewer steps": ({"steps": 4}, 4 / 8),
    "diffusers FirstBlockCache": ({"threshold": 100.0}, 1 / 8 + 7 / 8 / 12),
    "diffusers MagCache": ({"threshold": 10.0, "max_skip_steps": 1, "retention_ratio": 0.25}, 5 / 8),
    "diffusers TaylorSeer": ({"cache_interval": 3, "disable_cache_before_step": 2, "max_order": 1}, 4 / 8),
    "diffusers SeaCache": ({"threshold": 100.0, "residual_order": 0, "max_consecutive_cached": 0}, 2 / 8),
}


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(Setup(STEPS))


@pytest.fixture(scope="module")
def uncached(context: Context) -> Drawing:
    return context.draw(PICTURE)


def test_a_method_has_few_different_settings_of_plain_data() -> None:
    for name, method in ALL.items():
        settings = method.settings(28)
        assert 8 <= len(settings) <= CANDIDATES, name
        assert len({setting_text(one) for one in settings}) == len(settings), name
        assert json.loads(json.dumps(settings)) == settings, name


def test_every_setting_of_ours_can_be_put_on_and_leaves_nothing_behind(context: Context) -> None:
    pipe = context.pipe
    before = [type(module) for module in pipe.transformer.modules()]
    for name, method in HERE.items():
        if method.owner == "ours":
            method.prepare(context)
            for parameters in method.settings(STEPS)[::14]:
                with method.put_on(context, parameters):
                    pass
            assert [type(module) for module in pipe.transformer.modules()] == before, name


@pytest.mark.parametrize("name", SHARES)
def test_a_method_executes_the_work_that_its_setting_says_draws_the_same_twice_and_comes_off(
    name: str, context: Context, uncached: Drawing
) -> None:
    setting, share = SHARES[name]
    with ALL[name].drawer(context) as draw:
        first, second, after = draw(setting, PICTURE), draw(setting, PICTURE), draw(None, PICTURE)
    assert uncached.work is not None
    assert first.work == pytest.approx(share * uncached.work, rel=0.01)  # blocks of two kinds differ by that
    assert (psnr(first.pixels, uncached.pixels) or 200) < 100
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(after.pixels, uncached.pixels)
    assert not leftovers(context.pipe.transformer)
    assert not context.pipe.transformer.is_cache_enabled


def leftovers(module: torch.nn.Module) -> list[str]:
    """What hooks and instance methods there are on a module and all below it."""
    return [
        f"{name}.{attribute}"
        for name, part in module.named_modules()
        for attribute in ("forward", "cache_context", "_diffusers_hook")
        if attribute in vars(part) and (attribute != "_diffusers_hook" or part._diffusers_hook.hooks)
    ]


def test_even_masks_reach_every_budget_with_no_step_to_spare() -> None:
    for name in STATIC:
        fulls = {setting["full"] for setting in ALL[name].settings(28)}
        for budget in BUDGETS:
            most = max(full for full in fulls if 28 / full >= TOLERANCE * budget)
            assert most == int(28 / (TOLERANCE * budget)), name


def test_every_predictor_is_tried_and_the_newer_ones_of_the_peer_that_has_them() -> None:
    used = {(one.version, setting.get("predictor")) for one in ALL.values() for setting in one.settings(28)}
    assert {name for version, name in used if not version} == {None, *PREDICTORS}
    for version, count in zip(VERSIONS, (2, 5), strict=True):
        assert {name for one, name in used if one == version} == set(list(PREDICTORS)[:count])


def test_no_caption_of_the_search_is_among_those_of_the_result() -> None:
    sections = captions()
    assert (len(sections["search"]), len(sections["held out"])) == (8, 64)
    assert len({*sections["search"], *sections["held out"]}) == 72


def test_pictures_are_captions_times_seeds_each_with_a_noise_of_its_own() -> None:
    pictures = held_out_pictures(12, 3)
    assert [one.caption for one in pictures] == [caption for caption in captions()["held out"][:4] for _ in range(3)]
    assert len({one.seed for one in pictures}) == 12
    assert not {one.caption for one in search_pictures(8)} & {one.caption for one in pictures}
    with pytest.raises(ValueError, match="multiple of 3"):
        held_out_pictures(13, 3)


# -- black boxes


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_mask_uses_a_budget_with_the_block_that_is_always_computed(budget: float) -> None:
    def speedup(full: int) -> float:
        return 28 * BLOCKS / (full * BLOCKS + (28 - full))

    full = full_steps(28, budget, 1 / BLOCKS)
    assert speedup(full) >= 0.98 * budget > speedup(full + 1)


def test_an_environment_that_cannot_be_built_is_a_method_that_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Environment) -> Path:
        raise PeerUnavailableError("no index could be reached")

    monkeypatch.setattr(Environment, "make", fail)
    black_box = ALL[f"cache-dit {VERSIONS[0]} preset mask"]
    with pytest.raises(NotRun, match="no index"), black_box.drawer(Context(Setup(STEPS))):
        pass


class FakePeer:
    """Answers as a worker does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append(arguments)
        np.save(arguments["out"], np.zeros((64, 64, 3), np.float32))
        return {"seconds": 1.0, "work": 5, "blocks": BLOCKS * 4}


def test_a_setting_is_sent_as_the_peers_own_options(tmp_path: Path) -> None:
    peer = FakePeer()
    method = ALL["cache-dit 1.5.3 even mask, other predictors"]
    draw = elsewhere(method, Context(Setup(STEPS, "wall")), peer, tmp_path / "p.npy")
    draw({"full": 3, "warmup": 2, "predictor": "taylor2"}, PICTURE)
    (asked,) = peer.asked
    assert asked["options"] == {
        "Fn_compute_blocks": 1,
        "enable_separate_cfg": True,
        "steps_computation_mask": [1, 1, 0, 0, 0, 0, 0, 1],
        "steps_computation_policy": "static",
        "max_warmup_steps": 2,
        "calibrator": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 2}),
    }
    assert (asked["caption"], asked["seed"], asked["steps"], asked["clock"]) == (*vars(PICTURE).values(), STEPS, "wall")


# -- with the real packages, where their environments are


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    if not Environment(request.param).ready:
        pytest.skip(f"no environment with cache-dit {request.param}")
    return str(request.param)


@pytest.mark.slow
def test_uncached_it_draws_our_picture_and_with_a_mask_it_runs_one_block_in_each_cached_step(
    version: str, context: Context, uncached: Drawing
) -> None:
    with ALL[f"cache-dit {version} even mask, reuse"].drawer(context) as draw:
        before = draw(None, PICTURE)
        cached, again = (draw({"full": 3, "warmup": 2, "predictor": "reuse"}, PICTURE) for _ in range(2))
        predicted = draw({"full": 5, "warmup": 4, "predictor": "taylor1"}, PICTURE)
        after = draw(None, PICTURE)
    for one in (before, after):
        assert np.array_equal(one.pixels, uncached.pixels)
        assert (one.work, one.blocks) == (uncached.work, uncached.blocks)
    assert cached.blocks == BRANCHES * (3 * BLOCKS + 5)
    assert predicted.blocks == BRANCHES * (5 * BLOCKS + 3)
    assert np.array_equal(cached.pixels, again.pixels)
    assert not np.array_equal(cached.pixels, uncached.pixels)


@pytest.mark.slow
def test_the_workers_package_is_the_peers_and_an_option_that_it_has_not_is_an_error(version: str) -> None:
    with Peer(Environment(version).python) as peer:
        assert peer.ask("importlib.metadata:version", distribution_name="cache-dit") == version
        with pytest.raises(PeerError, match="TypeError"):
            size = {"hidden": 64, "double": 1, "single": 2, "image_tokens": 8, "text_tokens": 4, "steps": 2}
            peer.ask("bench.measures:run", measure="state", size=size, method="cache_dit", options={"sauce": 1})
