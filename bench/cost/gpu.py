"""What the cache costs and gives on a GPU, on published models: as many rows as some minutes allow."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters

from bench.contenders import contenders
from bench.cost.ours import of_sum, sum_times
from bench.cost.steps import (
    ALWAYS,
    NEVER,
    cached_steps,
    half_mask,
    of_time,
    quiet,
    seconds_of,
    static,
    threshold,
    watched,
)
from bench.findings import Finding, found, measured, median, milliseconds, pairs_of, ratio, ratio_of_medians
from bench.measures import PutOn, Subject, by_name, putting, state_of, time_of
from bench.models import SPECS, Made, Spec, blocks_of, make, named, twin, with_blocks
from bench.results import Results
from bench.timer import HostClock, clock_for, interleaved
from cache_dit import steps_mask
from cache_dit.errors import CacheDitError

Row = dict[str, Any]

#: The goals: a step where nothing is cached, and a loop's speed-up against the ideal at about GOAL ×.
OVERHEAD, EFFICIENCY, GOAL = "≤ 1.005", "≥ 0.95", 3.9
#: Times that the host may wait in a step.
WAITS = {"planned": 0, "static": 0, "measured": 1, "dynamic": 1}
MASKS = ("slow", "medium", "fast", "ultra")
#: The group of what is measured without a model, and the key of the row that tells what did not fit.
KERNELS, LEFT_OUT = "Kernels", "not run"
#: What may go wrong with one row without the others being touched: memory, the compiler, and diffusers with either.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError, OSError)
#: The ways to compile, and runs in which code is compiled, and CUDA graphs are warmed up and recorded.
MODES: dict[str, Callable[..., None]] = {
    "regional": lambda model, **options: model.compile_repeated_blocks(fullgraph=True, **options),
    "whole": lambda model, **options: model.compile(**options),
    "graphs": lambda model, **options: model.compile(**({"mode": "reduce-overhead"} | options)),
}
WARM_UP = 4


class NeedsGpuError(CacheDitError, RuntimeError):
    """This measures a CUDA device, and there is none."""


@dataclass(frozen=True)
class Amount:
    """How much is measured: steps of a run and runs, lengths of denoising loops and rounds of each, calls of each sum.

    ``tiny``: whether the models are those of a test; ``feature``: what a block of a large model hands on.
    """

    tiny: bool = False
    steps: int = 6
    runs: int = 4
    loops: tuple[int, ...] = (28, 50)
    rounds: int = 2
    calls: int = 50
    feature: tuple[int, ...] = (1, 4608, 3072)


QUICK = Amount(steps=3, runs=1, loops=(28,), rounds=1, calls=10)
TINY = Amount(tiny=True, steps=3, runs=1, loops=(4,), rounds=1, calls=2, feature=(1, 8, 16))


@dataclass
class Stage:
    """The device with one model on it."""

    device: torch.device
    dtype: torch.dtype
    size: Amount
    clock: HostClock = field(init=False)
    made: Made | None = None

    def __post_init__(self) -> None:
        self.clock = clock_for(self.device)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def model(self, spec: Spec) -> Made:
        """A model with its inputs; the one before it is freed."""
        if self.made is None or self.made.spec is not spec:
            self.made = None
            self.tidy()
            self.made = make(spec, self.device, self.dtype, tiny=self.size.tiny)
        return self.made

    def subject(self, spec: Spec, steps: int) -> Subject:
        """A model with the inputs of so many steps."""
        made = self.model(spec)
        return Subject(made.model, made.drifting(steps), self.clock, self.size.runs, made.feature_bytes)

    def tidy(self) -> None:
        """Free what the row before left on a GPU: caches, graphs, and memory that torch keeps for later."""
        if self.cuda:
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()

    def peak(self, run: Callable[[], object]) -> int | None:
        """The most bytes that are taken on the device beyond those before; None where only CUDA can tell."""
        before = 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        run()
        self.clock.wait()
        return torch.cuda.max_memory_allocated(self.device) - before if self.cuda else None

    def waits(self, call: Callable[[int], Any], step: int) -> int | None:
        """How often torch made the host wait for the device in a step; None where only CUDA can tell."""
        if not self.cuda:
            return None
        self.clock.wait()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)


def opened(device: str | torch.device, size: Amount) -> Stage:
    """The stage on a CUDA device.

    Raises:
        NeedsGpuError: it is no CUDA device, or there is none.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        seen = f"--device is {device}" if device.type != "cuda" else "torch sees none here"
        raise NeedsGpuError(f"this bench measures a CUDA GPU, and {seen}: run it on a machine that has one")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise NeedsGpuError(f"there is no {device}, only {torch.cuda.device_count()} CUDA devices: pass --device cuda")
    torch.cuda.set_device(device.index or 0)
    return Stage(torch.device("cuda", device.index or 0), torch.bfloat16, size)


