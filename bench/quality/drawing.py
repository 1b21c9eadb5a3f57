"""How a method draws a picture: with the shared pipeline, or in a peer's environment."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.peers.client import Environment, Peer, PeerUnavailableError
from bench.pictures import drawn
from cache_dit.demo import DemoPipeline, load_pipeline
from cache_dit.demo.pipeline import MODEL_FOLDER

#: (64, 64, 3) float32 in 0 … 1.
Pixels = np.ndarray[Any, np.dtype[np.float32]]
#: One setting of a method: plain JSON data.
Parameters = dict[str, Any]
CAPTIONS = Path(__file__).parent.parent / "captions.yaml"


@dataclass(frozen=True)
class Picture:
    """What is drawn: a caption, and the seed of the noise that it begins with."""

    caption: str
    seed: int


@dataclass
class Drawing:
    """One picture, the seconds of the pipeline's call, and multiply-adds and calls of blocks, if they were counted."""

    pixels: Pixels
    seconds: float
    work: float | None = None
    blocks: int | None = None


class NotRun(Exception):
    """A method cannot be run here; the message says why, and stands in the results."""


@dataclass(frozen=True)
class Setup:
    """What is the same for all drawings: steps, clock, threads of a process, and where uncached pictures are kept."""

    steps: int
    clock: str = "processor"
    threads: int = 1
    folder: Path = Path()


class Context:
    """What the methods of one process share: the setup, the pipeline, and calibrations."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.steps = setup, setup.steps
        self.calibrations: dict[str, Any] = {}

    @property
    def pipe(self) -> DemoPipeline:
        """The demo model, one for the process, loaded when it is first needed."""
        return _pipeline()

    def draw(self, picture: Picture, steps: int | None = None, *, counted: bool = True) -> Drawing:
        """One picture, as the pipeline stands."""
        asked = {"counted": counted, "clock": self.setup.clock, "num_inference_steps": steps or self.steps}
        pixels, told = drawn(self.pipe, picture.caption, picture.seed, **asked)
        return Drawing(pixels, **told)


@cache
def _pipeline() -> DemoPipeline:
    return load_pipeline(progress=False)


#: Draws by a setting; None: uncached, all steps. ``counted``: with work and blocks, which takes time.
Drawer = Callable[..., Drawing]
#: Puts a setting on the shared pipeline, and takes it off at the end.
PutOn = Callable[[Context, Parameters], AbstractContextManager[None]]


@dataclass(frozen=True)
class Method:
    """One row of the comparison; its owner is ours, a peer, or a baseline.

    Methods of a ``family`` are one thing with different parts, e.g. predictors: at each budget the best goes on to the
    held-out pictures. ``settings``: the candidates for pictures of so many steps, careful to fast; ``prepare``: what is
    needed once, e.g. a calibration. One with a ``version`` draws in that peer's environment, by ``options`` of a
    setting and the steps; others put a setting on the shared pipeline.
    """

    name: str
    owner: str
    family: str
    settings: Callable[[int], Sequence[Parameters]]
    put_on: PutOn | None = None
    prepare: Callable[[Context], None] = field(default=lambda context: None)
    version: str = ""
    options: Callable[[Parameters, int], Parameters] = field(default=lambda setting, steps: setting)

    @property
    def environment(self) -> str:
        """Where it draws: its pictures are compared with the uncached ones of the same environment."""
        return f"cache-dit {self.version}" if self.version else "here"

    @contextlib.contextmanager
    def drawer(self, context: Context) -> Iterator[Drawer]:
        """The method made ready, and put away at the end.

        Raises:
            NotRun: where it cannot be made ready.
        """
        if self.version:
            with _elsewhere(self, context) as draw:
                yield draw
            return
        self.prepare(context)

        def draw(parameters: Parameters | None, picture: Picture, *, counted: bool = True) -> Drawing:
            if parameters is None or self.put_on is None:
                return context.draw(picture, (parameters or {}).get("steps"), counted=counted)
            with self.put_on(context, parameters):
                return context.draw(picture, counted=counted)

        yield draw


@contextlib.contextmanager
def _elsewhere(method: Method, context: Context) -> Iterator[Drawer]:
    """A worker in the peer's environment that has the model loaded."""
    try:
        python = Environment(method.version).make()
    except PeerUnavailableError as error:
        raise NotRun(str(error).splitlines()[0]) from error
    with Peer(python) as peer:
        peer.ask("bench.pictures:load", folder=str(MODEL_FOLDER), timeout=300)
        yield elsewhere(method, context, peer, context.setup.folder / f"{os.getpid()}.npy")


def elsewhere(method: Method, context: Context, peer: Any, out: Path) -> Drawer:
    """Draws through a worker, by a file of pixels."""

    def draw(parameters: Parameters | None, picture: Picture, *, counted: bool = True) -> Drawing:
        setting = None if parameters is None else method.options(json.loads(json.dumps(parameters)), context.steps)
        asked = {**asdict(picture), "steps": context.steps, "options": setting, "clock": context.setup.clock}
        told = peer.ask("bench.pictures:draw", out=str(out), counted=counted, **asked)
        return Drawing(np.load(out), **told)

    return draw


# -- which pictures


@cache
def captions() -> dict[str, list[str]]:
    """The captions of each section of the file, `search` and `held out`."""
    return dict(yaml.safe_load(CAPTIONS.read_text(encoding="utf-8")))


def search_pictures(count: int) -> tuple[Picture, ...]:
    """The first pictures that settings are searched on."""
    return _numbered(captions()["search"][:count], 1)


def held_out_pictures(count: int, seeds: int) -> tuple[Picture, ...]:
    """So many pictures that no search has seen: every caption with so many noises, one after the other.

    Raises:
        ValueError: there are not as many captions, or `count` is no multiple of `seeds`.
    """
    held_out = captions()["held out"]
    if count % seeds or count // seeds > len(held_out):
        most = seeds * len(held_out)
        raise ValueError(f"{count} pictures of {seeds} seeds each: expected a multiple of {seeds}, at most {most}")
    return _numbered(held_out[: count // seeds], seeds)


def _numbered(texts: Sequence[str], seeds: int) -> tuple[Picture, ...]:
    return tuple(Picture(text, 1000 * seed + number) for number, text in enumerate(texts) for seed in range(seeds))
