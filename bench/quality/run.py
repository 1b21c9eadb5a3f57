"""The phases: search, choose, evaluate, time. Each row is made once; a run that was ended goes on with the next."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context, parent_process
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.cost.steps import quiet
from bench.quality.choose import (
    OTHERS,
    Entry,
    Rows,
    best_of,
    entries,
    evaluation_key,
    hopeful,
    method_key,
    search_key,
    setting_text,
    timing_key,
)
from bench.quality.drawing import Context, Drawer, Drawing, Method, NotRun, Parameters, Picture, Pixels, Setup
from bench.quality.methods import methods
from bench.results import Results
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
        self._agreements: dict[str, float | None] = {}

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
            return {"method": job.method, "parameters": job.parameters, "failed": f"{type(error).__name__}: {error}"}

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
        if method.environment != "here":
            row["uncached"]["psnr_to_ours"] = self._agreement(method.environment, job.pictures[0], references[0])
        if any(own >= full for own, full in zip(work, base, strict=True)):
            row["notes"] = ["nothing was cached"]
        return row

    def _agreement(self, environment: str, picture: Picture, theirs: Drawing) -> float | None:
        """How close another environment's uncached picture is to the one that is drawn here; None: the same."""
        if environment not in self._agreements:
            ours = self.context.draw(picture, counted=False)
            self._agreements[environment] = psnr(ours.pixels, theirs.pixels)
        return self._agreements[environment]

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
    torch.set_num_threads(setup.threads)
    artist = Artist(setup)
    Finalize(None, artist.close, exitpriority=10)  # atexit's functions are not called in such a process
    end_with_parent(artist.close)
    _artists.append(artist)


def end_with_parent(close: Callable[[], object]) -> None:
    """From now on end this process when its parent is gone, also where that is killed and can tell nobody."""

    def watch(parent: Any) -> None:
        parent.join()
        try:
            close()
        finally:
            os._exit(1)

    if (parent := parent_process()) is not None:
        threading.Thread(target=watch, args=(parent,), name="end with parent", daemon=True).start()


def _do(job: Job) -> Row:
    return _artists[0].do(job)


def done(jobs: Iterable[Job], setup: Setup, processes: int) -> Iterator[tuple[Job, Row]]:
    """Every job with its row, as they come; those of a method one after the other. One process: this one."""
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


# -- the phases


@dataclass(frozen=True)
class Plan:
    """What is measured: which methods, at which speed-ups by work, on which pictures, with how many candidates of each.

    ``timed``: how many captions are timed, and how often each.
    """

    methods: dict[str, Method]
    setup: Setup
    budgets: tuple[float, ...]
    search: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    candidates: int = 24
    processes: int = 1
    timed: int = 3


def run(results: Results, plan: Plan) -> None:
    """All phases; what is in the results already is not drawn again."""
    describe(results, plan)
    carry_out(results, plan, "search", list(search_jobs(results, plan)))
    carry_out(results, plan, "result", list(evaluation_jobs(results.rows, plan)))
    time_winners(results, plan)


def describe(results: Results, plan: Plan) -> None:
    """Write down what each method is and which settings are tried; a reader counts only these."""
    results.add("metrics", {"lpips_missing": lpips_missing()})
    for name, method in plan.methods.items():
        row = {"owner": method.owner, "family": method.family, "environment": method.environment}
        different = {setting_text(one): one for one in method.settings(plan.setup.steps)}  # with few steps, fewer
        row["candidates"] = spread_out(list(different.values()), plan.candidates)
        if {**results.rows.get(method_key(name), {}), "not run": ""} != {**row, "not run": ""}:
            results.add(method_key(name), row)


def spread_out(settings: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, from the first to the last."""
    if len(settings) <= most or most == 1:
        return list(settings)[:most]
    return [settings[round(index * (len(settings) - 1) / (most - 1))] for index in range(most)]


def search_jobs(results: Results, plan: Plan) -> Iterator[Job]:
    """Every candidate of every method on the pictures of the search."""
    for name in plan.methods:
        for parameters in results.rows[method_key(name)]["candidates"]:
            yield Job(search_key(name, parameters), name, parameters, plan.search)


def evaluation_jobs(rows: Rows, plan: Plan) -> Iterator[Job]:
    """The best setting of each family at each budget on the held-out pictures, unless it is hopeless; each once."""
    jobs = {}
    for entry in hopeful([one for one in entries(rows, plan.budgets) if one.method in plan.methods]):
        key = evaluation_key(entry.method, entry.parameters)
        jobs[key] = Job(key, entry.method, entry.parameters, plan.held_out, whole=True)
    yield from jobs.values()


def carry_out(results: Results, plan: Plan, phase: str, jobs: Sequence[Job]) -> None:
    """Do the jobs that have no row yet, and those that failed when they were tried before."""
    left = [job for job in jobs if "failed" in results.rows.get(job.key, {"failed": "not tried"})]
    with _bar(f"quality: {phase}", len(jobs)) as advance:
        advance(len(jobs) - len(left))
        for job, row in done(left, plan.setup, plan.processes) if left else ():
            key = method_key(job.method)
            if "not run" in row:
                results.add(key, {**results.rows[key], **row})
            else:
                if "not run" in results.rows[key]:  # it could not in a run before
                    results.add(key, {name: value for name, value in results.rows[key].items() if name != "not run"})
                results.add(job.key, row)
            advance(1)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not Console().is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


# -- time


def time_winners(results: Results, plan: Plan) -> None:
    """At each budget the best of ours and of the others, in turns with the uncached pipeline, in this process.

    Times of others than the best, from a run before with fewer methods, are replaced; a run of some methods leaves the
    times as they are where it has not all of the best.
    """
    listed = entries(results.rows, plan.budgets)
    for budget in plan.budgets:
        winners = [best_of(listed, budget, owner) for owner in ("ours", *OTHERS)]
        running = [entry for entry in winners if entry is not None]
        there = results.rows.get(timing_key(budget), {"methods": {}})["methods"]
        timed = {name: one["parameters"] for name, one in there.items()}
        stale = timed != {entry.method: entry.parameters for entry in running}
        if running and stale and all(entry.method in plan.methods for entry in running):
            with _bar(f"quality: time at {budget:g}×", plan.timed**2) as advance:
                results.add(timing_key(budget), {"methods": _timed(running, plan, advance)})


def _timed(running: Sequence[Entry], plan: Plan, advance: Any) -> dict[str, Any]:
    """Seconds of each method, and of the uncached pipeline right beside it, in an order that turns."""
    context = Context(plan.setup)
    with ExitStack() as stack:
        drawers: dict[str, Drawer] = {}
        for entry in running:
            try:
                drawers[entry.method] = stack.enter_context(plan.methods[entry.method].drawer(context))
            except NotRun:
                continue
        runs = [entry for entry in running if entry.method in drawers]
        timed: dict[str, Any] = {
            one.method: {"parameters": one.parameters, "speedup": one.speedup, "cached": [], "uncached": []}
            for one in runs
        }
        for turn in range(-1, plan.timed**2):  # the first one warms up
            picture = plan.held_out[max(turn, 0) % min(plan.timed, len(plan.held_out))]
            for entry in runs[turn % len(runs) :] + runs[: turn % len(runs)]:
                sides = [("cached", entry.parameters), ("uncached", None)]
                for name, parameters in sides if turn % 2 else reversed(sides):
                    seconds = drawers[entry.method](parameters, picture, counted=False).seconds
                    if turn >= 0:
                        timed[entry.method][name].append(round(seconds, 4))
            if turn >= 0:
                advance(1)
    return timed
