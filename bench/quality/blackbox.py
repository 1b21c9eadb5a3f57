"""The caches of the package `cache-dit` from PyPI, asked through a worker in an environment of its own.

They are used as their public API means it. FluxPipeline with true guidance calls the transformer twice a step; the peer
counts these as two steps unless it is told `enable_separate_cfg=True`, and compares one branch with the other, so it is
always told. It cannot skip its first block, so a step that it caches still costs one of the blocks, and it gets masks
with fewer computed steps than ours for the same work.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.peers.client import Peer
from bench.peers.environment import VERSIONS, Environment, PeerUnavailableError
from bench.quality.masks import BUDGETS, even_mask
from bench.quality.method import Context, Drawer, Drawing, NotRun, Parameters, Picture
from cache_dit.demo.pipeline import MODEL_FOLDER

#: Calibrators by the name that stands in settings: what the worker makes them of.
CALIBRATORS: dict[str, Parameters | None] = {
    "reuse": None,
    "taylor1": {"name": "taylorseer", "taylorseer_order": 1},
    "taylor2": {"name": "taylorseer", "taylorseer_order": 2},
    "foca": {"name": "foca"},
    "dmd": {"name": "dmd"},
}
#: Those that are tried. At equal settings both versions gave the same pictures, so 1.2.0 is asked for fewer.
PREDICTORS = {version: ("reuse", "taylor1") for version in VERSIONS}
PREDICTORS["1.5.3"] = tuple(CALIBRATORS)

_FN = 1


@dataclass
class BlackBox:
    """One cache of one version.

    Args:
        name: as in tables.
        version: of the package.
        family: what belongs together in a plot.
        candidates: the candidates for so many steps, each with `predictor`.
        config: turns a setting without `predictor`, and the number of steps, into fields of the peer's DBCacheConfig.
    """

    name: str
    version: str
    family: str
    candidates: Callable[[int], Iterator[Parameters]]
    config: Callable[[Parameters, int], Parameters]
    owner: Literal["ours", "peer", "baseline"] = field(default="peer", init=False)

    @property
    def environment(self) -> str:
        return f"cache-dit {self.version}"

    def settings(self, steps: int) -> list[Parameters]:
        return list(self.candidates(steps))

    @contextmanager
    def drawer(self, context: Context) -> Iterator[Drawer]:
        """A worker that has the model loaded.

        Raises:
            NotRun: where the environment is not there and cannot be built.
        """
        try:
            python = Environment(self.version).make()
        except PeerUnavailableError as error:
            raise NotRun(str(error).splitlines()[0]) from error
        with Peer(python) as peer, tempfile.TemporaryDirectory() as folder:
            loaded = peer.ask("load", folder=str(MODEL_FOLDER), timeout=300)
            yield _BlackBoxDrawer(self, context, peer, Path(folder) / "pixels.npy", loaded["blocks"])


@dataclass
class _BlackBoxDrawer:
    method: BlackBox
    context: Context
    peer: Peer
    pixels: Path
    all_blocks: int

    def draw(self, parameters: Parameters | None, picture: Picture, *, counted: bool = True) -> Drawing:
        told = self.peer.ask(
            "draw",
            out=str(self.pixels),
            caption=picture.caption,
            seed=picture.seed,
            steps=self.context.steps,
            cache=None if parameters is None else self.cache(parameters),
            counted=counted,
            clock=self.context.clock,
        )
        drawing = Drawing(np.load(self.pixels), told["seconds"], told["work"], told["blocks"])
        if parameters is not None and counted and told["blocks"] == told["calls"] * self.all_blocks:
            drawing.note = "nothing was cached"
        return drawing

    def cache(self, parameters: Parameters) -> Parameters:
        """What the worker is asked to put on."""
        setting = json.loads(json.dumps(parameters))
        calibrator = CALIBRATORS[setting.pop("predictor")]
        config = self.method.config(setting, self.context.steps)
        cache: Parameters = {"config": {"Fn_compute_blocks": _FN, "enable_separate_cfg": True, **config}}
        if "mask_policy" in cache["config"]:
            cache["mask"] = {"mask_policy": cache["config"].pop("mask_policy")}
        return cache if calibrator is None else {**cache, "calibrator": calibrator}


# -- settings, from careful to fast


def full_steps(steps: int, budget: float, blocks: int = 12) -> int:
    """The most computed steps at a speed-up, where each other step still computes one of the blocks."""
    share = _FN / blocks
    return max(2, int((steps / (0.98 * budget) - share * steps) / (1 - share)))


def _thresholds(steps: int) -> Iterator[Parameters]:
    for limit, warmups, values in (
        (1, (1, 4), (0.05, 0.1, 0.3)),
        (2, (1, 3), (0.1, 0.2, 0.4)),
        (4, (1, 3), (0.2, 0.4, 0.9)),
        (-1, (1,), (0.1, 0.2, 0.4)),
        (8, (1,), (0.3, 0.6, 0.9)),
    ):
        for warmup, value in product(warmups, values):
            yield {
                "max_warmup_steps": warmup,
                "max_continuous_cached_steps": limit,
                "residual_diff_threshold": value,
            }


def _even(steps: int) -> Iterator[Parameters]:
    shapes = ({"warmup": 1}, {"warmup": 1, "last": False}, {"warmup": 3}, {"warmup": 5})
    for budget, shape in product(BUDGETS, shapes):
        full = full_steps(steps, budget)
        if shape["warmup"] <= full:
            yield {"full": full, **shape}


def _few_thresholds(steps: int) -> Iterator[Parameters]:
    """Eight of the thresholds, for predictors that are seldom the best."""
    settings = list(_thresholds(steps))
    yield from settings[:: len(settings) // 8][:8]


def _few_even(steps: int) -> Iterator[Parameters]:
    """One shape for each budget, likewise."""
    yield from (setting for setting in _even(steps) if setting == {"full": setting["full"], "warmup": 3})


def _presets(steps: int) -> Iterator[Parameters]:
    for preset in ("slow", "medium", "fast", "ultra"):
        yield {"mask_policy": preset, "steps_computation_policy": "static"}


def _dynamic_presets(steps: int) -> Iterator[Parameters]:
    for preset, threshold in product(("slow", "medium", "fast", "ultra"), (0.15, 0.4)):
        yield {
            "mask_policy": preset,
            "steps_computation_policy": "dynamic",
            "residual_diff_threshold": threshold,
        }


def _as_given(setting: Parameters, steps: int) -> Parameters:
    return setting


def _even_config(setting: Parameters, steps: int) -> Parameters:
    # The warm-up would otherwise be as long as the ones that the mask begins with, up to the default of eight.
    return {
        "steps_computation_mask": even_mask(steps, **setting),
        "steps_computation_policy": "static",
        "max_warmup_steps": setting["warmup"],
    }


def _with(predictors: tuple[str, ...], settings: Callable[[int], Iterator[Parameters]]) -> Callable[[int], Any]:
    """The same settings for each calibrator."""
    return lambda steps: ({**setting, "predictor": name} for name in predictors for setting in settings(steps))


def _version(version: str) -> Iterator[BlackBox]:
    title = f"cache-dit {version}"
    for predictor in ("reuse", "taylor1"):
        one = (predictor,)
        yield BlackBox(f"{title} DBCache, {predictor}", version, title, _with(one, _thresholds), _as_given)
        yield BlackBox(f"{title} even mask, {predictor}", version, title, _with(one, _even), _even_config)
    if others := PREDICTORS[version][2:]:
        few, even = _with(others, _few_thresholds), _with(others, _few_even)
        yield BlackBox(f"{title} DBCache, other predictors", version, title, few, _as_given)
        yield BlackBox(f"{title} even mask, other predictors", version, title, even, _even_config)
    yield BlackBox(f"{title} preset mask", version, title, _with(PREDICTORS[version], _presets), _as_given)
    yield BlackBox(
        f"{title} dynamic preset mask", version, title, _with(("reuse", "taylor1"), _dynamic_presets), _as_given
    )


BLACK_BOXES: tuple[BlackBox, ...] = tuple(method for version in VERSIONS for method in _version(version))
