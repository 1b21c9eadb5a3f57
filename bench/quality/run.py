"""The phases: search, choose, evaluate, time. Each row is made once; a run that was ended goes on with the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.quality import fidelity
from bench.quality.choose import (
    Entry,
    Rows,
    best_of,
    entries,
    evaluation_key,
    hopeful,
    method_key,
    search_key,
    setting_text,
)
from bench.quality.findings import OTHERS, timing_key
from bench.quality.jobs import Job, Setup, done
from bench.quality.method import Context, Method, NotRun, Parameters, Picture
from bench.results import Results


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        methods: those that are run, by name.
        setup: steps, clock, threads, and where uncached pictures are kept.
        budgets: speed-ups by work.
        search, held_out: the pictures of either.
        candidates: the most of each method.
        processes: that draw at a time.
        timed_pictures, timed_runs: how many captions are timed, and how often each.
    """

    methods: dict[str, Method]
    setup: Setup
    budgets: tuple[float, ...]
    search: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    candidates: int = 24
    processes: int = 1
    timed_pictures: int = 3
    timed_runs: int = 3


def run(results: Results, plan: Plan) -> None:
    """All phases; what is in the results already is not drawn again."""
    describe(results, plan)
    carry_out(results, plan, "search", list(search_jobs(results, plan)))
    carry_out(results, plan, "result", list(evaluation_jobs(results.rows, plan)))
    time_winners(results, plan)


def describe(results: Results, plan: Plan) -> None:
    """Write down what each method is and which settings are tried; a reader counts only these."""
    results.add("metrics", {"lpips_missing": fidelity.lpips_missing()})
    for name, method in plan.methods.items():
        row = {
            "owner": method.owner,
            "family": method.family,
            "environment": method.environment,
            "candidates": spread_out(_different(method.settings(plan.setup.steps)), plan.candidates),
        }
        if {**results.rows.get(method_key(name), {}), "not run": ""} != {**row, "not run": ""}:
            results.add(method_key(name), row)


def _different(settings: Sequence[Parameters]) -> list[Parameters]:
    """Each of them once: with few steps two may be the same."""
    return list({setting_text(one): one for one in settings}.values())


def spread_out(settings: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, from the first to the last."""
    if len(settings) <= most:
        return list(settings)
    if most == 1:
        return [settings[0]]
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
        winners = [best_of(listed, budget, "ours"), *(best_of(listed, budget, owner) for owner in OTHERS)]
        running = [entry for entry in winners if entry is not None]
        there = results.rows.get(timing_key(budget), {"methods": {}})["methods"]
        timed = {name: one["parameters"] for name, one in there.items()}
        stale = timed != {entry.method: entry.parameters for entry in running}
        if running and stale and all(entry.method in plan.methods for entry in running):
            with _bar(f"quality: time at {budget:g}×", plan.timed_pictures * plan.timed_runs) as advance:
                results.add(timing_key(budget), {"methods": _timed(running, plan, advance)})


def _timed(running: Sequence[Entry], plan: Plan, advance: Any) -> dict[str, Any]:
    """Seconds of each method, and of the uncached pipeline right beside it, in an order that turns."""
    context = Context(plan.setup.steps, plan.setup.clock)
    with ExitStack() as stack:
        drawers = {}
        for entry in running:
            try:
                drawers[entry.method] = stack.enter_context(plan.methods[entry.method].drawer(context))
            except NotRun:
                continue
        runs = [entry for entry in running if entry.method in drawers]
        timed = {
            entry.method: {
                "parameters": entry.parameters,
                "speedup": (entry.result or {})["speedup"],
                "cached": [],
                "uncached": [],
            }
            for entry in runs
        }
        for turn in range(-1, plan.timed_pictures * plan.timed_runs):  # the first one warms up
            picture = plan.held_out[max(turn, 0) % min(plan.timed_pictures, len(plan.held_out))]
            for entry in runs[turn % len(runs) :] + runs[: turn % len(runs)]:
                sides = [("cached", entry.parameters), ("uncached", None)]
                for name, parameters in sides if turn % 2 else reversed(sides):
                    seconds = drawers[entry.method].draw(parameters, picture, counted=False).seconds
                    if turn >= 0:
                        timed[entry.method][name].append(round(seconds, 4))
            if turn >= 0:
                advance(1)
    return timed
