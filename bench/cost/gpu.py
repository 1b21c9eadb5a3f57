"""What the cache costs and gives on a GPU, on published models: as many rows as some minutes allow."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch._dynamo.utils import counters

from bench.cost.beside import contenders
from bench.cost.settings import NEVER, Variant, options_by_name, static, threshold, variants_of
from bench.cost.steps import cached_steps, expected, seconds_of
from bench.findings import Finding, found, measured, milliseconds, ratio, ratio_of_medians
from bench.measures import Subject, by_name
from bench.models import SPECS, Made, Spec, blocks_of, make, named, twin, with_blocks
from bench.report.parts import Part, by_group
from bench.results import Results, failure, findings_of, row_of
from bench.timer import HostClock, clock_for, interleaved, quiet
from cache_dit import steps_mask
from cache_dit.errors import CacheDitError

Row = dict[str, Any]

#: The goals: a step where nothing is cached, and a loop's speed-up against the ideal at about GOAL ×.
OVERHEAD, EFFICIENCY, GOAL = "≤ 1.005", "≥ 0.95", 3.9
OURS = yaml.safe_load(Path(__file__).with_name("gpu.yaml").read_text(encoding="utf-8"))
MASKS = ("slow", "medium", "fast", "ultra")
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
    """How much is measured: steps of a run, runs, lengths of loops, rounds of each; ``tiny``: models of a test."""

    tiny: bool = False
    steps: int = 6
    runs: int = 4
    loops: tuple[int, ...] = (28, 50)
    rounds: int = 2


QUICK = Amount(steps=3, runs=1, loops=(28,), rounds=1)
TINY = Amount(tiny=True, steps=3, runs=1, loops=(4,), rounds=1)


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

    def model(self, spec: Spec) -> Made:
        """A model with its inputs; the one before it is freed."""
        if self.made is None or self.made.spec is not spec:
            self.made = None
            self.tidy()
            self.made = make(spec, self.device, self.dtype, tiny=self.size.tiny)
        return self.made

    def tidy(self) -> None:
        """Free what the row before left on a GPU: caches, graphs, and memory that torch keeps for later."""
        if self.device.type == "cuda":
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()


def opened(device: str, size: Amount) -> Stage:
    """The stage on a CUDA device.

    Raises:
        NeedsGpuError: it is no CUDA device, or there is none.
    """
    there = torch.device(device)
    if there.type != "cuda" or not torch.cuda.is_available():
        seen = f"--device is {there}" if there.type != "cuda" else "torch sees none here"
        raise NeedsGpuError(f"this bench measures a CUDA GPU, and {seen}: run it on a machine that has one")
    number = there.index or 0
    if number >= torch.cuda.device_count():
        raise NeedsGpuError(f"there is no {there}, only {torch.cuda.device_count()} CUDA devices: pass --device cuda")
    torch.cuda.set_device(number)
    return Stage(torch.device("cuda", number), torch.bfloat16, size)


# -- steps


def variants(steps: int) -> list[Variant]:
    """Ours for one branch, as a model that is distilled from guidance runs, and diffusers' caches."""
    ours = variants_of(OURS, options_by_name(steps), overhead=OVERHEAD)
    theirs = [
        Variant(f"{one.name}, {what}", options, "", method=one.method)
        for one in contenders(steps)
        for what, options in one.options.items()
        if one.method != "cache_dit" and "," in what and ("reuse" in what or what in one.apart)
    ]
    return [Variant("control", None), *ours, *theirs]


def steps_row(stage: Stage, spec: Spec) -> Row:
    """Seconds of each step, eager, in turn, reads of the host and live state; that outputs are finite and move."""
    made, size = stage.model(spec), stage.size
    subject = Subject(made.model, made.drifting(size.steps), stage.clock, size.runs, made.feature_bytes)
    first, *_, last = (output[0].float() for output in subject.run(subject.model))
    if not (first.isfinite().all() and last.isfinite().all()):
        raise RuntimeError(f"{spec.title} with random weights gives numbers that are not finite")
    findings, row = expected(subject, variants(size.steps))
    cached = [cached_steps(row, name) for name in row["rest"]]
    model = {
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "blocks_made": len(blocks_of(subject.model)),
        "drift": ((last - first).abs().mean() / first.abs().mean()).item(),
    }
    return row_of(
        [milliseconds("full step, bare", seconds_of(row["times"], "bare")), *findings, *cached], **model, **row
    )


