"""The phases: search, choose, evaluate. Each row is made once; a run that was ended goes on with the next."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
import torch

from bench.quality.choose import Rows, entries, hopeful, key_of, setting_text
from bench.quality.drawing import Context, Drawer, Drawing, Method, NotRun, Parameters, Picture, Pixels, Setup
from bench.quality.methods import methods
from bench.results import Results, failure
from bench.timer import quiet, watched
from cache_dit.errors import CacheDitError
from cache_dit.metrics import compute_lpips
from cache_dit.metrics import pixels as metrics

Row = dict[str, Any]


# -- how close a picture is to the uncached one


def psnr(reference: Pixels, pixels: Pixels) -> float | None:
    """In dB, in float64, of the pixels as the pipeline returns them; None for equal pictures."""
    value = metrics.psnr(reference, pixels, peak=1.0)
    return round(value, 4) if np.isfinite(value) else None


def ssim(reference: Pixels, pixels: Pixels) -> float:
    """Structural similarity, at most 1."""
    return round(metrics.ssim(255 * reference, 255 * pixels), 6)


def lpips(reference: Pixels, pixels: Pixels) -> float | None:
    """LPIPS with AlexNet, at least 0; None where its weights are not found."""
    return None if lpips_missing() else round(float(compute_lpips(reference, pixels)[0] or 0.0), 6)


@cache
def lpips_missing() -> str:
    """Why LPIPS cannot be computed here, or nothing."""
    try:
        compute_lpips(np.zeros((64, 64, 3), np.float32), np.ones((64, 64, 3), np.float32))
    except (CacheDitError, ImportError) as error:
        return str(error).partition(":")[0]  # what follows names this machine's folders
    return ""


# -- one setting over some pictures


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
        self.setup, self.context = setup, Context(setup)
        self._ready: tuple[str, Drawer] | None = None
        self._open = ExitStack()
        self._refused: dict[str, str] = {}

    def do(self, job: Job) -> Row:
        """The row of a job; `{"not run": why}` where its method cannot be run, `{"failed": why}` where its setting."""
        try:
            draw = self.drawer(job.method)
        except NotRun as reason:
            return {"not run": str(reason)}
        try:
            with quiet("cache_dit"):  # what it says, e.g. that nothing was cached, stands in the rows as notes
                return self._measured(job, methods()[job.method], draw)
        except Exception as error:  # a peer may raise anything; the row says what, and the others go on
            logging.getLogger(__name__).debug("%s", job, exc_info=True)
            self.close()  # a worker that did not answer is ended: the next setting gets a new one
            return {"method": job.method, "parameters": job.parameters, "failed": failure(error)}

    def drawer(self, name: str) -> Drawer:
        """A method made ready."""
        if self._ready is not None and self._ready[0] == name:
            return self._ready[1]
        if name in self._refused:
            raise NotRun(self._refused[name])
        self.close()
        try:
            draw = self._open.enter_context(methods()[name].drawer(self.context))
        except NotRun as reason:
            self._refused[name] = str(reason)
            raise
        self._ready = (name, draw)
        return draw

    def close(self) -> None:
        """Put the latest method away."""
        self._ready = None
        self._open.close()

    def _measured(self, job: Job, method: Method, draw: Drawer) -> Row:
        references = [self.reference(method, draw, picture) for picture in job.pictures]
        drawings = [draw(job.parameters, picture) for picture in job.pictures]
        pairs = [(one.pixels, other.pixels) for one, other in zip(references, drawings, strict=True)]
        base, work = ([one.work or 0.0 for one in some] for some in (references, drawings))
        speedup = round(sum(base) / max(1.0, sum(work)), 5)
        row: Row = {"method": job.method, "parameters": job.parameters, "speedup": speedup}
        row["psnr"] = [psnr(*pair) for pair in pairs]
        if job.whole:
            row |= {"ssim": [ssim(*pair) for pair in pairs], "lpips": [lpips(*pair) for pair in pairs]}
            row["seconds"] = [round(drawing.seconds, 4) for drawing in drawings]
        row |= {"work": [drawing.work for drawing in drawings], "blocks": [drawing.blocks for drawing in drawings]}
        row["uncached"] = {"work": references[0].work, "blocks": references[0].blocks}
        row["uncached"]["seconds"] = [round(one.seconds, 4) for one in references]
        if any(own >= full for own, full in zip(work, base, strict=True)):
            row["notes"] = ["nothing was cached"]
        return row

    def reference(self, method: Method, draw: Drawer, picture: Picture) -> Drawing:
        """The uncached picture, drawn once for all processes and methods of the same environment."""
        name = json.dumps([method.environment, self.setup.steps, asdict(picture)])
        path = self.setup.folder / f"{hashlib.sha1(name.encode()).hexdigest()}.npz"
        if not path.exists():
            drawn = draw(None, picture)
            part = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(part, pixels=drawn.pixels, numbers=[drawn.seconds, drawn.work or 0, drawn.blocks or 0])
            part.replace(path)
        with np.load(path) as kept:
            seconds, work, blocks = kept["numbers"].tolist()
            return Drawing(kept["pixels"], seconds, work, int(blocks))


# -- several processes

#: The artist of a process of the pool, once it is begun.
_artists: list[Artist] = []


def _begin(setup: Setup) -> None:
    """Made ready for jobs; from now on it ends when its parent is gone, also where that is killed."""
    torch.set_num_threads(setup.threads)
    _artists.append(Artist(setup))
    if (parent := parent_process()) is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _do(job: Job) -> Row:
    return _artists[0].do(job)


def done(jobs: Sequence[Job], setup: Setup, processes: int) -> Iterator[tuple[Job, Row]]:
    """Every job with its row, those of a method one after the other. One process: this one."""
    if processes == 1:
        with closing(Artist(setup)) as artist:
            yield from ((job, artist.do(job)) for job in jobs)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (setup,)) as pool:
        yield from zip(jobs, pool.map(_do, jobs), strict=True)


# -- the phases


@dataclass(frozen=True)
class Plan:
    """What is measured: which methods, at which speed-ups by work, on which pictures, how many candidates of each."""

    methods: dict[str, Method]
    setup: Setup
    budgets: tuple[float, ...]
    search: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    candidates: int = 24
    processes: int = 1


def run(results: Results, plan: Plan) -> None:
    """All phases; what is in the results already is not drawn again."""
    describe(results, plan)
    carry_out(results, plan, "search", list(search_jobs(results, plan)))
    carry_out(results, plan, "result", list(evaluation_jobs(results.rows, plan)))


def describe(results: Results, plan: Plan) -> None:
    """Write down what each method is and which settings are tried; a reader counts only these."""
    results.add("metrics", {"lpips_missing": lpips_missing()})
    for name, method in plan.methods.items():
        row = {"owner": method.owner, "family": method.family, "environment": method.environment}
        different = {setting_text(one): one for one in method.settings(plan.setup.steps)}  # with few steps, fewer
        row["candidates"] = spread_out(list(different.values()), plan.candidates)
        if {**results.rows.get(f"method/{name}", {}), "not run": ""} != {**row, "not run": ""}:
            results.add(f"method/{name}", row)


def spread_out(settings: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, from the first to the last."""
    if len(settings) <= most or most == 1:
        return list(settings)[:most]
    return [settings[round(index * (len(settings) - 1) / (most - 1))] for index in range(most)]


