"""What a method is: a way to draw a picture with less work, with settings from careful to fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import torch

import cache_dit
from bench.peers.cost import CLOCKS
from bench.peers.work import WorkMeter
from cache_dit.demo import DemoPipeline, load_pipeline

#: (64, 64, 3) float32 in 0 … 1.
Pixels = np.ndarray[Any, np.dtype[np.float32]]
#: One setting of a method: plain JSON data. `steps` is taken for the number of steps where it is given.
Parameters = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """What is drawn: a caption, and the seed of the noise that it begins with."""

    caption: str
    seed: int


@dataclass
class Drawing:
    """One picture by one setting.

    Args:
        pixels: (64, 64, 3) float32 in 0 … 1.
        seconds: of the pipeline's call, by the clock of the context; the cache is put on and taken off outside of it.
        work: multiply-adds that were executed inside the blocks; None where they were not counted.
        blocks: block calls that ran; None where they were not counted.
        note: what a reader must know of this drawing, e.g. why nothing was cached.
    """

    pixels: Pixels
    seconds: float
    work: float | None = None
    blocks: int | None = None
    note: str = ""


class NotRun(Exception):
    """A method cannot be run here; the message says why, and stands in the results."""


class Drawer(Protocol):
    """A method that is ready to draw."""

    def draw(self, parameters: Parameters | None, picture: Picture, *, counted: bool = True) -> Drawing:
        """Draw a picture by a setting; None: uncached, all steps. `counted`: with work and blocks, which takes time."""
        ...


class Method(Protocol):
    """One row of the comparison.

    Attributes:
        name: as in tables.
        owner: whose it is: ours, a peer's, or what needs no cache at all.
        environment: where it draws: "here", in this process, or the name of another environment, whose uncached
            pictures its own are compared with.
        family: methods that are one thing with different parts, e.g. predictors. All are searched; at each budget the
            best of a family goes on to the held-out pictures, and is its point in a plot.
    """

    name: str
    owner: Literal["ours", "peer", "baseline"]
    environment: str
    family: str

    def settings(self, steps: int) -> list[Parameters]:
        """The candidates of the search for pictures of so many steps, careful to fast; too many are thinned out."""
        ...

    def drawer(self, context: Context) -> AbstractContextManager[Drawer]:
        """The method made ready, and put away at the end.

        Raises:
            NotRun: where it cannot be made ready.
        """
        ...


@cache
def _pipeline() -> DemoPipeline:
    return load_pipeline(progress=False)


class Context:
    """What the methods of one process share: the steps of a picture, the clock, and the pipeline."""

    def __init__(self, steps: int = 28, clock: str = "processor") -> None:
        self.steps = steps
        self.now = CLOCKS[clock]
        self.clock = clock
        self.calibrations: dict[str, Any] = {}

    @property
    def pipe(self) -> DemoPipeline:
        """The demo model, one for the process, loaded when it is first needed."""
        return _pipeline()

    def draw(self, picture: Picture, steps: int, *, counted: bool) -> Drawing:
        """One picture, as the pipeline stands."""
        generator = torch.Generator().manual_seed(picture.seed)
        with _metered(self.pipe.transformer, counted) as meter:
            start = self.now()
            output = self.pipe(picture.caption, num_inference_steps=steps, generator=generator, output_type="np")
            seconds = self.now() - start
        drawing = Drawing(output.images[0], seconds)
        if meter is not None:
            drawing.work, drawing.blocks = float(meter.work), int(meter.blocks)
        return drawing


@contextmanager
def _metered(transformer: Any, counted: bool) -> Iterator[WorkMeter | None]:
    if not counted:
        yield None
        return
    with WorkMeter(transformer) as meter:
        yield meter


class InProcess:
    """A method that draws with the shared pipeline; a subclass says how it is put on and taken off."""

    name: str
    owner: Literal["ours", "peer", "baseline"]
    family: str
    environment = "here"

    def settings(self, steps: int) -> list[Parameters]:
        raise NotImplementedError

    def prepare(self, context: Context) -> None:
        """What is needed once before the first picture, e.g. a calibration."""

    def put_on(self, pipe: DemoPipeline, parameters: Parameters, context: Context) -> None:
        """Make the pipeline draw by a setting."""
        raise NotImplementedError

    def take_off(self, pipe: DemoPipeline) -> str:
        """Make the pipeline draw as before, and return what a reader must know of the drawing, or ""."""
        raise NotImplementedError

    @contextmanager
    def drawer(self, context: Context) -> Iterator[Drawer]:
        self.prepare(context)
        yield _InProcessDrawer(self, context)


class _InProcessDrawer:
    def __init__(self, method: InProcess, context: Context) -> None:
        self.method, self.context = method, context

    def draw(self, parameters: Parameters | None, picture: Picture, *, counted: bool = True) -> Drawing:
        context, pipe = self.context, self.context.pipe
        if parameters is None:
            cache_dit.disable_cache(pipe)
            return context.draw(picture, context.steps, counted=counted)
        note = ""
        self.method.put_on(pipe, parameters, context)
        try:
            drawing = context.draw(picture, parameters.get("steps", context.steps), counted=counted)
        finally:
            note = self.method.take_off(pipe)
        drawing.note = note
        return drawing