# -- rows


def row_of(findings: Iterable[Finding], **raw: Any) -> Row:
    """Raw numbers with what follows from them."""
    return {**raw, "findings": [asdict(finding) for finding in findings]}


def on(options: dict[str, Any]) -> PutOn:
    """Our cache, for one branch: as a model that is distilled from guidance runs."""
    return by_name("cache_dit", {"enable_separate_cfg": False, **options})


def variants(steps: int) -> dict[str, PutOn | None]:
    """Another instance of the model, and caches that never skip and that always do."""
    return {
        "bare": None,
        "planned": on(static([1] * steps + [0])),
        "measured": on(threshold(NEVER)),
        "static": on(static([1] + [0] * (steps - 1))),
        "dynamic": on(threshold(ALWAYS)),
    }


def made_row(stage: Stage, spec: Spec) -> Row:
    """Make a model and call it: its size, and that its output is finite and moves."""
    subject = stage.subject(spec, 3)
    first, *_, last = (output[0].float() for output in subject.run(subject.model))
    if not (first.isfinite().all() and last.isfinite().all()):
        raise RuntimeError(f"{spec.title} with random weights gives numbers that are not finite")
    drift = ((last - first).abs().mean() / first.abs().mean()).item()
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    return {"parameters": parameters, "blocks": len(blocks_of(subject.model)), "drift": drift}


def steps_row(stage: Stage, spec: Spec) -> Row:
    """Seconds of each step, eager, in turn: our settings and diffusers' caches, skipping every other step or none."""
    subject = stage.subject(spec, steps := stage.size.steps)
    ours = {**variants(steps), "half": on({"taylor": 1, **static(half_mask(steps))})}
    ours["half, snapshots in the host's memory"] = on({"taylor": 1, "cache_device": "cpu", **static(half_mask(steps))})
    theirs = {
        f"{one.name}, {what}": by_name(one.method, options)
        for one in contenders(steps)
        for what, options in one.options.items()
        if one.owner == "peer" and not one.version and "," in what and ("reuse" in what or what in one.apart)
    }
    caches = {"control": None, **{name: ours[name] for name in ours if name != "bare"}, **theirs}
    row = time_of(subject, caches, watched=watched(f"{spec.title}, steps"))
    return row_of(_of_steps(row), **row)


def _of_steps(row: Row) -> Iterator[Finding]:
    times = row["times"]
    yield milliseconds("full step, bare", seconds_of(times, "bare"))
    yield ratio("bare ÷ bare: how far the machine lets one see", pairs_of(times, "control", "bare"))
    beyond = [1000 * (wrapped - bare) for wrapped, bare in pairs_of(times, "measured", "bare")]
    yield measured("wrapped − bare, every step measured, none skipped", beyond, median, "ms")
    for name in list(row["blocks"])[1:]:
        yield from of_time(row, name, target=OVERHEAD if name in ("planned", "measured") else "")
        if name in row["rest"]:
            yield cached_steps(row, name, f"cached step, {name}")


def reads_row(stage: Stage, spec: Spec) -> Row:
    """For each step of a run, how often the host waited for the device."""
    subject, waits = stage.subject(spec, steps := stage.size.steps), {}
    for name, put_on in variants(steps).items():
        with putting(put_on, model := twin(subject.model), steps):
            subject.run(model)  # a first run has checks that are made once, and kernels to compile
            waits[name] = [stage.waits(subject.call(model), step) for step in range(steps)]
    return row_of(waits_findings(waits), waits=waits)


def waits_findings(waits: Mapping[str, Sequence[int | None]]) -> Iterator[Finding]:
    """Waits beyond the bare model's; nothing where only CUDA could tell."""
    for name, most in WAITS.items():
        pairs = zip(waits[name], waits["bare"], strict=True)
        beyond = [one - base for one, base in pairs if one is not None and base is not None]
        if beyond:
            title = f"waits of the host in a step beyond the bare model's, {name}"
            yield found(title, max(beyond), "waits", f"≤ {most}", per_step=waits[name])


def memory_row(stage: Stage, spec: Spec) -> Row:
    """What is alive between two steps because of a cache, and the most that a run takes beyond weights and inputs."""
    subject, findings = stage.subject(spec, steps := stage.size.steps), []
    for name in ("bare", "static", "dynamic"):
        put_on = variants(steps)[name]
        if put_on is not None:
            row = state_of(subject, put_on)
            held = row["bytes"] / row["feature_bytes"]
            findings.append(found(f"live state, {name}", row["bytes"] / 2**20, "MiB", features=held))
        with putting(put_on, model := twin(subject.model), steps):
            peak = stage.peak(partial(subject.run, model))
        if peak is not None:
            findings.append(found(f"most memory of a run beyond weights, {name}", peak / 2**20, "MiB"))
    return row_of(findings)