# -- loops


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
    settings = {name: static(mask) for name, mask in masks.items()} | ({} if mode else {"measured": threshold(NEVER)})
    models = {name: twin(made.model) for name in ("bare", *settings)} | (
        {} if mode else {"rest": with_blocks(made.model)}
    )
    for name, options in settings.items():
        by_name("cache_dit", {"enable_separate_cfg": False, **options})(models[name], steps)
    torch._dynamo.reset()
    counters.clear()
    backend = {} if stage.device.type == "cuda" else {"backend": "eager"}  # processors' compiler is not measured here
    for model in models.values() if mode else ():
        MODES[mode](model, **backend)
    calls = {name: partial(denoise, made, model, steps, mode == "graphs") for name, model in models.items()}
    for name in list(calls) * (WARM_UP if mode else 1):
        calls[name]()
    compiled = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    times = interleaved(calls, 1, stage.size.rounds, stage.clock, warm_up=0, idle=True)
    compiled["again"] = counters["stats"]["unique_graphs"] - compiled["graphs"]
    seconds = {name: [run[0] for run in runs] for name, runs in times.items()}
    computed = {name: sum(mask) for name, mask in masks.items()}
    row = {"steps": steps, "mode": mode, "seconds": seconds, "computed": computed, "compiled": compiled}
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
        of = f"{mode}{steps} steps, {name}"
        yield measured(f"speed-up, {of}", pairs, ratio_of_medians, computed=count)
        share = partial(measured, f"speed-up ÷ ideal, {of}", pairs, ratio_of_medians, "×", target)
        yield share(scale=1 / ideal, ideal=ideal)
    even, count = statistics.median(seconds["even"]), row["computed"]["even"]
    beyond = (even - count * statistics.median(bare) / steps) / (steps - count)
    yield found(f"{mode}cached step, static, Fn=0, in a loop of {steps}, even", 1000 * beyond, "ms", computed=count)
    if mode:
        told = row["compiled"]
        yield found(f"{mode}graph breaks", told["breaks"], "breaks", graphs=told["graphs"])
        yield found(f"{mode}graphs compiled after the warm-up", told["again"], "graphs", "≤ 0")


# -- the run

Maker = Callable[[Stage], Row]


def makers(loops: tuple[int, ...]) -> dict[str, Maker]:
    """All rows by key: the claims about FLUX.1 first, then the other models, then what takes longer."""
    short, *longer = loops
    rows: dict[str, Maker] = {}
    for name, spec in SPECS.items():
        rows[f"{name}: steps"] = partial(steps_row, spec=spec)
        rows[f"{name}: loop of {short}"] = partial(loop_row, spec=spec, steps=short)
    loops_of = [(f"loop of {steps}", steps, "") for steps in longer]
    for key, steps, mode in [("regional", short, "regional"), *loops_of, *((mode, short, mode) for mode in MODES)]:
        for name, spec in SPECS.items():
            rows[f"{name}: {key}"] = partial(loop_row, spec=spec, steps=steps, mode=mode)
    return rows


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
    """Make the rows that are not there yet, or failed; none is begun when the minutes are over."""
    begun, wanted = now(), tuple(only)
    for key, maker in makers(stage.size.loops).items():
        there = key in results and "error" not in results.rows[key]
        if there or (wanted and not any(part in key for part in wanted)):
            continue
        start = now()
        if start - begun >= 60 * minutes:
            say(f"not run: {key}; a run with more --minutes goes on with it")
            continue
        row, spec = _made(maker, stage), SPECS[key.partition(": ")[0]]
        results.add(key, {**row, "findings": [{**one, "group": spec.title} for one in row.get("findings", ())]})
        say(f"{key}: {now() - start:.1f} s{', ' + row['error'] if 'error' in row else ''}")


def _made(maker: Maker, stage: Stage) -> Row:
    try:
        with quiet("cache_dit"):  # that nothing was skipped is the point of some rows
            row = maker(stage)
        stage.clock.wait()  # what fails on the device fails here
    except FAILURES as error:
        row = {"error": failure(error)}
    if "error" in row:
        stage.made = None  # outside of the handler: the error holds on to the memory that it was short of
    stage.tidy()
    return row


# -- the page


def parts(results: Results) -> dict[str, Part]:
    """What the places of ``pages/gpu.md`` hold."""
    rows = results.rows
    findings = results.findings or findings_of(rows.values())
    made = {name: rows.get(f"{name}: made") or rows.get(f"{name}: steps", {}) for name in SPECS}
    return {
        "if_older": "yes" if any("alone" in one.name for one in findings) else "",
        "dtype": results.settings.get("dtype", "bfloat16"),
        "models": "\n".join(_model(SPECS[name], row) for name, row in made.items() if "parameters" in row),
        "rounds": str(results.settings.get("rounds", "")) if findings else "",
        "groups": by_group(findings),
        "missing": "\n".join(f"- {key}: {row['error']}" for key, row in rows.items() if "error" in row),
    }


def _model(spec: Spec, row: Row) -> str:
    size = f"{row['parameters'] / 1e9:.1f} billion parameters, {row.get('blocks_made', row['blocks'])} blocks"
    return f"- {spec.title}: {size}, {spec.tokens[0]} tokens of picture or video and {spec.tokens[1]} of text"
