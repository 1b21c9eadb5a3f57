"""One setting over some pictures: what a process of the bench does at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import quiet
from bench.orphans import end_with_parent
from bench.quality import fidelity
from bench.quality.method import Context, Drawer, Drawing, Method, NotRun, Parameters, Picture
from bench.quality.methods import methods

Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What is the same for all jobs.

    Args:
        steps: denoising steps of a picture.
        clock: `"wall"` or `"processor"`.
        threads: of each process.
        folder: where uncached pictures are kept for the other processes of this run.
    """

    steps: int
    clock: str
    threads: int
    folder: Path


@dataclass(frozen=True)
class Job:
    """One row of the results: a setting of a method over pictures; `whole`: with SSIM and LPIPS."""

    key: str
    method: str
    parameters: Parameters
    pictures: tuple[Picture, ...]
    whole: bool = False


class Artist:
    """Does jobs in this process. The latest method stays ready, since its next setting often comes next."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.context = Context(setup.steps, setup.clock)
        self._ready: tuple[str, Drawer] | None = None
        self._open = ExitStack()
        self._refused: dict[str, str] = {}
        self._agreements: dict[str, float | None] = {}

    def do(self, job: Job) -> Row:
        """The row of a job; `{"not run": why}` where its method cannot be run, `{"failed": why}` where its setting."""
        try:
            drawer = self.drawer(job.method)
        except NotRun as reason:
            return {"not run": str(reason)}
        try:
            with quiet("cache_dit"):  # what it says, e.g. that nothing was cached, stands in the rows as notes
                return self._measured(job, methods()[job.method], drawer)
        except Exception as error:  # a peer may raise anything; the row says what, and the others go on
            logging.getLogger(__name__).debug("%s", job, exc_info=True)
            self.close()  # a worker that did not answer is ended: the next setting gets a new one
            return {"method": job.method, "parameters": job.parameters, "failed": f"{type(error).__name__}: {error}"}

    def drawer(self, name: str) -> Drawer:
        """A method made ready."""
        if self._ready is not None and self._ready[0] == name:
            return self._ready[1]
        if name in self._refused:
            raise NotRun(self._refused[name])
        self.close()
        try:
            drawer = self._open.enter_context(methods()[name].drawer(self.context))
        except NotRun as reason:
            self._refused[name] = str(reason)
            raise
        self._ready = (name, drawer)
        return drawer

    def close(self) -> None:
        """Put the latest method away."""
        self._ready = None
        self._open.close()

    def _measured(self, job: Job, method: Method, drawer: Drawer) -> Row:
        references = [self.reference(method, drawer, picture) for picture in job.pictures]
        drawings = [drawer.draw(job.parameters, picture) for picture in job.pictures]
        pairs = [(one.pixels, other.pixels) for one, other in zip(references, drawings, strict=True)]
        row: Row = {
            "method": job.method,
            "parameters": job.parameters,
            "speedup": round(_total(references) / max(1.0, _total(drawings)), 5),
            "psnr": [fidelity.psnr(*pair) for pair in pairs],
        }
        if job.whole:
            row["ssim"] = [fidelity.ssim(*pair) for pair in pairs]
            row["lpips"] = [fidelity.lpips(*pair) for pair in pairs]
            row["seconds"] = [round(drawing.seconds, 4) for drawing in drawings]
        row |= {"work": [drawing.work for drawing in drawings], "blocks": [drawing.blocks for drawing in drawings]}
        row["uncached"] = {"work": references[0].work, "blocks": references[0].blocks}
        if method.environment != "here":
            row["uncached"]["psnr_to_ours"] = self._agreement(method.environment, job.pictures[0], references[0])
        if notes := sorted({drawing.note for drawing in drawings} - {""}):
            row["notes"] = notes
        return row

    def _agreement(self, environment: str, picture: Picture, theirs: Drawing) -> float | None:
        """How close another environment's uncached picture is to the one that is drawn here; None: the same."""
        if environment not in self._agreements:
            ours = self.context.draw(picture, self.setup.steps, counted=False)
            self._agreements[environment] = fidelity.psnr(ours.pixels, theirs.pixels)
        return self._agreements[environment]

    def reference(self, method: Method, drawer: Drawer, picture: Picture) -> Drawing:
        """The uncached picture, drawn once for all processes and methods of the same environment."""
        name = json.dumps([method.environment, self.setup.steps, asdict(picture)])
        path = self.setup.folder / f"{hashlib.sha1(name.encode()).hexdigest()}.npz"
        if not path.exists():
            drawn = drawer.draw(None, picture)
            part = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(part, pixels=drawn.pixels, numbers=[drawn.seconds, drawn.work or 0, drawn.blocks or 0])
            part.replace(path)
        with np.load(path) as kept:
            seconds, work, blocks = kept["numbers"].tolist()
            return Drawing(kept["pixels"], seconds, work, int(blocks))


def _total(drawings: Iterable[Drawing]) -> float:
    return sum(drawing.work or 0.0 for drawing in drawings)


# -- several processes

#: The artist of a process of the pool, once it is begun.
_artists: list[Artist] = []


def _begin(setup: Setup) -> None:
    torch.set_num_threads(setup.threads)
    artist = Artist(setup)
    Finalize(None, artist.close, exitpriority=10)  # atexit's functions are not called in such a process
    end_with_parent(artist.close)
    _artists.append(artist)


def _do(job: Job) -> Row:
    return _artists[0].do(job)


def done(jobs: Iterable[Job], setup: Setup, processes: int) -> Iterator[tuple[Job, Row]]:
    """Every job with its row, as they come.

    Args:
        jobs: those of a method one after the other.
        setup: what is the same for all.
        processes: that work at a time; 1: this one.
    """
    if processes == 1:
        artist = Artist(setup)
        try:
            yield from ((job, artist.do(job)) for job in jobs)
        finally:
            artist.close()
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (setup,))
    try:
        waiting: dict[Future[Row], Job] = {pool.submit(_do, job): job for job in jobs}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