def even_mask(steps: int) -> list[int]:
    """Evenly spread computed steps, of which all steps are about the goal's speed-up times as many."""
    full = max(1, round(steps / GOAL))
    return steps_mask(total_steps=steps, mask_policy="even", full_steps=full, warmup=1, last=False) or []


def denoise(made: Made, model: Any, steps: int, graphs: bool, _: int = 0) -> torch.Tensor:
    """A whole run by Euler's steps; ``graphs``: outputs of the step before are no longer needed by a CUDA graph."""
    state = made.state
    for level in made.timesteps(steps):
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        state = state - named(model)(**made.arguments(state, level))[0] / steps
    if not state.isfinite().all():
        raise RuntimeError("the loop ended with numbers that are not finite")
    return state


def loop_row(stage: Stage, spec: Spec, steps: int, mode: str = "") -> Row:
    """Whole loops, in random order, the device idle before each: bare, wrapped without a skipped step, at every mask.

    Compiled, bare and at the mask of the goal's speed-up alone, with what was compiled.
    """
    stage.tidy()
    made = stage.model(spec)
    masks = {} if mode else {name: steps_mask(total_steps=steps, mask_policy=name) or [] for name in MASKS}
    masks["even"] = even_mask(steps)
    caches = {name: on(static(mask)) for name, mask in masks.items()}
    models = {"bare": twin(made.model)} | (
        {} if mode else {"measured": twin(made.model), "rest": with_blocks(made.model)}
    )
    models |= {name: twin(made.model) for name in caches}
    for name, put_on in {**caches, **({} if mode else {"measured": on(threshold(NEVER))})}.items():
        put_on(models[name], steps)
    torch._dynamo.reset()
    counters.clear()
    options = {} if stage.cuda else {"backend": "eager"}  # the compiler for processors is not what is measured here
    for model in models.values() if mode else ():
        MODES[mode](model, **options)
    calls = {name: partial(denoise, made, model, steps, mode == "graphs") for name, model in models.items()}
    for name in list(calls) * (WARM_UP if mode else 1):
        calls[name]()
    before = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    times = interleaved(calls, 1, stage.size.rounds, stage.clock, warm_up=0, idle=True)
    again = counters["stats"]["unique_graphs"] - before["graphs"]
    seconds = {name: [run[0] for run in runs] for name, runs in times.items()}
    computed = {name: sum(mask) for name, mask in masks.items()}
    row = {
        "steps": steps,
        "mode": mode,
        "seconds": seconds,
        "computed": computed,
        "compiled": {**before, "again": again},
    }
    return row_of(loop_findings(row), **row)


def loop_findings(row: Row) -> Iterator[Finding]:
    """What follows from the seconds of loops."""
    seconds, steps, mode = row["seconds"], row["steps"], f"{row['mode']}, " if row["mode"] else ""
    bare = seconds["bare"]
    yield found(f"{mode}loop of {steps}, bare", statistics.median(bare), "s")
    if "measured" in seconds:
        pairs = list(zip(seconds["measured"], bare, strict=True))
        yield ratio(f"loop of {steps}, wrapped ÷ bare, every step measured, none skipped", pairs, OVERHEAD)
    for name, count in row["computed"].items():
        pairs, ideal, target = list(zip(bare, seconds[name], strict=True)), steps / count, EFFICIENCY * (name == "even")
        yield measured(f"speed-up, {mode}{steps} steps, {name}", pairs, ratio_of_medians, computed=count)
        share = partial(
            measured, f"speed-up ÷ ideal, {mode}{steps} steps, {name}", pairs, ratio_of_medians, "×", target
        )
        yield share(scale=1 / ideal, ideal=ideal)
    even, count = statistics.median(seconds["even"]), row["computed"]["even"]
    beyond = (even - count * statistics.median(bare) / steps) / (steps - count)
    yield found(f"{mode}cached step, static, Fn=0, in a loop of {steps}, even", 1000 * beyond, "ms", computed=count)
    if mode:
        told = row["compiled"]
        yield found(f"{mode}graph breaks", told["breaks"], "breaks", graphs=told["graphs"])
        yield found(f"{mode}graphs compiled after the warm-up", told["again"], "graphs", "≤ 0")