def search_jobs(results: Results, plan: Plan) -> Iterator[Job]:
    """Every candidate of every method on the pictures of the search."""
    for name in plan.methods:
        for parameters in results.rows[f"method/{name}"]["candidates"]:
            yield Job(key_of("search", name, parameters), name, parameters, plan.search)


def evaluation_jobs(rows: Rows, plan: Plan) -> Iterator[Job]:
    """The best setting of each family at each budget on the held-out pictures, unless it is hopeless; each once."""
    jobs = {}
    for entry in hopeful([one for one in entries(rows, plan.budgets) if one.method in plan.methods]):
        key = key_of("result", entry.method, entry.parameters)
        jobs[key] = Job(key, entry.method, entry.parameters, plan.held_out, whole=True)
    yield from jobs.values()


def carry_out(results: Results, plan: Plan, phase: str, jobs: Sequence[Job]) -> None:
    """Do the jobs that have no row yet, and those that failed when they were tried before."""
    left = [job for job in jobs if "failed" in results.rows.get(job.key, {"failed": "not tried"})]
    rows = done(left, plan.setup, plan.processes) if left else iter(())
    for _ in watched(f"quality: {phase}")(range(len(left))):
        job, row = next(rows)
        key = f"method/{job.method}"
        known = {name: value for name, value in results.rows[key].items() if name != "not run"}
        if "not run" in row:
            known |= row
        if known != results.rows[key]:  # it can now, or no longer
            results.add(key, known)
        if "not run" not in row:
            results.add(job.key, row)
