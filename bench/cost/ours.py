"""What our own settings cost: tables of settings, what is expected of each, and the one way to measure them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import cache_dit
from bench.cost.engine import kernels
from bench.cost.steps import (
    ALWAYS,
    NEVER,
    half_mask,
    line_of,
    of_reads,
    of_state,
    of_time,
    quiet,
    static,
    threshold,
    where,
)
from bench.cost.steps import watched as bar
from bench.findings import Finding, found, measured, pairs_of, ratio
from bench.measures import Subject, by_name, putting, reads_of, state_of, time_of
from bench.models import EmptyTransformer, Size, drifting, guided, twin
from bench.timer import HostClock, Times, interleaved

Options = dict[str, Any]


@dataclass(frozen=True)
class Extent(Size):
    """The model, its input, how often it runs, and by which clock."""

    steps: int = 16
    runs: int = 3
    calls: int = 2000
    clock: str = "processor"
    quick: bool = False

    def subject(self) -> Subject:
        return Subject.of(self, self.clock, self.runs)

    def at_most(self, **fields: int) -> Extent:
        """The same with no more than so much of these."""
        return replace(self, **{name: min(most, getattr(self, name)) for name, most in fields.items()})


QUICK = Extent(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=6, runs=2, calls=10, quick=True)
#: Where only cached steps count, and how many blocks they skip does not.
SHALLOW = {"double": 1, "single": 2}


@dataclass(frozen=True)
class Variant:
    """One of our settings, and what is expected of it; None: that is not measured, "": there is no target.

    Args:
        name: as findings call it.
        options: as `bench.measures.by_name` takes them; None: another instance of the bare model.
        time: the target of `bench.cost.steps.of_time`.
        reads: of the reads of a step.
        state: of the features that are held.
        against: another variant, whose steps of the same kind this one's are held against; and the target of that.
        faster: another variant, whose whole runs are held against this one's.
    """

    name: str
    options: Options | None
    time: str | None = None
    reads: str | None = None
    state: str | None = None
    against: tuple[str, str] | None = None
    faster: str | None = None


def measure_variants(subject: Subject, variants: Sequence[Variant]) -> tuple[list[Finding], dict[str, Any]]:
    """All that is expected of some settings, with the row of their times; they are timed in turn, step by step."""
    on = {one.name: by_name("cache_dit", one.options) if one.options is not None else None for one in variants}
    held = {one.faster for one in variants}
    timed = [one.name for one in variants if one.name in held or not (one.time is one.against is one.faster is None)]
    row = time_of(subject, {name: on[name] for name in timed}, watched=bar("steps")) if timed else {}
    findings = []
    for one in variants:
        if one.options is None:
            pairs = pairs_of(row["times"], one.name, "bare")
            findings.append(ratio("bare ÷ bare: how far the machine lets one see", pairs))
            continue
        if one.time is not None:
            findings += of_time(row, one.name, target=one.time)
        if one.against is not None:
            findings += _against(row, one.name, *one.against)
        if one.faster is not None:
            findings.append(_faster(row, one.name, one.faster))
        if one.reads is not None:
            findings.append(of_reads(reads_of(subject, on[one.name]), f", {one.name}", one.reads))
        if one.state is not None:
            findings.append(of_state(state_of(subject, by_name("cache_dit", one.options)), f", {one.name}", one.state))
    return findings, row


def _against(row: Mapping[str, Any], name: str, other: str, target: str) -> Iterator[Finding]:
    """Cached and computed steps over another's, once all snapshots are there that are used."""
    line = line_of(row, name)
    for letter, kind in (("C", "cached"), ("F", "computed")):
        steps = [step for step in where(line, letter) if step >= min(FULL, len(line) // 2)]
        pairs = pairs_of(row["times"], name, other, steps)
        yield ratio(f"{kind} step, {name} ÷ {other}", pairs, target if letter == "C" else "")


def _faster(row: Mapping[str, Any], name: str, other: str) -> Finding:
    """How many times as fast whole runs are as another's, and how many by the blocks that ran."""
    theirs, own = ([sum(run) for run in row["times"][one]] for one in (other, name))
    blocks = {one: sum(row["blocks"][one]) for one in (other, name)}
    details = {"ideal_by_blocks": blocks[other] / blocks[name], "blocks": row["blocks"][name]}
    return measured(f"speed-up, {name} ÷ {other}", np.divide(theirs, own), partial(np.median, axis=-1), **details)


#: After so many steps of a plan, of which every other one is computed, each predictor has all the snapshots that it
#: uses; and the steps of a run that is long enough for that.
FULL, LONG = 12, 28


# -- the tables

Table = tuple[Subject, list[Variant]]


def core(size: Extent) -> Table:
    """A step when nothing is cached, and the speed-up when half of the steps are."""
    half = half_mask(size.steps)
    return size.subject(), [
        Variant("control", None, ""),
        Variant("threshold 0", threshold(0.0), "≤ 1.01"),
        Variant("every step measured, none skipped, Taylor 1", {"taylor": 1, **threshold(NEVER)}, ""),
        *(
            Variant(f"half planned, Taylor 1, Fn={n}", {"taylor": 1, **static(half, n)}, "≥ 0.97", "≤ 0")
            for n in (0, 1)
        ),
    ]


def memory(size: Extent) -> Table:
    """Live state, by what is really alive."""
    planned, measured_ = static(half_mask(size.steps)), threshold(ALWAYS, max_continuous_cached_steps=2)
    dtypes = {"bfloat16": "≤ 1", "float8_e4m3fn": "≤ 0.5"}
    kept = {dtype: {"taylor": 1, "cache_dtype": dtype, **planned} for dtype in dtypes}
    return size.at_most(**SHALLOW).subject(), [
        Variant("reuse, threshold", measured_, state="≤ 2"),
        Variant("reuse, planned", planned, state="≤ 1"),
        *(Variant(f"Taylor {n}, threshold", {"taylor": n, **measured_}, state=f"≤ {n + 2}") for n in (1, 2)),
        *(Variant(f"Taylor {n}, planned", {"taylor": n, **planned}, "", state=f"≤ {n + 1}") for n in (1, 2)),
        *(
            Variant(f"Taylor 1, planned, kept as {one}", kept[one], state=most, against=("Taylor 1, planned", ""))
            for one, most in dtypes.items()
        ),
    ]


#: By name: options, and the snapshots that a plan keeps.
PREDICTORS: dict[str, tuple[Options, int]] = {
    "reuse": ({}, 1),
    "Taylor 1": ({"taylor": 1}, 2),
    "Taylor 2": ({"taylor": 2}, 3),
    "Newton 2": ({"calibrator": ("NewtonCalibratorConfig", {"newton_order": 2})}, 3),
    "Hermite 2": ({"calibrator": ("HermiteCalibratorConfig", {"hermite_order": 2})}, 3),
    "FoCa": ({"calibrator": ("FoCaCalibratorConfig", {})}, 4),
    "DMD 6": ({"calibrator": ("DMDCalibratorConfig", {"dmd_history": 6})}, 6),
}


def predictors(size: Extent) -> Table:
    """A cached step by predictor: its time against reuse, its live state, its reads; by a plan."""
    size = (size if size.quick else replace(size, steps=max(size.steps, LONG))).at_most(**SHALLOW)
    plan, variants = static(half_mask(size.steps)), []
    for name, (options, held) in PREDICTORS.items():
        reads = "≤ 2" if name == "DMD 6" else "≤ 0"  # DMD reads the inner products of each stream's snapshots
        target = "≤ 1.5" if name == "Taylor 1" else ""
        against = None if name == "reuse" else ("reuse", target)
        time_ = "" if name == "reuse" else None
        variants.append(Variant(name, {**options, **plan}, time_, reads, f"≤ {held}", against))
    return size.subject(), variants


#: Blocks that a policy computes in any step, and host reads of a step.
POLICIES = {"dbcache": (1, 1), "teacache": (1, 1), "easycache": (0, 1), "magcache": (1, 0)}


def policies(size: Extent) -> Table:
    """A budget so small that every step is computed, Taylor 1; then one so large that every other step is skipped."""
    subject, variants = size.subject(), []
    watched = twin(subject.model)
    for name, (front, reads) in POLICIES.items():
        options: Options = {"policy": name, "taylor": 1, "Fn_compute_blocks": front}
        if name == "magcache":
            options["policy_calibration"] = cache_dit.calibrate(watched, lambda: subject.run(watched), policy=name)
        never, half = threshold(NEVER), threshold(ALWAYS, max_continuous_cached_steps=1)
        variants.append(Variant(f"{name}, nothing cached", {**never, **options}, "≤ 1.01", f"≤ {reads}"))
        variants.append(Variant(f"{name}, half cached", {**half, **options}, "", f"≤ {reads}"))
    never_planned = {"taylor": 1, **static([1] * size.steps + [0])}
    return subject, [*variants, Variant("static, nothing cached", never_planned, "≤ 1.01", "≤ 0")]


def pruning(size: Extent) -> Table:
    """DBPrune: what deciding block by block costs, what half of the blocks save, and how often the host waits."""
    kept, blocks = list(range(0, size.blocks, 2)), size.blocks - 1  # the first is never decided on
    prune = {"config": "DBPruneConfig"}
    free, variants = size.blocks - len(kept), []
    for by, reads, free_reads, target in (("block", blocks, free, ""), ("previous", 1, 1, "≤ 1.01")):
        never = {**prune, "prune_decision": by, **threshold(NEVER)}
        half = {**prune, "prune_decision": by, **threshold(ALWAYS), "non_prune_block_ids": kept}
        variants.append(Variant(f"DBPrune, nothing pruned, by {by}", never, target, f"≤ {reads}"))
        variants.append(Variant(f"DBPrune, half of the blocks pruned, by {by}", half, "≥ 0.97", f"≤ {free_reads}"))
    for name, taylor, held in (("reuse", None, 2), ("Taylor 1", 1, 3)):
        options = {**prune, **threshold(NEVER), **({"taylor": taylor} if taylor else {})}
        variants.append(Variant(f"DBPrune, {name}", options, state=f"≤ {held * blocks}"))
    return size.subject(), variants


def _two_branches(size: Extent) -> Subject:
    """Inputs of two branches of guidance, which differ in what they are told; half the runs, since each is two."""
    subject = replace(size, runs=max(1, size.runs // 2)).subject()
    words = ("encoder_hidden_states", "pooled_projections")
    pairs = zip(subject.inputs, drifting(size, seed=1), strict=True)
    both = [{"cond": cond, "uncond": {**cond, **{key: other[key] for key in words}}} for cond, other in pairs]
    return replace(subject, inputs=both)


def guidance(size: Extent) -> Table:
    """Two branches a step, called by name: nothing cached, and half of the steps, by threshold and by plan."""
    by_threshold = {"taylor": 1, **threshold(ALWAYS, max_continuous_cached_steps=1)}
    planned = {"taylor": 1, **static(half_mask(size.steps))}
    one_diff = {"cfg_diff_compute_separate": False, "enable_separate_cfg": True}
    return replace(_two_branches(size), called=partial(guided, by_name=True)), [
        Variant("two branches by name, every step measured", {"taylor": 1, **threshold(NEVER)}, "", "≤ 2"),
        Variant("two branches, threshold", by_threshold, "≥ 0.97", "≤ 2", "≤ 6"),
        Variant("two branches, planned", planned, "≥ 0.97", "≤ 0", "≤ 6"),
        Variant("two branches, one diff for both", {**by_threshold, **one_diff}, reads="≤ 1"),
    ]


def turns(size: Extent) -> Table:
    """Two branches a step, called in turn without a name."""
    options = {"taylor": 1, "enable_separate_cfg": True, **threshold(NEVER)}
    two = Variant("two branches by turns, every step measured", options, "", "≤ 2")
    return replace(_two_branches(size), called=partial(guided, by_name=False)), [two]


#: How a batch decides, and what that is held against; and the drifts of its samples, slow ones and fast ones.
DECISIONS = {"any": None, "mean": "batch of 8, any", "sample": "batch of 8, any"}
SPEEDS = tuple(0.2 * 1.6**place for place in range(8))


def batches(size: Extent) -> Table:
    """Eight samples at one threshold, Taylor 1; a smaller model, since each step is eight."""
    size = size.at_most(hidden=256, double=2, single=4, image_tokens=128, text_tokens=32)
    subject = replace(size.subject(), inputs=drifting(size, SPEEDS))
    # Random weights react to the time like nothing trained does; so damped, it is the samples that differ.
    subject.model.time_text_embed.timestep_embedder.linear_2.weight.mul_(0.01)
    watched = twin(subject.model)
    with putting(by_name("cache_dit", threshold(NEVER)), watched, size.steps):
        subject.run(watched)
        diffs = cache_dit.summary(watched, logging=False)[0].residual_diffs
    options = {"taylor": 1, **threshold(statistics.median(diffs.values()), max_warmup_steps=3)}
    return subject, [
        Variant(f"batch of 8, {one}", {**options, "decision": one}, reads="≤ 1", faster=other)
        for one, other in DECISIONS.items()
    ]


#: By the name that ``--only`` knows them by, in the order in which they run.
TABLES: dict[str, Callable[[Extent], Table]] = {
    **{"core": core, "memory": memory, "predictors": predictors, "policies": policies, "pruning": pruning},
    **{"guidance": guidance, "turns": turns, "batches": batches},
}


# -- what is no transformer

WEIGHTS = (1.0, -3.0, 3.0)


def sum_times(
    shape: Sequence[int], dtype: torch.dtype, count: int, calls: int, clock: HostClock, *, on: Any = "cpu", quick: bool
) -> dict[str, Any]:
    """anchor + Σ c·s over ``count`` snapshots, one compiled kernel beside eager torch: times, bytes and errors."""
    torch.manual_seed(count)
    wide = dtype if torch.device(on).type == "cuda" else torch.float32  # what blocks hand on there
    sets = [
        [torch.randn(tuple(shape), device=on).to(kind) for kind in (wide, *[dtype] * count)] for _ in range(4)
    ]  # by turns, so that no cache of a device holds them
    both = kernels("eager" if quick else "inductor")
    outs = {name: torch.empty_like(sets[0][0]) for name in both}

    def run(name: str, call: int) -> None:
        anchor, *parts = sets[call % len(sets)]
        both[name](outs[name], parts, WEIGHTS[:count], anchor=anchor)

    times = interleaved({name: partial(run, name) for name in both}, calls, 3, clock)
    anchor, *parts = (tensor.double() for tensor in sets[0])
    exact, errors = anchor + sum(weight * part for weight, part in zip(WEIGHTS, parts, strict=False)), {}
    for name in both:
        run(name, 0)
        errors[name] = ((outs[name].double() - exact).abs().max() / exact.abs().max()).item()
    moved = sum(one.nbytes for one in sets[0]) + outs["eager"].nbytes
    told = {"errors": errors, "compiler_failed": both["compiled"].broken, "shape": list(shape), "bytes": moved}
    return {"times": times, **told}


def of_sum(row: Mapping[str, Any], title: str) -> list[Finding]:
    """The compiled kernel's time over eager torch's, and the bytes of the tensors over time."""
    told = {name: row[name] for name in ("errors", "compiler_failed", "shape")}
    findings = [ratio(f"{title}, compiled ÷ eager", pairs_of(row["times"], "compiled", "eager"), **told)]
    for name in ("compiled", "eager"):
        rate = row["bytes"] / float(np.median(row["times"][name])) / 1e9
        findings.append(found(f"{title}, {name}: bytes of the tensors over time", rate, "GB/s"))
    return findings


def sums(size: Extent) -> list[Finding]:
    """The weighted sum that every prediction is: of a feature, and of one of a large model."""
    tokens, findings = size.image_tokens + size.text_tokens, []
    shapes = {"a feature": (1, tokens, size.hidden), "a large feature": (1, 13 * tokens, 4 * size.hidden)}
    for (name, shape), share in zip(shapes.items(), (10, 200), strict=True):
        for dtype in (torch.float32, torch.bfloat16):
            for count in (1, 2, 3):
                calls = max(1, size.calls // share)
                row = sum_times(shape, dtype, count, calls, HostClock(size.clock), quick=size.quick)
                findings += of_sum(row, f"sum of {count} in {str(dtype).removeprefix('torch.')}, {name}")
    return findings


#: Blocks of the models that have nothing but the wrapper: two depths tell a step's Python from a block's.
FEW, MANY = 12, 112
#: What asks for a kind of cache, and the batch that it runs.
KINDS: dict[str, tuple[Options, int]] = {
    "DBCache": ({}, 1),
    "each of 4 samples": ({"decision": "sample"}, 4),
    "DBPrune": ({"config": "DBPruneConfig"}, 1),
}


def python(size: Extent) -> list[Finding]:
    """Microseconds of the engine itself, in each step and in each block of a computed and of a skipped step."""
    findings = []
    for kind, (options, batch) in KINDS.items():
        state, calls = torch.randn(batch, 4, 8), size.calls
        masks = {"computed": [1] * calls + [0], "skipped": [1, *[0] * (calls - 1)]}
        rows = {n: empty_steps(n, state, calls, HostClock(size.clock), masks, options) for n in (FEW, MANY)}
        for name in masks:
            step, block = python_seconds(rows, name)
            note = "its tensor operations included; below 0 where a bare block's call costs more"
            findings.append(found(f"Python in a {name} step, {kind}", 1e6 * step, "µs", note=note))
            findings.append(found(f"Python in a block of a {name} step, {kind}", 1e6 * block, "µs"))
    return findings


def empty_steps(
    blocks: int, state: torch.Tensor, calls: int, clock: HostClock, masks: Mapping[str, list[int]], options: Options
) -> Times:
    """Seconds of the steps of a model whose blocks do nothing, bare and by each mask."""
    bare = EmptyTransformer(blocks)
    models = {"bare": bare}
    for name, mask in masks.items():
        given = {"num_inference_steps": calls, "Bn_compute_blocks": 0, "max_warmup_steps": 1, **options}
        config = getattr(cache_dit, given.pop("config", "DBCacheConfig"))(**given, **static(mask))
        model = models[name] = twin(bare)
        pattern = cache_dit.ForwardPattern.Pattern_1
        adapter = cache_dit.BlockAdapter(transformer=model, blocks=model.blocks, forward_pattern=pattern)
        cache_dit.enable_cache(adapter, config)
    same = {"hidden_states": state, "encoder_hidden_states": state}
    runs = {name: lambda step, model=model: model(**same, timestep=1 - step / calls) for name, model in models.items()}
    return interleaved(runs, calls, 3, clock, watched=bar(f"Python, {blocks} blocks"))


def python_seconds(rows: Mapping[int, Times], name: str) -> tuple[float, float]:
    """What the wrapper takes in a step, and in each of its blocks, from the steps of two depths."""
    few, many = sorted(rows)
    beyond = {n: float(np.median(times[name]) - np.median(times["bare"])) for n, times in rows.items()}
    block = (beyond[many] - beyond[few]) / (many - few)
    return beyond[few] - few * block, block


#: All groups, and how each is measured: the findings, and the row of their times.
GROUPS: dict[str, Callable[[Extent], tuple[list[Finding], dict[str, Any]]]] = {
    **{name: lambda size, table=table: measure_variants(*table(size)) for name, table in TABLES.items()},
    "sums": lambda size: (sums(size), {}),
    "python": lambda size: (python(size), {}),
}


def measure(results: Any, size: Extent, names: Sequence[str]) -> None:
    """Add the rows of these groups that are not there yet."""
    for name in names:
        if name in GROUPS:
            results.row(f"group/{name}", lambda name=name: _row(name, size))


@torch.no_grad()
def _row(name: str, size: Extent) -> dict[str, Any]:
    start = time.perf_counter()
    with quiet("cache_dit", "torch._dynamo"):
        findings, row = GROUPS[name](size)
    told = [asdict(replace(finding, group=name)) for finding in findings]
    return {**row, "seconds": round(time.perf_counter() - start, 1), "findings": told}