def sum_row(stage: Stage, count: int) -> Row:
    """The weighted sum of a prediction, of so many snapshots of a large model."""
    size = stage.size
    row = sum_times(size.feature, stage.dtype, count, size.calls, stage.clock, on=stage.device, quick=not stage.cuda)
    return row_of(of_sum(row, f"sum of {count}"), **row)


# -- the run


@dataclass(frozen=True)
class Item:
    """A row to make, and the seconds that it takes on an H200, with room: it is not begun with less left."""

    key: str
    seconds: float
    make: Callable[[Stage], Row]


#: Seconds of a model's rows: made, steps, reads, memory, a short loop and a long one.
_SECONDS = {
    "flux": (25, 60, 15, 15, 60, 100),
    "klein": (15, 25, 10, 10, 25, 60),
    "wan": (15, 30, 10, 10, 30, 60),
    "qwen": (30, 70, 15, 15, 70, 120),
}


def items(loops: Sequence[int]) -> list[Item]:
    """All rows: the claims about FLUX.1 first, then the other models, then what takes longer."""
    kinds = {"made": made_row, "steps": steps_row, "reads": reads_row, "memory": memory_row}

    def loop(name: str, length: int, seconds: float, mode: str = "") -> Item:
        key = f"{name}: {mode}" if mode else f"{name}: loop of {length}"
        return Item(key, seconds, lambda stage: loop_row(stage, SPECS[name], length, mode))

    def short(name: str) -> list[Item]:
        makers = zip(kinds.items(), _SECONDS[name], strict=False)
        rows = [Item(f"{name}: {k}", s, lambda stage, m=m: m(stage, SPECS[name])) for (k, m), s in makers]
        return [*rows, loop(name, loops[0], _SECONDS[name][4])]

    kernels = [Item(f"sum of {n}", 10, lambda stage, n=n: sum_row(stage, n)) for n in (1, 3)]
    others = [item for name in ("klein", "wan", "qwen") for item in short(name)]
    longer = [loop(name, length, _SECONDS[name][5]) for length in loops[1:] for name in SPECS]
    compiled = [("klein", "regional", 60), ("flux", "regional", 100), ("klein", "whole", 120), ("klein", "graphs", 120)]
    compiled += [("wan", "regional", 90), ("qwen", "regional", 120), ("flux", "whole", 250), ("flux", "graphs", 250)]
    modes = [loop(name, loops[0], seconds, mode) for name, mode, seconds in compiled]
    return [*short("flux"), *modes[:1], *kernels, *modes[1:2], *others, *longer, *modes[2:]]


@torch.no_grad()
def run(
    stage: Stage,
    results: Results,
    minutes: float,
    *,
    only: Iterable[str] = (),
    say: Callable[[str], None] = print,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Make the rows that are not there yet, or failed, until the minutes are over."""
    end, left, wanted = now() + 60 * minutes, [], tuple(only)
    for item in items(stage.size.loops):
        there = item.key in results and "error" not in results.rows[item.key]
        if there or (wanted and not any(part in item.key for part in wanted)):
            continue
        if now() + (0 if stage.size.tiny else item.seconds) > end:
            left.append(item.key)
            say(f"not run: {item.key} (about {item.seconds:.0f} s, {max(0, end - now()):.0f} s left)")
            continue
        start, row = now(), _made(item, stage)
        results.add(item.key, {**row, "seconds_taken": now() - start})
        say(f"{item.key}: {now() - start:.1f} s{', ' + row['error'] if 'error' in row else ''}")
    left += results.rows.get(LEFT_OUT, {"keys": []})["keys"]  # of a run before that made other rows
    results.add(LEFT_OUT, {"keys": [key for key in dict.fromkeys(left) if key not in results]})


def _made(item: Item, stage: Stage) -> Row:
    try:
        with quiet("cache_dit"):  # that nothing was skipped is the point of some rows
            row = item.make(stage)
        stage.clock.wait()  # what fails on the device fails here
    except FAILURES as error:
        lines = str(error).strip().splitlines()
        row = {"error": f"{type(error).__name__}: {lines[0][:300] if lines else 'it says nothing'}"}
    if "error" in row:
        stage.made = None  # outside of the handler: the error holds on to the memory that it was short of
    stage.tidy()
    return row


def findings_of(rows: Mapping[str, Row]) -> list[Finding]:
    """All findings, by model; rows that are missing or failed have none."""
    told = []
    for name, group in {**{spec.name: spec.title for spec in SPECS.values()}, "": KERNELS}.items():
        for key, row in rows.items():
            if (key.partition(": ")[0] if ": " in key else "") == name:
                told += [replace(Finding(**one), group=group) for one in row.get("findings", ())]
    return told
