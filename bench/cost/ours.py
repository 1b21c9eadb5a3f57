"""What our own settings cost: tables of settings, and what is expected of each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import cache_dit
from bench.cost.steps import ALWAYS, NEVER, Row, Variant, expected, half_mask, quiet, static, threshold
from bench.measures import Subject, by_name, putting
from bench.models import Size, drifting, guided, twin
from bench.results import row_of

Options = dict[str, Any]
Table = tuple[Subject, list[Variant]]


@dataclass(frozen=True)
class Extent(Size):
    """The model, its input, how often it runs, and by which clock."""

    steps: int = 16
    runs: int = 3
    clock: str = "processor"
    quick: bool = False

    def subject(self) -> Subject:
        return Subject.of(self, self.clock, self.runs)

    def at_most(self, **fields: int) -> Extent:
        """The same with no more than so much of these."""
        return replace(self, **{name: min(most, getattr(self, name)) for name, most in fields.items()})


QUICK = Extent(hidden=64, double=1, single=2, image_tokens=16, text_tokens=4, steps=6, runs=2, quick=True)
#: Where only cached steps count, and how many blocks they skip does not.
SHALLOW = {"double": 1, "single": 2}
#: Steps of a run in which each predictor comes to have all the snapshots that it uses.
LONG = 28


def core(size: Extent) -> Table:
    """A step when nothing is cached, and the speed-up when half of the steps are."""
    half = {"taylor": 1, **static(half_mask(size.steps))}
    return size.subject(), [
        Variant("control", None),
        Variant("threshold 0", threshold(0.0), "≤ 1.01"),
        Variant("every step measured, none skipped, Taylor 1", {"taylor": 1, **threshold(NEVER)}, ""),
        Variant("half planned, Taylor 1, Fn=0", half, "≥ 0.97", "≤ 0"),
        Variant("half planned, Taylor 1, Fn=1", {**half, "Fn_compute_blocks": 1}, "≥ 0.97", "≤ 0"),
    ]


def memory(size: Extent) -> Table:
    """Live state, by what is really alive."""
    planned, measured = static(half_mask(size.steps)), threshold(ALWAYS, max_continuous_cached_steps=2)
    variants = [
        Variant("reuse, threshold", measured, state="≤ 2"),
        Variant("reuse, planned", planned, state="≤ 1"),
        *(Variant(f"Taylor {n}, threshold", {"taylor": n, **measured}, state=f"≤ {n + 2}") for n in (1, 2)),
        *(Variant(f"Taylor {n}, planned", {"taylor": n, **planned}, "", state=f"≤ {n + 1}") for n in (1, 2)),
    ]
    for dtype, most in {"bfloat16": "≤ 1", "float8_e4m3fn": "≤ 0.5"}.items():
        kept = {"taylor": 1, "cache_dtype": dtype, **planned}
        name = f"Taylor 1, planned, kept as {dtype}"
        variants.append(Variant(name, kept, state=most, against=("Taylor 1, planned", "")))
    return size.at_most(**SHALLOW).subject(), variants


#: By name: options, the snapshots that a plan keeps, and reads: DMD's are inner products of each stream's snapshots.
PREDICTORS: dict[str, tuple[Options, int, int]] = {
    "reuse": ({}, 1, 0),
    "Taylor 1": ({"taylor": 1}, 2, 0),
    "Taylor 2": ({"taylor": 2}, 3, 0),
    "Newton 2": ({"calibrator": ("NewtonCalibratorConfig", {"newton_order": 2})}, 3, 0),
    "Hermite 2": ({"calibrator": ("HermiteCalibratorConfig", {"hermite_order": 2})}, 3, 0),
    "FoCa": ({"calibrator": ("FoCaCalibratorConfig", {})}, 4, 0),
    "DMD 6": ({"calibrator": ("DMDCalibratorConfig", {"dmd_history": 6})}, 6, 2),
}


def predictors(size: Extent) -> Table:
    """A cached step by predictor: its time against reuse, its live state, its reads; by a plan."""
    size = (size if size.quick else replace(size, steps=max(size.steps, LONG))).at_most(**SHALLOW)
    plan, variants = static(half_mask(size.steps)), []
    for name, (options, held, reads) in PREDICTORS.items():
        first = name == "reuse"
        against = None if first else ("reuse", "≤ 1.5" if name == "Taylor 1" else "")
        given = {**options, **plan}
        variants.append(Variant(name, given, "" if first else None, f"≤ {reads}", f"≤ {held}", against))
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
        half = threshold(ALWAYS, max_continuous_cached_steps=1)
        variants.append(Variant(f"{name}, nothing cached", {**threshold(NEVER), **options}, "≤ 1.01", f"≤ {reads}"))
        variants.append(Variant(f"{name}, half cached", {**half, **options}, "", f"≤ {reads}"))
    never_planned = {"taylor": 1, **static([1] * size.steps + [0])}
    return subject, [*variants, Variant("static, nothing cached", never_planned, "≤ 1.01", "≤ 0")]


def pruning(size: Extent) -> Table:
    """DBPrune: what deciding block by block costs, what half of the blocks save, and how often the host waits."""
    kept, blocks = list(range(0, size.blocks, 2)), size.blocks - 1  # the first is never decided on
    prune, variants = {"config": "DBPruneConfig"}, []
    for by, reads, free_reads, target in (("block", blocks, size.blocks - len(kept), ""), ("previous", 1, 1, "≤ 1.01")):
        never = {**prune, "prune_decision": by, **threshold(NEVER)}
        half = {**prune, "prune_decision": by, **threshold(ALWAYS), "non_prune_block_ids": kept}
        variants.append(Variant(f"DBPrune, nothing pruned, by {by}", never, target, f"≤ {reads}"))
        variants.append(Variant(f"DBPrune, half of the blocks pruned, by {by}", half, "≥ 0.97", f"≤ {free_reads}"))
    never = {**prune, **threshold(NEVER)}
    variants.append(Variant("DBPrune, reuse", never, state=f"≤ {2 * blocks}"))
    return size.subject(), [*variants, Variant("DBPrune, Taylor 1", {"taylor": 1, **never}, state=f"≤ {3 * blocks}")]


def _two_branches(size: Extent, *, by_name: bool) -> Subject:
    """Inputs of two branches of guidance, which differ in what they are told; half the runs, since each is two."""
    subject = replace(size, runs=max(1, size.runs // 2)).subject()
    words = ("encoder_hidden_states", "pooled_projections")
    pairs = zip(subject.inputs, drifting(size, seed=1), strict=True)
    both = [{"cond": cond, "uncond": {**cond, **{key: other[key] for key in words}}} for cond, other in pairs]
    return replace(subject, inputs=both, called=partial(guided, by_name=by_name))


def guidance(size: Extent) -> Table:
    """Two branches a step, called by name: nothing cached, and half of the steps, by threshold and by plan."""
    by_threshold = {"taylor": 1, **threshold(ALWAYS, max_continuous_cached_steps=1)}
    planned = {"taylor": 1, **static(half_mask(size.steps))}
    one_diff = {"cfg_diff_compute_separate": False, "enable_separate_cfg": True}
    return _two_branches(size, by_name=True), [
        Variant("two branches by name, every step measured", {"taylor": 1, **threshold(NEVER)}, "", "≤ 2"),
        Variant("two branches, threshold", by_threshold, "≥ 0.97", "≤ 2", "≤ 6"),
        Variant("two branches, planned", planned, "≥ 0.97", "≤ 0", "≤ 6"),
        Variant("two branches, one diff for both", {**by_threshold, **one_diff}, reads="≤ 1"),
    ]


def turns(size: Extent) -> Table:
    """Two branches a step, called in turn without a name."""
    options = {"taylor": 1, "enable_separate_cfg": True, **threshold(NEVER)}
    return _two_branches(size, by_name=False), [
        Variant("two branches by turns, every step measured", options, "", "≤ 2")
    ]


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


def python(size: Extent) -> Table:
    """What the engine itself takes in a step, beside as many blocks as FLUX.1 has, which do next to nothing."""
    depth = {} if size.quick else {"double": 19, "single": 38}
    size = replace(size.at_most(hidden=64, image_tokens=4, text_tokens=2), **depth)
    return size.subject(), [
        Variant("nothing measured, 57 blocks", static([1] * size.steps + [0]), ""),
        Variant("every step measured, 57 blocks", threshold(NEVER), ""),
    ]


#: By the name that ``--only`` knows them by, in the order in which they run.
GROUPS: dict[str, Callable[[Extent], Table]] = {
    **{"core": core, "memory": memory, "predictors": predictors, "policies": policies, "pruning": pruning},
    **{"guidance": guidance, "turns": turns, "batches": batches, "python": python},
}


@torch.no_grad()
def measured(name: str, size: Extent) -> Row:
    """The row of a group: times, and what follows."""
    with quiet("cache_dit"):
        findings, row = expected(*GROUPS[name](size))
    return row_of((replace(finding, group=name) for finding in findings), **row)
